// Pictures of all adapters in the registry.

import { cardPicture, cards, get, part, poll, post } from "./api.js";
import { badge, busy, dialog, field, fill, h, say } from "./dom.js";

const KINDS = { content: "Content", style: "Style", make: "Made", joined: "Joined", merged: "Merged" };

export class Library {
  constructor(root, settings, compose, train) {
    this.settings = settings;
    this.compose = compose;
    this.train = train;
    Object.assign(this, { cards: [], chosen: [], after: null, asks: 0, frames: new Set() });
    const again = () => this.load().catch((error) => say(error.message, true));
    const soon = () => { clearTimeout(this.timer); this.timer = setTimeout(again, 250); };
    this.words = h("input", { type: "search", placeholder: "name, base, licence, alias", maxlength: 200, oninput: soon });
    this.kind = h("select", { onchange: again }, h("option", { value: "" }, "all kinds"),
      Object.entries(KINDS).map(([value, text]) => h("option", { value }, text)));
    this.known = h("datalist", { id: "known-frames" });
    this.frame = h("input", { type: "search", placeholder: "its beginning", maxlength: 64, list: "known-frames", oninput: soon });
    this.older = h("input", { type: "checkbox", id: "older", onchange: again });
    this.compare = h("button", { disabled: true, onclick: () => busy(this.compare, () => this.difference()) }, "Compare two");
    this.count = h("p", { class: "count", role: "status" });
    this.list = h("ul", { class: "cards" });
    this.more = h("button", { hidden: true, onclick: () => busy(this.more, () => this.load(true)) }, "Show more");
    root.append(h("div", { class: "bar" }, field("Filter", this.words), field("Kind", this.kind), field("Frame", this.frame), this.known,
      h("div", { class: "field check" }, this.older, h("label", { for: "older" }, "older versions, too")), this.compare,
      h("button", { class: "quiet", onclick: (event) => busy(event.target, () => this.load()) }, "Reload")), this.count, this.list,
    h("div", { class: "actions" }, this.more));
  }

  shown() { this.load().catch((error) => say(error.message, true)); }

  // The first page of what the filters say, or the next one.
  async load(further = false) {
    const ask = ++this.asks;
    const told = await cards({ words: this.words.value, kind: this.kind.value, frame: this.frame.value, older: this.older.checked, after: further ? this.after : "" });
    if (ask !== this.asks) return; // the filters have changed meanwhile
    const known = new Set(further ? this.cards.map((card) => card.uri) : []);
    const fresh = told.cards.filter((card) => !known.has(card.uri)); // a registration moves what follows
    this.cards = further ? [...this.cards, ...fresh] : told.cards;
    this.after = told.after;
    for (const card of fresh) if (card.frame !== "none") this.frames.add(card.frame);
    fill(this.known, [...this.frames].map((frame) => h("option", { value: frame })));
    this.draw(further ? fresh : null);
  }

  // fresh: cards to be added to those that are there.
  draw(fresh = null) {
    this.chosen = this.chosen.filter((uri) => this.cards.some((card) => card.uri === uri));
    this.choose();
    this.more.hidden = !this.after;
    this.count.textContent = this.cards.length ? `${this.cards.length} versions${this.after ? ", and more" : ""}` : "";
    if (fresh) {
      this.list.append(...fresh.map((card) => this.card(card)));
    } else if (this.cards.length) {
      fill(this.list, this.cards.map((card) => this.card(card)));
    } else if (this.words.value || this.kind.value || this.frame.value) {
      fill(this.list, h("li", { class: "empty" }, "No adapter is like that. Change the filter."));
    } else {
      fill(this.list, h("li", { class: "empty" }, h("p", {}, "The registry has no adapters yet. Train a content and a style: the three that a run registers appear here."),
        h("button", { class: "main", onclick: this.train }, "Train")));
    }
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
