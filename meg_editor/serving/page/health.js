/** The view Health: what the server does, and its models. */

import { call, models } from "./api.js";
import { element, find } from "./dom.js";

const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

/** Reads and shows the server's state. */
export async function show() {
  const health = await call("health").catch((error) => {
    figures([["Status", "not reachable"]]);
    throw error;
  });
  figures([
    ["Status", health.status],
    ["Edits in force", health.edits.toLocaleString("en")],
    ["Requests running", health.running],
    ["Requests waiting", health.waiting],
    ["Up for", spoken(health.uptime)],
  ]);
  const known = await models();
  find("models-list").replaceChildren(...known.ids.map((id) => {
    const kind = id === known.edited ? "edited" : id === known.base ? "the model as it was" : "";
    return element("li", {}, element("code", {}, id), " ", element("span", { class: "hint" }, kind));
  }));
}

function figures(pairs) {
  find("health-list").replaceChildren(...pairs.map(([name, value]) =>
    element("div", { class: "card" }, element("dt", {}, name), element("dd", {}, String(value)))));
}

/** Seconds in the two largest units that are not 0: "2 h 5 min". */
function spoken(seconds) {
  let rest = Math.floor(seconds);
  const parts = [];
  for (const [unit, size] of UNITS) {
    if (rest >= size) parts.push(`${Math.floor(rest / size)} ${unit}`);
    rest %= size;
  }
  return parts.slice(0, 2).join(" ") || "0 s";
}
