// Two folders in, a run of break_make watched.

import { get, part, poll, post, put, upload } from "./api.js";
import { badge, busy, dialog, field, fill, h, say } from "./dom.js";
import { chart } from "./charts.js";

const TITLES = { content: "Content", style: "Style" };
const HINTS = {
  content: "What is to be drawn: four to a dozen pictures of one character, product or animal.",
  style: "How it is to be drawn: four to a dozen pictures in one hand, material or texture.",
};

export class Train {
  constructor(root, settings, library) {
    Object.assign(this, { root, settings, library, seen: null });
    this.concepts = { content: new Concept("content", settings, () => this.changed()), style: new Concept("style", settings, () => this.changed()) };
    this.look = h("button", { class: "main", disabled: true, onclick: () => busy(this.look, () => this.inspect()) }, "Look at the pictures");
    this.found = h("div", { class: "found" });
    this.breakSteps = h("input", { type: "number", min: 1, max: 100000, value: settings.break_steps });
    this.makeSteps = h("input", { type: "number", min: 1, max: 100000, value: settings.make_steps });
    this.previews = h("input", { type: "number", min: 0, max: 100000, value: Math.max(1, Math.round(settings.break_steps / 3)) });
    this.seed = h("input", { type: "number", min: 0, max: 2147483647, value: settings.seed });
    this.start = h("button", { class: "main", onclick: () => busy(this.start, () => this.begin()) }, "Start");
    this.memory = h("div");
    this.plan = h("section", { hidden: true }, h("h2", {}, "Training"),
      h("div", { class: "four" }, field("Steps for each half", this.breakSteps), field("Steps of make", this.makeSteps),
        field("A picture every … steps", this.previews, "0: none"), field("Seed", this.seed)),
      this.memory, h("div", { class: "actions" }, this.start));
    this.run = new RunView(library, settings);
    root.append(this.run.root, h("div", { class: "two-wide" }, this.concepts.content.root, this.concepts.style.root),
      h("div", { class: "actions" }, this.look), this.found, this.plan);
  }

  shown() {
    this.folders().catch((error) => say(error.message, true));
    this.run.follow();
  }

  async folders() {
    const all = await get("/api/folders");
    for (const concept of Object.values(this.concepts)) concept.offer(all);
  }

  changed() {
    this.look.disabled = !Object.values(this.concepts).every((concept) => concept.path);
    this.plan.hidden = true;
    fill(this.found);
    if (!this.look.disabled) this.look.click();
  }

  pair() { return { content: this.concepts.content.asked(), style: this.concepts.style.asked() }; }

  async inspect() {
    fill(this.found, h("p", { role: "status" }, "The pictures are looked at…"));
    try { this.seen = await post("/api/inspections", this.pair()); } catch (error) {
      this.plan.hidden = true;
      fill(this.found, h("p", { class: "trouble", role: "alert" }, error.message));
      return;
    }
    this.showFound();
    this.plan.hidden = false;
    this.showMemory().catch((error) => fill(this.memory, h("p", { class: "bad" }, error.message)));
  }

  showFound() {
    const { rows, left_out: leftOut, warnings } = this.seen;
    const part = (kind) => h("section", {}, h("h3", {}, `${TITLES[kind]}: ${rows.filter((row) => row.kind === kind).length} pictures`),
      h("ul", { class: "pictures" }, rows.map((row, index) => (row.kind === kind ? this.row(row, index) : null))));
    const out = leftOut.length ? h("section", {}, h("h3", {}, "Left out"), h("ul", { class: "left-out" },
      leftOut.map((row) => h("li", {}, h("strong", {}, `${row.concept}/${row.file}`), ` ${row.reason}`)))) : null;
    fill(this.found, h("h2", {}, "What was understood"), warnings.map((text) => h("p", { class: "warning" }, text)), part("content"), part("style"), out);
  }

  row(row, index) {
    const words = h("textarea", { rows: 2, maxlength: 2000, "aria-label": `Caption of ${row.file}` }, row.caption);
    words.value = row.caption;
    words.addEventListener("change", () => this.caption(row, words));
    return h("li", {}, h("img", { src: `/api/inspections/${this.seen.id}/${index}.png`, alt: row.file, loading: "lazy", width: 128, height: 128 }),
      h("div", {}, h("p", { class: "file" }, row.file), words,
        h("p", { class: "badges" }, badge(row.source), badge(`${row.width} × ${row.height}`), row.masked ? badge("mask") : null),
        row.warnings.map((text) => h("p", { class: "warning" }, text))));
  }

  // What is written in the field goes into a text file beside the picture; an empty field takes it away.
  async caption(row, words) {
    words.disabled = true;
    try {
      await put("/api/captions", { folder: this.concepts[row.kind].path, file: row.file, text: words.value });
      this.seen = await post("/api/inspections", this.pair());
      this.showFound();
      say(`Caption of ${row.file} saved beside it.`);
    } catch (error) {
      words.disabled = false;
      say(error.message, true);
    }
  }

