/** The view Ask: a prompt, the edited answer beside the base's, and why. */

import { call, models, question, streamed } from "./api.js";
import { element, find } from "./dom.js";
import { explained } from "./why.js";

const REASONS = { length: "cut at the most tokens", stop: "complete" };
let running = null;

/** Names the two models of the server. */
export async function show() {
  await named();
}

async function named() {
  const known = await models();
  find("edited-model").textContent = known.edited ?? "";
  find("base-model").textContent = known.base ?? "";
  return known;
}

async function ask(event) {
  event.preventDefault();
  const prompt = find("prompt").value;
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const asked = {
    prompt, inChat: find("in-chat").checked, maxTokens: find("max-tokens").valueAsNumber, signal,
  };
  find("stop").disabled = false;
  const known = named();
  await Promise.all([answer("edited", known, asked), answer("base", known, asked), why(asked)]);
  if (!signal.aborted) settle();
}

/** Streams the answer of "edited" or "base" into its column. */
async function answer(which, known, { prompt, inChat, maxTokens, signal }) {
  const [text, caption] = [find(`${which}-answer`), find(`${which}-caption`)];
  const start = performance.now();
  const end = (says, isError = false) => {
    if (signal !== running?.signal) return; // a later prompt has the column
    text.setAttribute("aria-busy", "false");
    caption.classList.toggle("error", isError);
    caption.textContent = says;
  };
  text.replaceChildren();
  text.setAttribute("aria-busy", "true"); // read aloud once, when it is complete
  caption.classList.remove("error");
  caption.textContent = "Asked …";
  try {
    const model = (await known)[which];
    if (!model) return end("The server has no such model.", true);
    let ended = "complete";
    for await (const piece of streamed(model, prompt, inChat, maxTokens, signal)) {
      if (piece.text) caption.textContent = "Answering …";
      text.append(piece.text);
      if (piece.reason) ended = REASONS[piece.reason] ?? piece.reason;
    }
    if (!text.textContent.trim()) text.append(element("span", { class: "hint" }, "(nothing)"));
    end(`${ended}, ${((performance.now() - start) / 1000).toFixed(1)} s`);
  } catch (error) {
    if (error.name === "AbortError") end("stopped");
    else end(error.message, true);
  }
}

async function why({ prompt, inChat, signal }) {
  const place = find("why");
  place.replaceChildren(element("p", { class: "hint" }, "Routed …"));
  try {
    const body = question(prompt, inChat);
    const route = await call("v1/route", { method: "POST", body, admin: true, signal });
    place.replaceChildren(...explained(route));
  } catch (error) {
    if (signal !== running?.signal) return;
    const isError = error.name !== "AbortError";
    const says = isError ? error.message : "stopped";
    place.replaceChildren(element("p", { class: isError ? "line error" : "hint" }, says));
  }
}

function settle() {
  if (document.activeElement === find("stop")) find("ask-button").focus();
  find("stop").disabled = true;
}

/** Listens to the form. */
export function start() {
  const form = find("ask-form");
  form.addEventListener("submit", ask);
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    form.requestSubmit();
  });
  find("stop").addEventListener("click", () => {
    running?.abort();
    settle();
  });
}
