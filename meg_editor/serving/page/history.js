/** Changes of the edits: what one did, and the list of them. */

import { call } from "./api.js";
import { counted, element, fact, find, moment } from "./dom.js";

const SHOWN = 5; // edits of a change

/** What a change did, as a sentence. */
export function summary(change) {
  const some = (word, edits) => {
    if (!edits.length) return [];
    const first = `${edits[0].prompt} → ${edits[0].target_new}`;
    return [edits.length === 1 ? `${word} ${first}` : `${word} ${counted(edits.length, "edit")}`];
  };
  const parts = [...some("added", change.added), ...some("removed", change.removed)];
  if (change.merged?.length) parts.push("in force already");
  if (change.not_learned?.length) parts.push(`not learned: ${change.not_learned.join(", ")}`);
  return parts.join("; ") || "nothing changed";
}

/** Reads the list where it is open, the newest change first. */
export async function showHistory() {
  if (!find("history").open) return;
  const { data } = await call("v1/edits/history", { admin: true });
  const items = data.slice().reverse().map(item);
  const none = element("li", { class: "hint" }, "No change since the edits were made.");
  find("history-list").replaceChildren(...(items.length ? items : [none]));
}

function item(change) {
  const head = change.undoes ? `${change.kind} of ${change.undoes}` : change.kind;
  const merged = (change.merged ?? []).map((one) => line("in force already", one.prompt));
  const missed = (change.not_learned ?? []).map((prompt) => line("not learned", prompt));
  return element("li", {},
    element("span", { class: "hint" }, `${change.number}. ${head} `, moment(change.when)),
    element("ul", { class: "plain" }, ...facts("+", "added", change.added),
      ...facts("−", "removed", change.removed), ...merged, ...missed));
}

function facts(sign, word, edits) {
  const lines = edits.slice(0, SHOWN).map((edit) =>
    element("li", {}, element("span", { class: "sign", role: "img", "aria-label": word }, sign),
      fact(edit)));
  if (edits.length > SHOWN) {
    lines.push(element("li", { class: "hint" }, `and ${counted(edits.length - SHOWN, "more edit")}`));
  }
  return lines;
}

const line = (what, prompt) =>
  element("li", { class: "hint" }, `${what}: `, element("bdi", {}, prompt));