  async showMemory() {
    fill(this.memory, h("p", { role: "status" }, "What memory the stages need is computed…"));
    const { rows, gib, device } = await get("/api/memory");
    const most = rows.reduce((one, other) => (other.gib > one.gib ? other : one));
    const tight = rows.filter((row) => !row.fits);
    const table = h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["Stage", "GiB", "Fits"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.stage), h("td", {}, row.gib.toFixed(2)),
        h("td", {}, row.fits ? "yes" : `no${row.remedies.length ? `; with ${row.remedies.join(", ")}` : ""}`))))));
    fill(this.memory, h("p", { class: tight.length ? "warning" : "" }, `The most memory, about ${most.gib.toFixed(1)} GiB, is needed by “${most.stage}”; this machine's ${device} has ${gib.toFixed(1)} GiB.`),
      h("details", {}, h("summary", {}, "Memory of every stage"), table));
  }

  async begin() {
    const number = (input) => Number(input.value);
    await post("/api/runs", { ...this.pair(), break_steps: number(this.breakSteps), make_steps: number(this.makeSteps), previews: number(this.previews), seed: number(this.seed) });
    say("The run has started.");
    this.run.follow();
    this.run.root.scrollIntoView({ behavior: "smooth" });
  }
}

class Concept {
  constructor(kind, settings, changed) {
    Object.assign(this, { kind, changed, path: "", most: settings.most_pictures });
    const defaults = settings[kind];
    this.choice = h("select", { onchange: () => { this.path = this.choice.value; this.told(); changed(); } });
    this.noun = h("input", { type: "text", value: "", placeholder: defaults.noun, maxlength: 60, onchange: () => this.path && changed() });
    this.token = h("input", { type: "text", value: "", placeholder: defaults.token, maxlength: 30, onchange: () => this.path && changed() });
    this.name = h("input", { type: "text", placeholder: "my-teapot", maxlength: 60 });
    this.files = h("input", { type: "file", multiple: true, accept: "image/*,.txt", hidden: true, onchange: () => this.take([...this.files.files].map((file) => [file, file.name]), this.name.value) });
    this.status = h("p", { role: "status" });
    this.refused = h("ul", { class: "left-out" });
    const zone = h("div", { class: "drop" }, h("p", {}, "Drop a folder or pictures here, or ",
      h("button", { class: "quiet", onclick: () => this.files.click() }, "choose files"), this.files), field("Name of dropped files", this.name, "a dropped folder brings its own"));
    zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
    zone.addEventListener("dragleave", () => zone.classList.remove("over"));
    zone.addEventListener("drop", (event) => { event.preventDefault(); zone.classList.remove("over"); this.dropped(event.dataTransfer); });
    this.root = h("section", { class: `concept ${kind}` }, h("h2", {}, TITLES[kind]), h("p", {}, HINTS[kind]), field("Folder", this.choice), zone, this.status, this.refused,
      h("div", { class: "two" }, field(kind === "content" ? "What it is" : "What the pictures show", this.noun, kind === "content" ? "a class noun: teapot, dog" : "a noun: emoji, picture"),
        field("Invented word", this.token, "stands for it in prompts")));
  }

  offer(all) {
    this.choice.replaceChildren(h("option", { value: "" }, "choose a folder"), ...all.map((folder) => h("option", { value: folder.path }, `${folder.path} (${folder.pictures})`)));
    if (this.path && !all.some((folder) => folder.path === this.path)) this.choice.append(h("option", { value: this.path }, this.path));
    this.choice.value = this.path;
  }

  asked() {
    const own = { path: this.path };
    if (this.noun.value.trim()) own.noun = this.noun.value.trim();
    if (this.token.value.trim()) own.token = this.token.value.trim();
    return own;
  }

  told(text = "") { this.status.textContent = text; fill(this.refused); }

  async dropped(data) {
    const entries = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const folder = entries.find((entry) => entry.isDirectory);
    if (!folder) return this.take([...data.files].map((file) => [file, file.name]), this.name.value);
    const files = [];
    const reader = folder.createReader();
    for (;;) {
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) break;
      for (const entry of some) if (entry.isFile && !entry.name.startsWith(".")) files.push([await new Promise((done, failed) => entry.file(done, failed)), entry.name]);
    }
    return this.take(files, folder.name);
  }

  async take(files, given) {
    const name = (given || files[0]?.[1].replace(/\.[^.]*$/, "") || "").replace(/[^\p{L}\p{N}_-]+/gu, "-").replace(/^-+|-+$/g, "");
    this.files.value = "";
    if (!name || !files.length) return this.told("There was no picture among these.");
    if (files.length > 2 * this.most) return this.told(`These are ${files.length} files. A concept needs a dozen pictures; the studio takes ${this.most} at most.`);
    fill(this.refused);
    let folder = "", taken = 0;
    for (const [index, [file, own]] of files.entries()) {
      this.status.textContent = `${index + 1} of ${files.length}: ${own}`;
      try {
        folder = (await upload(`/api/uploads/${part(name)}/${part(own)}`, file)).folder;
        taken += /\.txt$/i.test(own) ? 0 : 1;
      } catch (error) { this.refused.append(h("li", {}, h("strong", {}, own), ` ${error.message}`)); }
    }
    this.status.textContent = `${taken} of ${files.length} files are pictures that can be used.`;
    if (!folder) return;
    this.path = folder;
    const all = await get("/api/folders");
    this.offer(all);
    this.changed();
  }
}

