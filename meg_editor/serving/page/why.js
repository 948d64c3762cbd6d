/** The routing of a prompt, explained. */

import { drawn, element, fact, table } from "./dom.js";

const shown = (score) => score?.toFixed(3) ?? "–"; // null: no edit, so no threshold

/** Elements which explain an answer of `/v1/route`. */
export function explained(route) {
  return [verdict(route), scoreBar(route.score, route.threshold), spans(route), candidates(route)]
    .filter((part) => part !== null);
}

function verdict(route) {
  const by = route.decided_by === "verifier" ? "The verifier's score" : "The similarity";
  const read = { dialogue: ", with the turns before,", system: ", with the system text," };
  const how = `${by}${read[route.read_with] ?? ""}`;
  const sign = route.is_edit ? "reaches" : "is below";
  const score = `${how} ${shown(route.score)} ${sign} the threshold ${shown(route.threshold)}.`;
  if (route.is_edit) return element("p", {}, "Answered with an edit: ", fact(route.edit), ". ", score);
  if (!route.edit && !route.candidates.length) {
    return element("p", {}, "No edit is taken. None resembles this prompt.");
  }
  return element("p", {}, "No edit is taken. ", score);
}

/** A bar from 0 to 1 with a mark at the threshold. */
function scoreBar(score, threshold) {
  if (score === null || threshold === null) return null;
  const percent = (value) => `${(Math.min(Math.max(value, 0), 1) * 100).toFixed(2)}%`;
  const mark = percent(threshold);
  const anchor = threshold < 0.2 ? "start" : threshold > 0.8 ? "end" : "middle";
  const label = `Score ${shown(score)}, threshold ${shown(threshold)}`;
  const reached = score >= threshold ? "edited" : "alone";
  return drawn("svg", { class: "score", role: "img", "aria-label": label, width: "100%", height: 40 },
    drawn("rect", { class: "track", x: 0, y: 5, width: "100%", height: 10, rx: 5 }),
    drawn("rect", { class: reached, x: 0, y: 5, width: percent(score), height: 10, rx: 5 }),
    drawn("line", { class: "threshold", x1: mark, x2: mark, y1: 0, y2: 20 }),
    drawn("text", { x: mark, y: 35, "text-anchor": anchor }, `threshold ${shown(threshold)}`));
}

function spans(route) {
  if (!route.spans.length) return null;
  const items = route.spans.map((span) => {
    const isQuestion = span === route.question;
    return element("li", isQuestion ? { class: "chosen" } : {}, element("bdi", {}, span),
      isQuestion ? element("span", { class: "hint" }, " understood as the question") : null);
  });
  return element("div", {}, element("h3", {}, "Spans read"),
    element("ul", { class: "spans" }, ...items));
}

function candidates(route) {
  if (!route.candidates.length) return null;
  const isVerified = route.decided_by === "verifier";
  const rows = route.candidates.map((candidate) => {
    const named = candidate.named === false ? "; its subject is not named" : "";
    const read = element("bdi", {}, candidate.span);
    const span = element("div", { class: "hint" }, "read from ", read, named);
    const cells = [element("div", {}, fact(candidate.edit), span), candidate.similarity];
    return isVerified ? [...cells, candidate.verified] : cells;
  });
  const heads = ["Edit", "Similarity", ...(isVerified ? ["Verified"] : [])];
  const made = table("Candidates", heads, rows);
  for (const cell of made.querySelectorAll("td.number")) {
    cell.textContent = shown(Number(cell.textContent));
  }
  return made;
}
