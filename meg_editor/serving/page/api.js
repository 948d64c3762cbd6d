/** Calls of the server's API: keys, JSON, errors and streamed answers. */

const KEYS = ["admin", "api"];
let refused = () => {};

/** An answer other than 2xx, or none: `status` 0. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.name = "ApiError";
    this.status = status;
  }
}

/** Calls back with the server's message at each 401. */
export function onRefused(callback) {
  refused = callback;
}

/** A key of this browser tab, "" where there is none. */
export const key = (name) => sessionStorage.getItem(`meg-editor.${name}`) ?? "";

/** Keeps a key for this browser tab; "" forgets it. */
export function keepKey(name, value) {
  if (value) sessionStorage.setItem(`meg-editor.${name}`, value);
  else sessionStorage.removeItem(`meg-editor.${name}`);
}

/** Keeps the keys of an address like `#admin=KEY`; says whether there were any. */
export function takeKeys(fragment) {
  const fields = new URLSearchParams(fragment.replace(/^#/, "").replaceAll("+", "%2B"));
  const given = KEYS.filter((name) => fields.get(name));
  for (const name of given) keepKey(name, fields.get(name));
  return given.length > 0;
}

async function send(path, { method = "GET", body, admin = false, signal } = {}) {
  const headers = {};
  const bearer = admin ? key("admin") || key("api") : key("api") || key("admin");
  if (bearer) headers.Authorization = `Bearer ${bearer}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    const text = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(path, { method, headers, body: text, signal, cache: "no-store" });
  } catch (error) {
    throw lost(error, "The server cannot be reached.");
  }
  if (response.ok) return response;
  const error = new ApiError(await messageOf(response), response.status);
  if (response.status === 401) refused(error.message);
  throw error;
}

/** An aborted request stays an AbortError; what else fetch throws is a broken connection. */
function lost(error, message) {
  return error instanceof TypeError ? new ApiError(message) : error;
}

async function messageOf(response) {
  try {
    const { error, detail } = await response.json();
    if (error?.message) return error.message;
    if (typeof detail === "string") return detail;
  } catch {
    // Not JSON: a proxy's page, say.
  }
  return `The server answered ${response.status} ${response.statusText}`.trim();
}

/** The JSON answer of a call. `options`: method, body, signal; `admin` where that key is needed. */
export async function call(path, options) {
  return (await send(path, options)).json();
}

/** JSON events of a stream which ends with [DONE]. */
async function* events(path, body, signal) {
  const response = await send(path, { method: "POST", body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw lost(error, "The connection broke.");
    });
    if (done) throw new ApiError("The server ended the answer early.");
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const data = dataOf(block);
      if (data === "[DONE]") return;
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.message);
      yield event;
    }
  }
}

function dataOf(block) {
  const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}

/** What the server is asked for a prompt: a chat of one turn, or plain text. */
export function question(prompt, inChat) {
  return inChat ? { messages: [{ role: "user", content: prompt }] } : { prompt };
}

/** Pieces of a streamed answer: `text`, and `reason` once it ends. */
export async function* streamed(model, prompt, inChat, maxTokens, signal) {
  const path = inChat ? "v1/chat/completions" : "v1/completions";
  const body = { model, ...question(prompt, inChat), stream: true, max_tokens: maxTokens };
  for await (const { choices } of events(path, body, signal)) {
    const choice = choices?.[0];
    if (!choice) continue; // a chunk about usage
    yield { text: choice.delta?.content ?? choice.text ?? "", reason: choice.finish_reason };
  }
}

/** Ids of the edited model and its base; null where the server has no such one. */
export async function models() {
  const ids = (await call("v1/models")).data.map((model) => model.id);
  const edited = ids.find((id) => ids.includes(`${id}:base`)) ?? ids[0] ?? null;
  const base = ids.includes(`${edited}:base`) ? `${edited}:base` : null;
  return { ids, edited, base };
}
