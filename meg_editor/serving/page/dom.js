/** Elements, numbers and messages. Text of the server is only ever put in as text. */

const SVG = "http://www.w3.org/2000/svg";

export const find = (id) => document.getElementById(id);

/** A new HTML element. An attribute that is a function listens to the event of that name. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** A new SVG element. */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A table: heads are texts, cells texts or elements; numbers stand to the right. */
export function table(caption, heads, rows) {
  const isNumber = heads.map((_, column) => rows.every((row) => typeof row[column] === "number"));
  const sided = (column) => (isNumber[column] ? { class: "number" } : {});
  const head = heads.map((text, column) =>
    element("th", { scope: "col", ...sided(column) }, text));
  const body = rows.map((row) =>
    element("tr", {}, ...row.map((cell, column) => element("td", sided(column), cell))));
  return element("table", {}, element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}

/** "prompt → target" of an edit. */
export function fact(edit) {
  return element("span", { class: "fact" }, element("bdi", {}, edit.prompt), " → ",
    element("bdi", { class: "target" }, edit.target_new));
}

/** A moment in the reader's own time; null where it is not known. */
export function moment(when) {
  if (!when) return null;
  const date = new Date(when);
  const text = Number.isNaN(date.getTime()) ? when : date.toLocaleString([], {
    dateStyle: "medium", timeStyle: "short",
  });
  return element("time", { datetime: when, title: when }, text);
}

/** "1 edit", "2 edits". */
export const counted = (count, noun) =>
  `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** A line at the foot of the page: "error" stays until it is closed or the next thing is done. */
export function notify(text, kind = "information") {
  find("notice").hidden = !text;
  find("notice").classList.toggle("error", kind === "error");
  find("notice-text").textContent = text;
  find("notice-live").textContent = text; // a live region is read only if it was there before
}

/** Shows what an action throws; returns whether it went well. An abort is no error. */
export async function attempt(action) {
  try {
    await action();
    return true;
  } catch (error) {
    if (error.name !== "AbortError") notify(error.message, "error");
    return false;
  }
}

/** Runs `work` once at a time for a form: its line counts the seconds, then shows an error. */
export async function atWork(form, line, what, work) {
  if (form.getAttribute("aria-busy") === "true") return;
  notify("");
  const start = performance.now();
  const clock = element("span", { "aria-hidden": "true" });
  const tick = () => {
    clock.textContent = ` ${((performance.now() - start) / 1000).toFixed(1)} s`;
  };
  form.setAttribute("aria-busy", "true");
  line.classList.remove("error");
  line.replaceChildren(what, clock);
  const timer = setInterval(tick, 100);
  try {
    await work();
    line.replaceChildren();
  } catch (error) {
    line.classList.add("error");
    line.textContent = error.message;
  } finally {
    clearInterval(timer);
    form.removeAttribute("aria-busy");
  }
}
