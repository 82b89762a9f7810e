// Pictures of all adapters in the registry.

import { cardPicture, get, part, poll, post } from "./api.js";
import { badge, busy, dialog, field, fill, h, say } from "./dom.js";

const KINDS = { content: "Content", style: "Style", make: "Made", joined: "Joined", merged: "Merged" };

export class Library {
  constructor(root, settings, compose, train) {
    this.settings = settings;
    this.compose = compose;
    this.train = train;
    this.cards = [];
    this.chosen = [];
    this.words = h("input", { type: "search", placeholder: "name, base, licence, alias", oninput: () => this.draw() });
    this.kind = h("select", { onchange: () => this.draw() }, h("option", { value: "" }, "all kinds"),
      Object.entries(KINDS).map(([value, text]) => h("option", { value }, text)));
    this.frame = h("select", { onchange: () => this.draw() });
    this.older = h("input", { type: "checkbox", id: "older", onchange: () => this.draw() });
    this.compare = h("button", { disabled: true, onclick: () => busy(this.compare, () => this.difference()) }, "Compare two");
    this.count = h("p", { class: "count", role: "status" });
    this.list = h("ul", { class: "cards" });
    root.append(h("div", { class: "bar" }, field("Filter", this.words), field("Kind", this.kind), field("Frame", this.frame),
      h("div", { class: "field check" }, this.older, h("label", { for: "older" }, "older versions, too")), this.compare,
      h("button", { class: "quiet", onclick: (event) => busy(event.target, () => this.load()) }, "Reload")), this.count, this.list);
  }

  shown() { this.load().catch((error) => say(error.message, true)); }

  async load() {
    this.cards = await get("/api/cards");
    const frames = [...new Set(this.cards.filter((card) => card.frame !== "none").map((card) => card.frame))];
    const before = this.frame.value;
    fill(this.frame, h("option", { value: "" }, "all frames"), frames.map((frame) => h("option", { value: frame }, frame.slice(0, 8))));
    this.frame.value = frames.includes(before) ? before : "";
    this.draw();
  }

  found() {
    const words = this.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const newest = new Map();
    for (const card of this.cards) newest.set(card.name, Math.max(newest.get(card.name) ?? 0, Number(card.version)));
    return this.cards.filter((card) => {
      const text = `${card.name} ${card.concept} ${card.base} ${card.licences} ${card.aliases.join(" ")}`.toLowerCase();
      const current = Number(card.version) === newest.get(card.name) || card.aliases.length > 0;
      return words.every((word) => text.includes(word)) && (!this.kind.value || card.kind === this.kind.value)
        && (!this.frame.value || card.frame === this.frame.value) && (this.older.checked || current);
    });
  }

  draw() {
    const found = this.found();
    this.chosen = this.chosen.filter((uri) => this.cards.some((card) => card.uri === uri));
    this.choose();
    this.count.textContent = this.cards.length ? `${found.length} of ${this.cards.length} versions` : "";
    if (!this.cards.length) {
      fill(this.list, h("li", { class: "empty" }, h("p", {}, "The registry has no adapters yet. Train a content and a style: the three that a run registers appear here."),
        h("button", { class: "main", onclick: this.train }, "Train")));
      return;
    }
    fill(this.list, found.length ? found.map((card) => this.card(card)) : h("li", { class: "empty" }, "No adapter is like that. Change the filter."));
  }

  card(card) {
    const picture = h("div", { class: "picture" });
    this.picture(card, picture);
    const mark = h("input", { type: "checkbox", id: `mark-${card.name}-${card.version}`, checked: this.chosen.includes(card.uri),
      onchange: () => {
        this.chosen = this.chosen.filter((uri) => uri !== card.uri);
        if (mark.checked) this.chosen.push(card.uri);
        if (this.chosen.length > 2) { this.chosen.shift(); this.draw(); }
        this.choose();
      } });
    const facts = [["Version", `${card.version}, ${card.created}`], ["Frame", card.frame === "none" ? "none" : card.frame.slice(0, 8)],
      ["Base", card.base], ["Pictures", card.licences], ["Made of", card.parents.map((uri) => uri.replace("models:/", "")).join(", ")]];
    const champion = card.aliases.includes("champion");
    return h("li", { class: `card ${card.kind}` }, picture,
      h("div", { class: "card-body" },
        h("h3", {}, card.concept),
        h("p", { class: "badges" }, badge(KINDS[card.kind] ?? card.kind, card.kind), card.aliases.map((alias) => badge(alias, alias)),
          card.ours ? null : badge("another base model", "bad")),
        h("dl", {}, facts.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", { title: value }, value)])),
        h("div", { class: "actions" },
          h("button", { disabled: !card.ours, onclick: () => this.compose(card) }, "Compose"),
          h("button", { class: "quiet", onclick: (event) => busy(event.target, () => this.promote(card, champion)) }, champion ? "Roll back" : "Promote"),
          h("span", { class: "check" }, mark, h("label", { for: mark.id }, "compare")))));
  }

  picture(card, place) {
    const image = h("img", { src: cardPicture(card), alt: `${card.concept}, ${KINDS[card.kind] ?? card.kind}`, loading: "lazy", width: 160, height: 160 });
    image.addEventListener("error", () => {
      const draw = h("button", { class: "quiet", disabled: !card.ours, onclick: () => busy(draw, () => this.portray(card, place)) }, "Draw its picture");
      fill(place, h("p", {}, "No picture yet"), draw);
    });
    fill(place, image);
  }

  async portray(card, place) {
    const { steps, guidance_scale, seed } = this.settings;
    const drawing = await post("/api/drawings", { adapter: card.uri, ways: ["alone"], prompt: card.prompt || card.concept, steps, guidance_scale, seed, card: true });
    fill(place, h("p", { role: "status" }, "It is drawn…"));
    poll(async () => {
      const now = await get(`/api/drawings/${drawing.id}`);
      if (now.state === "failed") { say(now.message, true); this.picture(card, place); return true; }
      if (now.state !== "done") return false;
      fill(place, h("img", { src: `/api/pictures/${now.pictures[0].id}.png`, alt: card.concept, width: 160, height: 160 }));
      return true;
    }, 500);
  }

  async promote(card, back) {
    const told = await post(back ? "/api/roll-backs" : "/api/promotions", { name: card.name, version: card.version });
    say(told.message);
    await this.load();
  }

  choose() {
    this.compare.disabled = this.chosen.length !== 2;
    this.compare.title = this.chosen.length === 2 ? "" : "Mark two cards first";
  }

  async difference() {
    const [first, second] = this.chosen.map((uri) => this.cards.find((card) => card.uri === uri));
    const rows = await get(`/api/differences?first=${part(first.uri)}&second=${part(second.uri)}`);
    const head = (card) => h("th", { scope: "col" }, h("img", { src: cardPicture(card), alt: "", width: 128, height: 128 }), `${card.name} ${card.version}`);
    dialog("In what they differ", h("div", { class: "scroll" }, h("table", { class: "compare" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, ""), head(first), head(second))),
      h("tbody", {}, rows.map(([name, one, other]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, one || "–"), h("td", {}, other || "–")))))));
  }
}
