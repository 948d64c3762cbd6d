/** The page of the server: its views and keys. Each view has a module with `show` and `start`. */

import { keepKey, key, onRefused, takeKeys } from "./api.js";
import * as ask from "./ask.js";
import { attempt, find, notify } from "./dom.js";
import * as edits from "./edits.js";
import * as health from "./health.js";
import * as routing from "./routing.js";

const VIEWS = { ask, edits, routing, health };
const EVERY = { routing: 5000, health: 2000 }; // ms between two readings
const tabs = [...document.querySelectorAll("[role=tab]")];
let current = "ask";
let timer = 0;

/** Reads a view, and again while it is open; an error ends that. */
async function refresh() {
  clearTimeout(timer);
  const name = current;
  const went = document.hidden || (await attempt(VIEWS[name].show));
  if (went && name === current && EVERY[name]) timer = setTimeout(refresh, EVERY[name]);
}

function select(name) {
  current = name;
  for (const tab of tabs) {
    const isCurrent = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", String(isCurrent));
    find(tab.getAttribute("aria-controls")).hidden = !isCurrent;
  }
  notify("");
  refresh();
}

/** Takes keys and view of an address like `#edits&admin=KEY`; the keys leave the address bar. */
function takeAddress() {
  const names = location.hash.slice(1).split("&");
  const view = names.find((name) => Object.hasOwn(VIEWS, name)) ?? "ask";
  if (takeKeys(location.hash)) remember(view);
  select(view);
}

const remember = (view) =>
  history.replaceState(null, "", `${location.pathname}${location.search}#${view}`);

function openKeys(message = "") {
  find("keys-line").textContent = message;
  if (find("keys").open) return;
  for (const name of ["admin", "api"]) find(`key-${name}`).value = key(name);
  find("keys").showModal();
}

function saveKeys(event) {
  event.preventDefault();
  for (const name of ["admin", "api"]) keepKey(name, find(`key-${name}`).value.trim());
  find("keys").close();
  notify("");
  refresh();
}

function moveTab(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = tabs[(tabs.indexOf(event.currentTarget) + step + tabs.length) % tabs.length];
  next.focus();
  next.click();
}

for (const tab of tabs) {
  tab.addEventListener("keydown", moveTab);
  tab.addEventListener("click", () => {
    remember(tab.getAttribute("aria-controls"));
    select(tab.getAttribute("aria-controls"));
  });
}
for (const close of document.querySelectorAll("dialog .close")) {
  close.addEventListener("click", () => close.closest("dialog").close());
}
find("open-keys").addEventListener("click", () => openKeys());
find("keys-form").addEventListener("submit", saveKeys);
find("notice-close").addEventListener("click", () => notify(""));
window.addEventListener("hashchange", takeAddress);
onRefused(openKeys);
ask.start();
edits.start();
routing.start(refresh);
takeAddress();
