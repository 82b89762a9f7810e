// A picture and what can be done with it; the pictures that were kept.

import { get, part, post, remove } from "./api.js";
import { busy, copy, dialog, field, fill, h, say } from "./dom.js";

export class Picture {
  constructor(picture, asked, way, reuse, kept) {
    Object.assign(this, { picture, asked, kept });
    this.registered = asked.adapter && ["make", "alone"].includes(picture.way) ? asked.adapter : null;
    const facts = [["Method", way], ["Seed", picture.seed], ["Content", picture.content], ["Style", picture.style]];
    this.buttons = h("div", { class: "actions" });
    this.root = h("div", { class: "chosen" },
      h("img", { class: "large", src: `/api/pictures/${picture.id}.png`, alt: `${asked.prompt}, ${way}, seed ${picture.seed}` }),
      h("div", {}, h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])), this.buttons));
    this.reuse = reuse;
    this.lay();
  }

  lay() {
    const button = (text, work, kind = "") => { const made = h("button", { class: kind, onclick: () => busy(made, work) }, text); return made; };
    fill(this.buttons,
      button("Keep", () => this.keep(), "main"),
      this.registered ? button("Promote", () => this.promote()) : button("Register", () => this.register()),
      button("Export…", () => this.export()),
      button("Command and Python", () => this.recipe()),
      button("Use its settings", async () => this.reuse(), "quiet"));
  }

  async keep() {
    const { file } = await post(`/api/pictures/${this.picture.id}/keep`);
    say(`Kept as ${file}`);
    await this.kept();
  }

  async register() {
    const record = await post(`/api/pictures/${this.picture.id}/register`);
    this.registered = record.uri;
    say(`Registered as ${record.uri}, candidate`);
    this.lay();
  }

  async promote() {
    const [name, version] = this.registered.replace("models:/", "").split("/");
    say((await post("/api/promotions", { name, version })).message);
  }

  async recipe() {
    const { commands, python } = await get(`/api/pictures/${this.picture.id}/recipe`);
    const block = (title, text) => h("div", { class: "code" }, h("div", { class: "dialog-head" }, h("h3", {}, title),
      h("button", { onclick: () => copy(text) }, `Copy the ${title.toLowerCase()}`)), h("pre", { tabindex: 0 }, text));
    dialog("This very picture again", block("Command", commands.join("\n")), block("Python", python));
  }

  async export() {
    const stem = this.asked.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 50) || "adapter";
    const name = h("input", { type: "text", value: `${stem}-${this.picture.way}`, maxlength: 80 });
    const format = h("select", {}, ["fp16", "bf16", "fp32"].map((value) => h("option", { value }, value)));
    const author = h("input", { type: "text", maxlength: 200 });
    const licence = h("input", { type: "text", maxlength: 200, placeholder: "CC-BY-4.0" });
    const done = h("p", { role: "status" });
    const go = h("button", { class: "main", onclick: () => busy(go, async () => {
      const made = await post(`/api/pictures/${this.picture.id}/export`,
        { name: name.value, dtype: format.value, author: author.value || null, license: licence.value || null });
      fill(done, `Written to ${made.path}. `, h("a", { href: `/api/exports/${part(made.file)}`, download: made.file }, "Save a copy"));
    }) }, "Write the file");
    dialog("For ComfyUI, A1111 and kohya's scripts", h("p", {}, "One .safetensors file that draws this picture at strength 1."),
      field("Name", name, "letters, digits, - and _"), field("Number format", format), field("Author", author), field("Licence", licence),
      h("div", { class: "actions" }, go), done);
  }
}

export class Kept {
  constructor() {
    this.list = h("ul", { class: "kept" });
    this.root = h("section", { class: "kept-strip", hidden: true }, h("h3", {}, "Kept"), this.list);
  }

  async load() {
    const kept = await get("/api/kept");
    this.root.hidden = !kept.length;
    fill(this.list, kept.map((each) => h("li", {},
      h("button", { class: "slot", title: each.prompt, onclick: () => this.open(each) }, h("img", { src: `/api/kept/${part(each.file)}`, alt: each.prompt || each.file, loading: "lazy" })))));
  }

  open(each) {
    const gone = h("button", { class: "quiet", onclick: () => busy(gone, async () => {
      await remove(`/api/kept/${part(each.file)}`);
      box.close();
      await this.load();
    }) }, "Remove");
    const box = dialog(each.prompt || each.file, h("img", { class: "large", src: `/api/kept/${part(each.file)}`, alt: each.prompt }),
      h("p", {}, `Seed ${each.seed ?? "?"}. ${each.file}`), h("div", { class: "actions" },
        h("a", { class: "button", href: `/api/kept/${part(each.file)}`, download: each.file }, "Save a copy"), gone));
  }
}
