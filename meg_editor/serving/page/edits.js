/** The view Edits: the list, its search, and what can be done with an edit. */

import { call } from "./api.js";
import { atWork, attempt, counted, element, fact, find, moment, notify, table } from "./dom.js";
import { showHistory, summary } from "./history.js";

const PAGE = 50; // edits a call
const PAUSE = 250; // ms without a key before it searches
let total = 0;
let reading = null; // aborts a search that a later one overtakes
let chosen = null; // the edit of the open dialog

/** Reads the list from its start. */
export async function show() {
  await read();
  await showHistory();
}

async function read(after = "") {
  reading?.abort();
  reading = new AbortController();
  const fields = new URLSearchParams({ limit: PAGE });
  const search = find("search").value.trim();
  if (search) fields.set("search", search);
  if (after) fields.set("after", after);
  const { signal } = reading;
  const page = await call(`v1/edits?${fields}`, { admin: true, signal });
  const list = find("edit-list");
  if (!after) list.replaceChildren();
  for (const edit of page.data) {
    if (!rowOf(edit.id)) list.append(row(edit));
    rowOf(edit.id).dataset.read = ""; // in the server's order
  }
  find("more").hidden = !page.has_more;
  find("more").dataset.after = page.data.at(-1)?.id ?? "";
  count(page.total);
}

function count(edits) {
  total = edits;
  const what = find("search").value.trim() ? `${counted(total, "edit")} found` : counted(total, "edit");
  find("edits-title").textContent = what;
  if (find("edit-list").children.length || total) return;
  find("edit-list").append(element("li", { class: "hint none" }, "None."));
}

const rowOf = (id) => find(`edit-${id}`);

function row(edit) {
  const details = [edit.subject && `subject ${edit.subject}`, edit.state, `by ${edit.by}`];
  const button = (name, action) =>
    element("button", {
      type: "button", class: "quiet", "aria-label": `${name}: ${edit.prompt}`, click: action,
    }, name);
  return element("li", { id: `edit-${edit.id}`, class: "row" },
    element("div", { class: "what" }, fact(edit),
      element("p", { class: "hint" }, element("bdi", {}, details.filter(Boolean).join(" · ")),
        edit.when ? " · " : null, moment(edit.when))),
    element("div", { class: "actions" },
      button("Change", () => openDialog("change", edit)),
      button("Check", (event) => check(edit, event.currentTarget)),
      button("Remove", () => openDialog("remove", edit))),
    element("div", { class: "checked", role: "status" }));
}

function openDialog(name, edit) {
  chosen = edit;
  find("change-prompt").textContent = edit.prompt;
  find("change-target").value = edit.target_new;
  find("remove-fact").replaceChildren(fact(edit));
  if (find(`${name}-form`).getAttribute("aria-busy") !== "true") {
    find(`${name}-line`).replaceChildren();
  }
  find(name).showModal();
}

async function check(edit, button) {
  const place = button.closest("li").querySelector(".checked");
  place.replaceChildren(element("p", { class: "hint" }, "Asking …"));
  const went = await attempt(async () => {
    const result = await call(`v1/edits/${encodeURIComponent(edit.id)}/check`, { admin: true });
    const rows = result.answers.map((answer) => [
      element("div", {}, answer.form, element("div", { class: "hint" },
        element("bdi", { class: "text" }, answer.prompt))),
      element("bdi", { class: "text" }, answer.answer),
      element("span", { class: answer.right ? "right" : "wrong" }, answer.right ? "yes" : "no"),
    ]);
    const caption = `${result.right} of ${result.asked} right`;
    place.replaceChildren(table(caption, ["Form", "Answer", "Right"], rows));
  });
  if (!went) place.replaceChildren();
}

/** Takes edits out of the list and puts others in their place; gives the row to go on with. */
function place(added, removed) {
  const list = find("edit-list");
  list.querySelector(".none")?.remove();
  const gone = removed.map((edit) => rowOf(edit.id)).filter(Boolean);
  const next = gone.at(-1)?.nextElementSibling ?? gone[0]?.previousElementSibling;
  const made = added.filter((edit) => !rowOf(edit.id)).map(row);
  if (gone.length) gone[0].before(...made);
  else list.prepend(...made);
  for (const one of gone) one.remove();
  if (removed.some((edit) => edit.id === find("more").dataset.after)) {
    // The server counts on from an edit in force: the last one that is left of its own order.
    const last = [...list.querySelectorAll("[data-read]")].at(-1);
    find("more").dataset.after = last?.id.replace("edit-", "") ?? "";
  }
  count(total + added.length - removed.length);
  return made[0] ?? next ?? null;
}

/** Shows a change in the list, and says what it did. */
function apply(change) {
  const missed = change.not_learned?.length > 0;
  notify(`Change ${change.number}: ${summary(change)}.`, missed ? "error" : "information");
  attempt(showHistory);
  return place(change.added, change.removed);
}

async function add(event) {
  event.preventDefault();
  await atWork(find("add-form"), find("add-line"), "Learning …", async () => {
    const [prompt, target_new] = [find("add-prompt").value, find("add-target").value];
    const edit = { prompt, target_new };
    const subject = find("add-subject").value.trim();
    if (subject) edit.subject = subject;
    const body = { edits: [edit], on_conflict: find("add-conflict").value };
    try {
      apply(await call("v1/edits", { method: "POST", body, admin: true }));
    } catch (error) {
      if (error.status === 409) find("add-conflict").focus();
      throw error;
    }
    find("add-form").reset();
    find("add-prompt").focus();
  });
}

/** Changes the chosen edit by a call with `options`; its dialog closes once that is done. */
async function alter(event, name, what, options) {
  event.preventDefault();
  const { id } = chosen;
  await atWork(find(`${name}-form`), find(`${name}-line`), what, async () => {
    const path = `v1/edits/${encodeURIComponent(id)}`;
    const change = await call(path, { admin: true, ...options });
    if (chosen.id === id) find(name).close(); // else another edit's dialog is open by now
    const place = apply(change);
    (place?.querySelector("button") ?? find("edits-title")).focus();
  });
}

async function undo() {
  notify("");
  await attempt(async () => {
    const options = { method: "POST", body: { steps: 1 }, admin: true };
    const { data } = await call("v1/edits/undo", options); // the changes taken back
    for (const change of data) place(change.removed, change.added);
    const taken = data.map((change) => `change ${change.number} (${summary(change)})`);
    notify(`Taken back: ${taken.join(", ")}.`);
    await showHistory();
  });
}

/** Listens to the view. */
export function start() {
  let pause = 0;
  const search = () => attempt(read);
  find("search").addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(search, PAUSE);
  });
  find("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(pause);
    search();
  });
  find("more").addEventListener("click", async () => {
    const last = find("edit-list").lastElementChild;
    await attempt(() => read(find("more").dataset.after));
    last?.nextElementSibling?.querySelector("button").focus();
  });
  find("add-form").addEventListener("submit", add);
  find("change-form").addEventListener("submit", (event) =>
    alter(event, "change", "Learning …", {
      method: "PATCH", body: { target_new: find("change-target").value },
    }));
  find("remove-form").addEventListener("submit", (event) =>
    alter(event, "remove", "Removing …", { method: "DELETE" }));
  find("undo").addEventListener("click", undo);
  find("history").addEventListener("toggle", () => attempt(showHistory));
}
