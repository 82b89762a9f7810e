// Any content in any style of one frame.

import { cardPicture, cards, get, poll, post } from "./api.js";
import { busy, field, fill, h, say, slider } from "./dom.js";
import { Kept, Picture } from "./picture.js";

const WAYS = {
  halves: "Halves joined", make: "Made", sum: "Sum", ties: "TIES", dare: "DARE", svd: "SVD", np: "NP-LoRA", alone: "As it is",
};
const MERGES = ["sum", "ties", "dare", "svd", "np"];
// What an adapter's card says of a half that it was made of, until that half's own card is there.
const parentOf = (uri, kind, card) => ({ uri, kind, name: uri.split("/")[1], concept: card[kind], frame: card.frame, aliases: [] });
const article = (word) => (/^[aeiou]/i.test(word) ? "an" : "a");
const HISTORY = 8;
const MOST_TILES = 100;

export class Compose {
  constructor(root, settings) {
    Object.assign(this, { root, settings, cards: [], content: null, style: null, ownPrompt: true, drawings: [], pair: null, ofPair: [], asks: 0 });
    this.tiles = { content: h("div", { class: "tiles", role: "radiogroup", "aria-label": "Content" }), style: h("div", { class: "tiles", role: "radiogroup", "aria-label": "Style" }) };
    this.versions = { content: h("select", { onchange: () => this.version("content") }), style: h("select", { onchange: () => this.version("style") }) };
    const soon = () => { clearTimeout(this.timer); this.timer = setTimeout(() => this.load().catch((error) => say(error.message, true)), 250); };
    this.words = Object.fromEntries(["content", "style"].map((kind) => [kind, h("input", { type: "search", maxlength: 200, placeholder: "part of its name", oninput: soon })]));
    this.ways = h("fieldset", { class: "ways" });
    this.contentStrength = slider("Content strength", 1);
    this.styleStrength = slider("Style strength", 1);
    this.prompt = h("textarea", { rows: 2, maxlength: 1000, oninput: () => { this.ownPrompt = false; },
      onkeydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.button.click(); } });
    this.negative = h("input", { type: "text", maxlength: 1000 });
    this.seed = h("input", { type: "number", min: 0, max: 2147483647, value: settings.seed });
    this.images = h("input", { type: "number", min: 1, max: 16, value: 2 });
    this.steps = h("input", { type: "number", min: 1, max: 100, value: settings.steps });
    this.guidance = h("input", { type: "number", min: 0, max: 30, step: 0.1, value: settings.guidance_scale });
    this.button = h("button", { class: "main", disabled: true, onclick: () => busy(this.button, () => this.draw()) }, "Draw");
    this.gridButton = h("button", { disabled: true, onclick: () => busy(this.gridButton, () => this.draw(true)) }, "Strength grid");
    this.gridSize = h("select", { "aria-label": "Size of the grid" }, h("option", { value: "0.6 1 1.4" }, "3 × 3"),
      h("option", { value: "0.4 0.7 1 1.3 1.6" }, "5 × 5"));
    this.results = h("div", { class: "results" });
    this.kept = new Kept();
    const again = h("button", { class: "quiet", onclick: () => { this.ownPrompt = true; this.writePrompt(); } }, "The adapters' own words");
    const dice = h("button", { class: "quiet", title: "Another seed", onclick: () => { this.seed.value = Math.floor(Math.random() * 1e6); } }, "Another");
    this.form = h("div", { class: "controls" },
      h("h2", {}, "Content"), field("Find a content", this.words.content), this.tiles.content, field("Version of the content", this.versions.content),
      h("h2", {}, "Style"), field("Find a style", this.words.style), this.tiles.style, field("Version of the style", this.versions.style),
      this.ways, h("div", { class: "two" }, this.contentStrength.row, this.styleStrength.row),
      field("Prompt", this.prompt), again,
      settings.negative_prompts ? field("Not in the picture", this.negative) : null,
      h("div", { class: "four" }, h("div", {}, field("Seed", this.seed), dice), field("Pictures", this.images), field("Steps", this.steps), field("Guidance", this.guidance)),
      h("div", { class: "actions sticky" }, this.button, this.gridButton, this.gridSize));
    this.empty = h("p", { class: "empty" });
    root.append(h("div", { class: "split" }, this.form, h("div", {}, this.empty, this.results, this.kept.root)));
  }

  shown() { this.load().catch((error) => say(error.message, true)); this.kept.load().catch(() => {}); }

  async load() {
    const ask = ++this.asks;
    const kinds = ["content", "style"];
    const told = await Promise.all(kinds.map((kind) => cards({ kind, ours: true, words: this.words[kind].value, limit: MOST_TILES })));
    if (ask !== this.asks) return; // the words have changed meanwhile
    this.cards = told.flatMap((page) => page.cards);
    kinds.forEach((kind, index) => {
      const more = Boolean(told[index].after) || Boolean(this.words[kind].value);
      this.words[kind].closest(".field").hidden = !more;
      this[kind] = this.cards.find((card) => card.uri === this[kind]?.uri) ?? this[kind] ?? this.newest(kind)[0] ?? null;
    });
    this.pair = null;
    this.update();
  }

  // What there is of the chosen two: all of their versions, and what was made of both.
  async look() {
    const { content, style } = this, pair = `${content?.uri} ${style?.uri}`;
    if (!content || !style || pair === this.pair) return;
    this.pair = pair;
    const halves = [content, style].map((card) => cards({ kind: card.kind, words: card.name, ours: true, older: true, limit: MOST_TILES }));
    const made = cards({ kind: "make", content: content.concept, style: style.concept, ours: true, older: true });
    const told = await Promise.all([...halves, made]);
    if (pair !== this.pair) return; // others were chosen meanwhile
    this.ofPair = told.flatMap((page) => page.cards);
    for (const kind of ["content", "style"]) {
      const versions = this.ofPair.filter((card) => card.kind === kind && card.name === this[kind].name);
      this[kind] = versions.find((card) => card.uri === this[kind].uri) ?? versions[0] ?? this[kind];
    }
    this.pair = `${this.content.uri} ${this.style.uri}`;
    this.updateVersions();
    this.updateWays();
    this.writePrompt();
  }

  // The champion, or else the newest version, of each name.
  newest(kind) {
    const names = new Map();
    for (const card of this.cards.filter((each) => each.kind === kind)) {
      const known = names.get(card.name);
      if (!known || (card.aliases.includes("champion") && !known.aliases.includes("champion"))) names.set(card.name, card);
    }
    return [...names.values()];
  }

  // From the library: a half, or an adapter that was made of two.
  choose(card) {
    if (card.kind === "content" || card.kind === "style") this[card.kind] = card;
    for (const uri of card.parents) {
      const kind = ["content", "style"].find((each) => uri.includes(`-${each}-`));
      if (kind) this[kind] = this.cards.find((each) => each.uri === uri) ?? parentOf(uri, kind, card);
    }
    this.wanted = card.kind === "make" ? ["make"] : null;
    this.ownPrompt = true;
  }

  update() {
    for (const kind of ["content", "style"]) {
      const all = this.newest(kind);
      fill(this.tiles[kind], all.length ? all.map((card) => this.tile(kind, card)) : h("p", { class: "empty" }, `No ${kind} of this base model is registered.`));
    }
    this.updateVersions();
    this.empty.textContent = this.content && this.style ? "" : "Train a content and a style first: the library has none for this base model.";
    this.empty.hidden = Boolean(this.content && this.style);
    this.button.disabled = this.gridButton.disabled = !(this.content && this.style);
    this.updateWays();
    this.writePrompt();
    this.look().catch((error) => say(error.message, true));
  }

  updateVersions() {
    for (const kind of ["content", "style"]) {
      const versions = this.ofPair.filter((card) => card.kind === kind && card.name === this[kind]?.name);
      fill(this.versions[kind], versions.map((card) => h("option", { value: card.uri }, `${card.version} ${card.aliases.join(", ")}`)));
      this.versions[kind].value = this[kind]?.uri ?? "";
      this.versions[kind].closest(".field").hidden = versions.length < 2;
    }
  }

  tile(kind, card) {
    const chosen = this[kind]?.name === card.name;
    const other = kind === "style" && this.content && card.frame !== this.content.frame;
    return h("button", { class: `tile${other ? " other" : ""}`, role: "radio", "aria-checked": String(chosen), tabindex: chosen ? 0 : -1,
      title: other ? `${card.concept}: of another frame, so merges alone` : card.concept,
      onclick: () => this.pick(kind, card), onkeydown: (event) => this.arrows(kind, event) },
    h("img", { src: cardPicture(card), alt: "", width: 64, height: 64, onerror: (event) => { event.target.hidden = true; } }), h("span", {}, card.concept));
  }

  pick(kind, card, focus = true) {
    this[kind] = card;
    this.ownPrompt = true;
    this.update();
    if (focus) this.tiles[kind].querySelector('[aria-checked="true"]')?.focus();
    if (!this.content || !this.style) return;
    if (this.auto && !this.auto.ended) post(`/api/drawings/${this.auto.id}/stop`).catch(() => {});
    busy(this.button, async () => { this.auto = await this.draw(); });
  }

  arrows(kind, event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...this.tiles[kind].children];
    all[(all.indexOf(event.currentTarget) + step + all.length) % all.length].focus();
  }

  version(kind) {
    this[kind] = this.ofPair.find((card) => card.uri === this.versions[kind].value);
    this.update();
  }

  made() {
    const pair = [this.content?.uri, this.style?.uri];
    const made = this.ofPair.filter((card) => card.kind === "make" && card.content === this.content?.concept && card.style === this.style?.concept);
    return made.find((card) => pair.every((uri) => card.parents.includes(uri))) ?? made[0];
  }

  updateWays() {
    const made = this.made(), fits = this.content?.frame === this.style?.frame;
    const before = this.wanted ?? [...this.ways.querySelectorAll("input:checked")].map((box) => box.value);
    this.wanted = null;
    const boxes = ["halves", "make", ...MERGES].map((way) => {
      const off = (way === "halves" && !fits) || (way === "make" && !made);
      const box = h("input", { type: "checkbox", value: way, id: `way-${way}`, disabled: off, checked: before.includes(way) && !off });
      const why = off ? (way === "make" ? "this pair was not trained together" : "the two are of different frames") : "";
      return h("span", { class: "check", title: why }, box, h("label", { for: box.id }, WAYS[way]));
    });
    fill(this.ways, h("legend", {}, "Method; several are drawn side by side"), boxes);
    if (!this.ways.querySelector("input:checked")) {
      const first = this.ways.querySelector("input:not(:disabled)");
      if (first) first.checked = true;
    }
  }

  writePrompt() {
    if (!this.ownPrompt || !this.content?.token || !this.style?.token) return;
    this.prompt.value = `${article(this.content.token)} ${this.content.token} ${this.content.noun} in ${this.style.token} style`.replace(/\s+/g, " ");
  }

  asked(grid) {
    const ways = [...this.ways.querySelectorAll("input:checked")].map((box) => box.value);
    const strengths = grid ? this.gridSize.value.split(" ").map(Number) : [];
    const number = (input) => (input.value === "" ? undefined : Number(input.value));
    return {
      content: this.content.uri, style: this.style.uri, adapter: this.made()?.uri, ways: grid ? ways.slice(0, 1) : ways,
      prompt: this.prompt.value, negative_prompt: this.negative.value, seed: number(this.seed), images: grid ? 1 : number(this.images),
      steps: number(this.steps), guidance_scale: number(this.guidance), content_strength: this.contentStrength.value,
      style_strength: this.styleStrength.value, grid: strengths,
    };
  }

  async draw(grid = false) {
    const asked = this.asked(grid);
    const drawing = await post("/api/drawings", asked);
    const shown = new Shown(asked, drawing, `${this.content.concept} in ${this.style.concept}`, (picture) => this.reuse(picture, asked), () => this.kept.load());
    this.results.prepend(shown.root);
    while (this.results.children.length > HISTORY) this.results.lastChild.remove();
    return shown;
  }

  reuse(picture, asked) {
    this.contentStrength.value = picture.content;
    this.styleStrength.value = picture.style;
    this.seed.value = picture.seed;
    this.prompt.value = asked.prompt;
    this.ownPrompt = false;
    for (const box of this.ways.querySelectorAll("input")) box.checked = box.value === picture.way && !box.disabled;
    say("Strengths, seed, prompt and method are set.");
  }
}

