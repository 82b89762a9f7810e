// Elements without markup: every text is a text node, so no name or caption can bring elements of its own.

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.className = value;
    else if (key === "value" || key === "checked" || key === "disabled" || key === "hidden") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function svg(tag, props = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(props)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

let labelled = 0;

// A control under its label; note: a line below it.
export function field(label, control, note = "") {
  control.id ||= `field-${++labelled}`;
  const parts = [h("label", { for: control.id }, label), control];
  if (note) {
    const about = h("small", { id: `${control.id}-note` }, note);
    control.setAttribute("aria-describedby", about.id);
    parts.push(about);
  }
  return h("div", { class: "field" }, parts);
}

// A slider with its figure beside it.
export function slider(label, value, changed = () => {}) {
  const output = h("output", {}, Number(value).toFixed(2));
  const input = h("input", {
    type: "range", min: 0, max: 2, step: 0.05, value,
    oninput: () => { output.value = Number(input.value).toFixed(2); changed(); },
  });
  const row = field(label, input);
  output.setAttribute("for", input.id);
  row.querySelector("label").append(" ", output);
  return { row, get value() { return Number(input.value); }, set value(to) { input.value = to; output.value = Number(to).toFixed(2); } };
}

export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function badge(text, kind = "") {
  return h("span", { class: `badge ${kind}` }, text);
}

// A window over the page with a heading and a button that closes it; Escape does, too.
export function dialog(title, ...content) {
  const close = h("button", { class: "quiet", onclick: () => box.close() }, "Close");
  const heading = h("h2", { id: `dialog-${++labelled}` }, title);
  const box = h("dialog", { "aria-labelledby": heading.id }, h("div", { class: "dialog-head" }, heading, close), content);
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  box.showModal();
  return box;
}

const messages = () => document.getElementById("messages");

export function say(text, bad = false) {
  const line = h("p", { class: bad ? "message bad" : "message" }, text,
    h("button", { class: "quiet", "aria-label": "Dismiss", onclick: () => line.remove() }, "×"));
  messages().append(line);
  while (messages().children.length > 4) messages().firstChild.remove();
  setTimeout(() => line.remove(), bad ? 20000 : 6000);
}

// Run something for a button: it cannot be pressed again meanwhile, and an error is said.
export async function busy(button, work) {
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  try { return await work(); } catch (error) { say(error.message, true); } finally {
    button.disabled = false;
    button.removeAttribute("aria-busy");
  }
}

export async function copy(text) {
  try { await navigator.clipboard.writeText(text); say("Copied."); } catch { say("The browser does not allow copying: mark the text and copy it.", true); }
}