const SAID = { running: "under way", stopping: "stopping…", done: "done", stopped: "stopped", failed: "failed" };

class RunView {
  constructor(library, settings) {
    this.library = library;
    this.store = settings.mlflow;
    this.place = h("p", { class: "said" });
    this.root = h("section", { class: "run", hidden: true, "aria-label": "The run" });
    this.stop = h("button", { onclick: () => busy(this.stop, () => post("/api/runs/current/stop").then(() => this.follow())) }, "Stop");
    this.goOn = h("button", { class: "main", onclick: () => busy(this.goOn, () => post("/api/runs/current/go-on").then(() => this.follow())) }, "Go on");
    this.head = h("div", { class: "drawing-head" });
    this.message = h("p", { role: "status" });
    this.stages = h("ol", { class: "stages" });
    this.charts = h("div", { class: "charts" });
    this.pictures = h("ul", { class: "previews" });
    this.log = h("pre", { tabindex: 0 });
    this.details = h("details", {}, h("summary", {}, "Log"), this.log);
    this.root.append(this.head, this.message, this.stages, this.charts, this.pictures, this.place, this.details);
  }

  follow() {
    this.end?.();
    this.end = poll(() => this.update(), 1500);
  }

  async update() {
    const run = await get("/api/runs/current");
    if (!run) return true;
    this.root.hidden = false;
    const [content, style] = [run.request.content, run.request.style].map((each) => each.path.split("/").at(-1));
    const live = run.state === "running" || run.state === "stopping";
    const done = run.state === "done" ? h("button", { class: "main", onclick: this.library }, "See it in the library") : null;
    const key = `${run.id} ${run.state} ${run.resumed}`;
    if (this.key !== key) {
      fill(this.head, h("h2", {}, `${content} in ${style}: `, h("span", { class: `state ${run.state}` }, SAID[run.state])),
        run.state === "running" ? this.stop : null, run.state === "stopped" || run.state === "failed" ? this.goOn : null, done);
      this.key = key;
    }
    const said = [run.message, run.trouble].filter(Boolean).join(" ");
    if (this.message.textContent !== said) this.message.textContent = said;
    this.message.className = run.state === "failed" ? "bad" : "";
    this.showStages(run);
    fill(this.charts, Object.entries(this.byStage(run.curves)).map(([stage, curves]) => chart(this.title(run, stage), curves, run.steps[stage])));
    this.showPictures(run.pictures);
    this.log.textContent = run.log;
    this.showPlace(run.mlflow.at(-1));
    return !live;
  }

  // Where the run stands in MLflow: a link to its server, or the command that shows it.
  showPlace(logged) {
    if (!logged || this.logged === logged.run) return;
    this.logged = logged.run;
    const name = `run ${logged.run.slice(0, 8)}`;
    fill(this.place, "In MLflow: ", this.store
      ? h("a", { href: `${this.store}/#/experiments/${logged.experiment}/runs/${logged.run}`, target: "_blank", rel: "noopener" }, name)
      : `${name}; kedro mlflow ui shows it.`);
  }

  title(run, stage) { return run.stages.find((each) => each.name === stage)?.title ?? stage; }

  showStages(run) {
    fill(this.stages, run.stages.map((stage) => {
      const steps = stage.steps ? ` ${stage.step} of ${stage.steps}` : "";
      const text = { waiting: "waits", running: `now${steps}`, done: stage.reused ? "taken from the registry" : "done", stopped: `stopped${steps}` }[stage.state];
      return h("li", { class: stage.state }, h("strong", {}, stage.title), h("span", {}, text),
        stage.steps && stage.state !== "waiting" && !stage.reused ? h("progress", { max: stage.steps, value: stage.step, "aria-label": stage.title }) : null);
    }));
  }

  byStage(curves) {
    const found = {};
    for (const [key, points] of Object.entries(curves)) {
      const [stage, name] = key.split(".");
      (found[stage] ??= {})[name] = points;
    }
    return found;
  }

  showPictures(pictures) {
    const key = pictures.map(({ path }) => path).join("|");
    if (key === this.shown) return;
    this.shown = key;
    const last = (path) => {
      const [, stage, step] = path.match(/^pictures\/([^/]+)\/\d+-step-(\d+)\.png$/) ?? [];
      return stage ? `${stage.replaceAll("_", " ")}, step ${Number(step)}` : path.split("/").at(-1).replace(/\.png$/, "").replaceAll("_", " ");
    };
    fill(this.pictures, pictures.map(({ run, path }) => {
      const source = `/api/sheets/${run}/${path.split("/").map(part).join("/")}`;
      return h("li", {}, h("button", { class: "slot", onclick: () => dialog(last(path), h("img", { class: "sheet", src: source, alt: last(path) })) },
        h("img", { src: source, alt: last(path), loading: "lazy" })), h("span", {}, last(path)));
    }));
  }
}