// A drawing: its pictures as they come, and the chosen one with what can be done with it.
class Shown {
  constructor(asked, drawing, title, reuse, kept) {
    Object.assign(this, { asked, reuse, kept, id: drawing.id, total: drawing.total, pictures: [], chosen: null });
    this.progress = h("progress", { max: drawing.total, value: 0, "aria-label": "Pictures drawn" });
    this.state = h("span", { role: "status" }, "waiting");
    this.stop = h("button", { class: "quiet", onclick: () => busy(this.stop, () => post(`/api/drawings/${this.id}/stop`)) }, "Stop");
    this.head = h("div", { class: "drawing-head" }, h("h3", {}, title), this.progress, this.state, this.stop);
    this.place = h("div", { class: "drawn" });
    this.detail = h("div", { class: "detail" });
    this.root = h("article", { class: "drawing" }, this.head, h("p", { class: "said" }, asked.prompt), this.place, this.detail);
    this.lay();
    poll(() => this.update(), 400);
  }

  // Places for all pictures, so that nothing moves as they come.
  lay() {
    const { grid, ways, images } = this.asked;
    const slot = (label) => h("button", { class: "slot", disabled: true, "aria-label": label });
    this.slots = [];
    const add = (label) => { const made = slot(label); this.slots.push(made); return made; };
    if (grid.length) {
      const head = h("tr", {}, h("td", {}), grid.map((value) => h("th", { scope: "col" }, `content ${value}`)));
      const rows = grid.map((style) => h("tr", {}, h("th", { scope: "row" }, `style ${style}`), grid.map((content) => h("td", {}, add(`content ${content}, style ${style}`)))));
      fill(this.place, h("div", { class: "scroll" }, h("table", { class: "strengths" }, h("thead", {}, head), h("tbody", {}, rows))));
    } else {
      fill(this.place, ways.map((way) => h("div", { class: "way" }, h("h4", {}, WAYS[way]),
        h("div", { class: "row" }, Array.from({ length: images }, (_, index) => add(`${WAYS[way]}, seed ${this.asked.seed + index}`))))));
    }
  }

