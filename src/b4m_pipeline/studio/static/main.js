import { get } from "./api.js";
import { say } from "./dom.js";
import { Compose } from "./compose.js";
import { Library } from "./library.js";
import { Sheets } from "./sheets.js";
import { Train } from "./train.js";

const tabs = [...document.querySelectorAll('[role="tab"]')];
const panels = {};

export function show(name, focus = false) {
  for (const tab of tabs) {
    const own = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", own);
    tab.tabIndex = own ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !own;
    if (own && focus) tab.focus();
  }
  if (location.hash !== `#${name}`) history.replaceState(null, "", `#${name}`);
  panels[name]?.shown();
}

function byKeys(event) {
  const at = tabs.indexOf(event.target);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  show(tabs[(to + tabs.length) % tabs.length].getAttribute("aria-controls"), true);
}

async function start() {
  for (const tab of tabs) {
    tab.addEventListener("click", () => show(tab.getAttribute("aria-controls")));
    tab.addEventListener("keydown", byKeys);
  }
  let settings;
  try { settings = await get("/api/settings"); } catch (error) {
    say(error.message, true);
    setTimeout(start, 5000);
    return;
  }
  document.getElementById("project").textContent = `${settings.base} on ${settings.device}`;
  const compose = new Compose(document.getElementById("compose"), settings);
  panels.compose = compose;
  panels.library = new Library(document.getElementById("library"), settings, (card) => { compose.choose(card); show("compose", true); }, () => show("train", true));
  panels.train = new Train(document.getElementById("train"), settings, () => show("library", true));
  panels.sheets = new Sheets(document.getElementById("sheets"));
  const asked = location.hash.slice(1);
  show(asked in panels ? asked : "library");
}

addEventListener("hashchange", () => { if (location.hash.slice(1) in panels) show(location.hash.slice(1)); });
start();
