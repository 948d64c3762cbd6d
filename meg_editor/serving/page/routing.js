/** The view Routing: scores of the latest prompts. */

import { call } from "./api.js";
import { counted, drawn, element, find, table } from "./dom.js";

const HEIGHT = 260;
const MARGIN = { top: 24, right: 12, bottom: 40, left: 44 };
let latest = null;

/** Reads and draws the histogram. */
export async function show() {
  latest = await call("v1/routing", { admin: true });
  draw();
}

function draw() {
  if (!latest) return;
  const { bins, count, threshold } = latest;
  const sum = (name) => bins.reduce((total, bin) => total + bin[name], 0);
  const [edited, alone] = [sum("edited"), sum("left_alone")];
  find("routing-summary").textContent = count === 0
    ? "No prompt has come yet."
    : `${counted(count, "prompt")}: ${edited} answered with an edit, ${alone} left alone; ` +
      `threshold ${threshold?.toFixed(3) ?? "none"}.`;
  find("histogram").replaceChildren(...(count ? [histogram(latest)] : []));
  const rows = bins.filter((bin) => bin.edited + bin.left_alone > 0).map((bin) =>
    [`${bin.from.toFixed(2)} – ${bin.to.toFixed(2)}`, bin.edited, bin.left_alone]);
  rows.push(["all", edited, alone]);
  find("routing-table").replaceChildren(
    table("Prompts by score", ["Score", "With an edit", "Left alone"], rows));
  find("routing-table").hidden = count === 0;
}

/** An SVG as wide as its place, so that its letters keep their size. */
function histogram({ bins, threshold }) {
  const width = Math.max(find("histogram").clientWidth, 240);
  const [low, high] = [bins[0].from, bins.at(-1).to];
  const top = niceTop(Math.max(...bins.map((bin) => bin.edited + bin.left_alone)));
  const inner = width - MARGIN.left - MARGIN.right;
  const x = (score) =>
    MARGIN.left + ((Math.min(Math.max(score, low), high) - low) / (high - low)) * inner;
  const y = (count) => MARGIN.top + (1 - count / top) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const label = "Histogram of scores; the table below has the counts.";
  const svg = drawn("svg", { role: "img", "aria-label": label, width, height: HEIGHT });
  for (const count of [0, top / 2, top]) {
    svg.append(
      drawn("line", { class: "grid", x1: x(low), x2: x(high), y1: y(count), y2: y(count) }),
      drawn("text", { x: MARGIN.left - 8, y: y(count) + 4, "text-anchor": "end" }, String(count)));
  }
  for (const bin of bins) {
    const all = bin.edited + bin.left_alone;
    svg.append(bar("alone", bin, 0, bin.left_alone), bar("edited", bin, bin.left_alone, all));
  }
  for (let tick = 0; tick <= 4; tick += 1) {
    const score = low + (tick * (high - low)) / 4;
    const anchor = tick === 4 ? "end" : "middle";
    svg.append(
      drawn("text", { x: x(score), y: HEIGHT - 20, "text-anchor": anchor }, score.toFixed(2)));
  }
  svg.append(drawn("text", { x: width / 2, y: HEIGHT - 2, "text-anchor": "middle" }, "score"));
  if (threshold === null) return svg; // no edits
  const mark = x(threshold);
  const anchor = mark > width / 2 ? "end" : "start";
  svg.append(
    drawn("line", { class: "threshold", x1: mark, x2: mark, y1: 8, y2: y(0) }),
    drawn("text", { x: mark + (anchor === "end" ? -6 : 6), y: 16, "text-anchor": anchor },
      `threshold ${threshold.toFixed(2)}`));
  return svg;

  function bar(kind, bin, from, to) {
    const height = to > from ? Math.max(y(from) - y(to), 1) : 0;
    const wide = Math.max(x(bin.to) - x(bin.from) - 2, 1);
    return drawn("rect", {
      class: kind, x: x(bin.from) + 1, y: y(from) - height, width: wide, height,
    });
  }
}

/** The least even 1, 2 or 5 times a power of ten that is no less than `count`. */
function niceTop(count) {
  for (let power = 1; ; power *= 10) {
    for (const step of [2, 4, 10]) if (step * power >= count) return step * power;
  }
}

/** Draws anew where the page gets another width. */
export function start(refresh) {
  find("routing-refresh").addEventListener("click", refresh);
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (Math.round(entry.contentRect.width) === width) return;
    width = Math.round(entry.contentRect.width);
    if (width) draw();
  }).observe(find("histogram"));
}