  async update() {
    let now;
    try { now = await get(`/api/drawings/${this.id}`); } catch (error) {
      if (!error.message.includes("not kept")) throw error;
      now = { state: "failed", message: error.message, pictures: this.pictures, total: this.total };
    }
    for (const picture of now.pictures.slice(this.pictures.length)) this.add(picture);
    this.progress.value = this.pictures.length;
    const ended = ["done", "stopped", "failed"].includes(now.state);
    const said = { waiting: "waits for its turn", loading: "the model is loaded…", drawing: `${this.pictures.length} of ${now.total}`, done: "", stopped: "stopped" };
    this.state.textContent = now.state === "failed" ? now.message : said[now.state];
    this.state.className = now.state === "failed" ? "bad" : "";
    if (ended) {
      this.ended = true;
      this.progress.hidden = this.stop.hidden = true;
      for (const slot of this.slots.slice(this.pictures.length)) slot.classList.add("missing");
      if (!this.chosen && this.pictures.length) this.select(this.pictures[this.pictures.length === 9 ? 4 : 0], false);
    }
    return ended;
  }

  add(picture) {
    const slot = this.slots[this.pictures.length];
    this.pictures.push(picture);
    if (!slot) return;
    slot.disabled = false;
    slot.addEventListener("click", () => this.select(picture, true));
    fill(slot, h("img", { src: `/api/pictures/${picture.id}.png`, alt: "" }));
  }

  select(picture, scroll) {
    this.chosen = picture;
    this.slots.forEach((slot, index) => slot.setAttribute("aria-pressed", String(this.pictures[index] === picture)));
    const shown = new Picture(picture, this.asked, WAYS[picture.way], () => this.reuse(picture), this.kept);
    fill(this.detail, shown.root);
    if (scroll) shown.root.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }
}
