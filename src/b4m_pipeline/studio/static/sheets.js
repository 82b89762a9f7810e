// Evaluations of runs: figures by both judges, and the sheets.

import { get, part, poll, post } from "./api.js";
import { busy, dialog, field, fill, h, say } from "./dom.js";

const FIRST = ["contact_sheet", "composed", "strengths"];
const LOW_IS_GOOD = ["truth_distance"];

export class Sheets {
  constructor(root) {
    this.choice = h("select", { onchange: () => this.open().catch((error) => say(error.message, true)) });
    this.place = h("div");
    root.append(h("div", { class: "bar" }, field("Run", this.choice)), this.place);
  }

  shown() { this.load().catch((error) => say(error.message, true)); }

  async load() {
    const before = this.choice.value, all = await get("/api/sheets");
    fill(this.choice, all.map((run) => h("option", { value: run.run }, `${run.title}, ${new Date(run.started).toLocaleString()}`)));
    this.choice.closest(".bar").hidden = !all.length;
    if (!all.length) {
      fill(this.place, h("p", { class: "empty" }, "No run has been evaluated yet. Each training ends with an evaluation, which appears here."));
      return;
    }
    if (all.some((run) => run.run === before)) this.choice.value = before;
    await this.open();
  }

  async open() {
    const sheet = await get(`/api/sheets/${this.choice.value}`);
    const source = (path) => `/api/sheets/${sheet.run}/${path.split("/").map(part).join("/")}`;
    const name = (path) => path.split("/").at(-1).replace(/\.png$/, "");
    const rank = (path) => (FIRST.includes(name(path)) ? FIRST.indexOf(name(path)) : FIRST.length);
    const pictures = [...sheet.pictures].sort((one, other) => rank(one) - rank(other));
    const figure = (path, large) => h("figure", { class: large ? "wide" : "" },
      h("button", { class: "slot", onclick: () => dialog(said(name(path)), h("div", { class: "scroll" }, h("img", { class: "sheet", src: source(path), alt: said(name(path)) }))) },
        h("img", { src: source(path), alt: said(name(path)), loading: "lazy" })), h("figcaption", {}, said(name(path))));
    const made = sheet.versions.find((version) => version.kind === "make");
    const merges = h("button", { onclick: () => busy(merges, () => this.measure(made)) }, "Measure merges beside it");
    this.status = h("p", { role: "status" });
    fill(this.place, sheet.versions.length ? h("p", { class: "said" }, `It made ${sheet.versions.map((each) => `${each.name} ${each.version}`).join(", ")}.`) : null,
      made ? h("div", { class: "actions" }, merges, this.status) : null,
      sheet.rows.length ? this.table(sheet) : h("p", {}, "This run drew several ways to compose side by side, and measured none."),
      h("div", { class: "figures" }, pictures.map((path) => figure(path, rank(path) < FIRST.length))));
  }

  // Sum, TIES, DARE, SVD and NP-LoRA of the same halves, the joined halves and the made adapter: a run of their own.
  async measure(made) {
    await post("/api/merges", { name: made.name, version: made.version });
    const status = this.status;
    status.textContent = "All ways are drawn and measured; this takes a minute or more…";
    poll(async () => {
      const now = await get("/api/merges");
      if (now.state === "running") return false;
      status.textContent = now.message;
      if (now.state === "done") { await this.load(); this.choice.value = now.run; await this.open(); }
      return true;
    }, 1500);
  }

  table({ measures, rows }) {
    const best = {};
    for (const { name } of measures) {
      const values = rows.filter((row) => row.kind === "composition").map((row) => row.figures[name]).filter((value) => value !== undefined);
      best[name] = LOW_IS_GOOD.includes(name) ? Math.min(...values) : Math.max(...values);
    }
    const cell = (row, name) => {
      const value = row.figures[name];
      const top = row.kind === "composition" && value?.toFixed(2) === best[name].toFixed(2);
      return h("td", { class: top ? "best" : "" }, value === undefined ? "–" : value.toFixed(2));
    };
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Figures" }, h("table", { class: "figures-table" },
      h("caption", {}, "Content and style by two judges, EfficientNet and CLIP; the best of the composition stands out."),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Drawn by"), h("th", { scope: "col" }, "Prompt"), measures.map(({ name, meaning }) => h("th", { scope: "col", title: meaning }, said(name), h("small", {}, meaning))))),
      h("tbody", {}, rows.map((row) => h("tr", { class: row.system === "made" ? "made" : "" }, h("th", { scope: "row" }, row.system), h("td", {}, row.kind.replaceAll("_", " ")), measures.map(({ name }) => cell(row, name)))))));
  }
}

const said = (name) => name.replaceAll("_", " ");
