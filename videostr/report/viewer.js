// The trace viewer: filters over a small index, chunks of traces that are opened when they are looked at.

const ROW = 66, KEPT_CHUNKS = 24, CELL = 176, MARKED_CELL = 320;
const byId = (id) => document.getElementById(id);

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const number = (value, digits = 2) => value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1");

class Viewer {
  constructor(index) {
    this.index = index;
    this.starts = [];
    let start = 0;
    for (const size of index.size) { this.starts.push(start); start += size; }
    this.rollouts = start;
    this.means = index.size.map((size, g) => this.totals(g).reduce((a, b) => a + b, 0) / size);
    this.spreads = index.size.map((size, g) => this.totals(g)[0] - this.totals(g)[size - 1]);
    this.searched = index.question.map((q, g) => `${index.questions[q]} ${index.records[index.record[g]]}`.toLowerCase());
    this.visits = new Map();
    index.record.forEach((record, g) => this.visits.set(record, [...(this.visits.get(record) ?? []), g]));
    this.chunks = new Map();
    this.clips = new Map();
    this.shown = [];
    this.matches = new Uint8Array(this.rollouts);
    this.group = -1;
    this.opened = -1; // the group whose traces are in `data`
    this.rollout = 0;
    this.folded = true;
    this.hidden = { truth: false, predicted: false };
    this.request = 0;
  }

  totals(g) { return this.index.total.slice(this.starts[g], this.starts[g] + this.index.size[g]); }

  start() {
    const { index } = this, form = byId("filters");
    const counts = new Map();
    index.fault.forEach((bits) => index.faults.forEach((_, i) => { if (bits >> i & 1) counts.set(i, (counts.get(i) ?? 0) + 1); }));
    const options = (name, all, entries) => form.elements[name].replaceChildren(
      element("option", { value: "" }, all), ...entries.map(([value, text]) => element("option", { value }, visible(text))));
    const families = index.families.map((name, i) => [i, name]).sort((a, b) => (a[1] < b[1] ? -1 : 1));
    options("family", "all families", families);
    options("step", "all steps", [...new Set(index.step)].map((step) => [step, `step ${step}`]));
    options("fault", "all rollouts", index.faults.map(([name, words], i) => [i, `${words} (${counts.get(i) ?? 0})`]));
    form.addEventListener("input", () => this.filter());
    form.addEventListener("reset", () => setTimeout(() => this.filter()));
    form.addEventListener("submit", (event) => event.preventDefault());
    const list = byId("list");
    list.addEventListener("scroll", () => this.drawList(), { passive: true });
    new ResizeObserver(() => this.drawList()).observe(list);
    document.addEventListener("keydown", (event) => this.key(event));
    addEventListener("hashchange", () => this.openFromAddress());
    byId("viewer").hidden = false;
    this.filter();
    this.openFromAddress();
  }

  // ---------------------------------------------------------------------------------------------- filters

  filter() {
    const { index } = this, form = byId("filters").elements;
    const family = form.family.value === "" ? -1 : Number(form.family.value);
    const step = form.step.value === "" ? -1 : Number(form.step.value);
    const fault = form.fault.value === "" ? 0 : 1 << Number(form.fault.value);
    const low = form.low.value === "" ? -Infinity : Number(form.low.value) - 1e-9;
    const high = form.high.value === "" ? Infinity : Number(form.high.value) + 1e-9;
    const words = form.find.value.toLowerCase().split(/\s+/).filter(Boolean);
    this.matches.fill(0);
    this.shown = [];
    let rollouts = 0;
    for (let g = 0; g < index.size.length; g++) {
      if (family >= 0 && index.family[g] !== family || step >= 0 && index.step[g] !== step) continue;
      if (!words.every((word) => this.searched[g].includes(word))) continue;
      let found = 0;
      for (let i = this.starts[g]; i < this.starts[g] + index.size[g]; i++) {
        if (index.total[i] < low || index.total[i] > high || fault && !(index.fault[i] & fault)) continue;
        this.matches[i] = 1;
        found++;
      }
      if (found) this.shown.push(g);
      rollouts += found;
    }
    const by = { new: (a, b) => index.step[b] - index.step[a] || a - b, old: (a, b) => a - b,
      low: (a, b) => this.means[a] - this.means[b], high: (a, b) => this.means[b] - this.means[a],
      spread: (a, b) => this.spreads[b] - this.spreads[a] };
    this.shown.sort(by[form.sort.value]);
    const of = (n, all) => (n === all ? n.toLocaleString("en") : `${n.toLocaleString("en")} of ${all.toLocaleString("en")}`);
    byId("count").value = `${of(this.shown.length, index.size.length)} prompts, ${of(rollouts, this.rollouts)} rollouts`;
    byId("spacer").style.height = `${this.shown.length * ROW}px`;
    byId("list").scrollTop = 0;
    if (this.shown.length && !this.shown.includes(this.group)) this.open(this.shown[0], 0, false);
    else this.drawDetail();
    this.drawList();
  }

  drawList() {
    const list = byId("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - 3);
    const last = Math.min(this.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 3);
    byId("spacer").replaceChildren(...this.shown.slice(first, last).map((g, i) => this.row(g, first + i)));
    list.setAttribute("aria-activedescendant", `row-${this.group}`);
  }

  row(g, place) {
    const { index } = this, start = this.starts[g], totals = this.totals(g);
    const top = Math.max(1e-9, ...totals.map(Math.abs)), wide = Math.min(9, 96 / totals.length);
    const bars = svg("svg", { class: "bars", viewBox: `0 0 ${wide * totals.length} 18`, width: wide * totals.length, height: 18 },
      ...totals.map((total, i) => {
        const tall = Math.max(1.5, 17 * Math.abs(total) / top);
        const style = `${total < 0 ? "below" : ""}${this.matches[start + i] ? "" : " dim"}`;
        return svg("rect", { class: style, x: i * wide, y: 18 - tall, width: wide * 0.8, height: tall });
      }));
    return element("div", { class: "row", id: `row-${g}`, role: "option", "aria-selected": g === this.group, "data-group": g,
      style: `top:${place * ROW}px;height:${ROW}px`, onclick: () => this.open(g, 0) },
      element("span", { class: "question" }, visible(index.questions[index.question[g]])),
      element("span", { class: "facts" }, element("b", {}, number(this.means[g])), bars,
        element("span", {}, `step ${index.step[g]}`), element("span", { class: "family" }, visible(index.families[index.family[g]]))));
  }

  // --------------------------------------------------------------------------------------------- selection

  async chunk(number) {
    if (!this.chunks.has(number)) {
      this.chunks.set(number, unpacked(`chunk-${number}`));
      if (this.chunks.size > KEPT_CHUNKS) this.chunks.delete(this.chunks.keys().next().value);
    }
    return this.chunks.get(number);
  }

  clip(number) {
    if (number < 0) return null;
    if (!this.clips.has(number)) {
      this.clips.set(number, JSON.parse(byId(`clip-${number}`).textContent));
      if (this.clips.size > KEPT_CHUNKS) this.clips.delete(this.clips.keys().next().value);
    }
    return this.clips.get(number);
  }

  async open(g, rollout, remember = true) {
    const mine = ++this.request, { index } = this;
    this.group = g;
    this.rollout = rollout;
    this.drawList();
    const chunk = await this.chunk(index.chunk[g]);
    if (mine !== this.request) return;
    this.data = chunk[index.at[g]];
    this.opened = g;
    this.drawDetail();
    const place = this.shown.indexOf(g);
    for (const near of [this.shown[place + 1], this.shown[place - 1]]) if (near !== undefined) this.chunk(index.chunk[near]);
    if (remember) history.replaceState(null, "", `#trace=${index.step[g]}/${encodeURIComponent(index.records[index.record[g]])}/${this.data.rollouts[rollout].n}`);
  }

  openFromAddress() {
    const found = /^#trace=(\d+)\/([^/]*)\/(\d+)$/.exec(location.hash);
    if (!found) return;
    let record = "";
    try { record = decodeURIComponent(found[2]); } catch { return; }
    const { index } = this, g = index.step.findIndex((step, i) => step === Number(found[1]) && index.records[index.record[i]] === record);
    if (g < 0) return;
    this.open(g, 0, false).then(() => {
      this.choose(Math.max(0, this.data.rollouts.findIndex((one) => one.n === Number(found[3]))));
      this.reveal();
      byId("traces").scrollIntoView();
    });
  }

  choose(rollout) {
    this.open(this.group, Math.max(0, Math.min(this.index.size[this.group] - 1, rollout)));
  }

  move(by) {
    const place = this.shown.indexOf(this.group), next = Math.max(0, Math.min(this.shown.length - 1, place + by));
    if (!this.shown.length || next === place) return;
    this.open(this.shown[next], 0);
    this.reveal();
  }

  visit(by) {
    const visits = this.visits.get(this.index.record[this.group]), next = visits[visits.indexOf(this.group) + by];
    if (next === undefined) return;
    this.open(next, 0);
    this.reveal();
  }

  reveal() {
    const list = byId("list"), top = this.shown.indexOf(this.group) * ROW;
    if (top < 0) return;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") document.activeElement.blur();
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
    const inList = document.activeElement === byId("list");
    const actions = { j: () => this.move(1), k: () => this.move(-1), h: () => this.choose(this.rollout - 1), l: () => this.choose(this.rollout + 1),
      "[": () => this.visit(-1), "]": () => this.visit(1), g: () => this.fold(), t: () => this.hide("truth"), p: () => this.hide("predicted"),
      "/": () => byId("filters").elements.find.focus(),
      ...(inList && { ArrowDown: () => this.move(1), ArrowUp: () => this.move(-1), PageDown: () => this.move(8), PageUp: () => this.move(-8),
        ArrowLeft: () => this.choose(this.rollout - 1), ArrowRight: () => this.choose(this.rollout + 1),
        Home: () => this.move(-this.shown.length), End: () => this.move(this.shown.length) }) };
    if (!(event.key in actions) || this.group < 0) return;
    event.preventDefault();
    const box = byId("traces").getBoundingClientRect();
    if (box.top > innerHeight * 0.7 || box.bottom < 80) byId("traces").scrollIntoView();
    actions[event.key]();
  }

  fold() {
    this.folded = !this.folded;
    for (const one of byId("detail").querySelectorAll("details.graph")) one.open = !this.folded;
  }

  hide(kind) {
    this.hidden[kind] = !this.hidden[kind];
    this.drawDetail();
  }

  // ------------------------------------------------------------------------------------------------ detail

  drawDetail() {
    const detail = byId("detail"), { data, index, group: g } = this;
    if (!this.shown.length) {
      detail.replaceChildren(element("p", { class: "note" }, "No rollout passes the filters."));
      return;
    }
    if (this.opened !== g) return; // its chunk is still being opened
    const scrolled = detail.querySelector(".side")?.dataset.group === String(g) ? detail.querySelector(".side").scrollLeft : 0;
    const side = element("div", { class: "side", "data-group": g, tabindex: "0", "aria-label": "rollouts of the group" },
      ...data.rollouts.map((one, i) => this.card(one, i)));
    detail.replaceChildren(
      element("h3", { class: "asked" }, visible(data.question)),
      element("div", { class: "about" },
        element("span", {}, "true answer ", element("b", {}, visible(data.answer))),
        element("span", {}, `step ${index.step[g]}`), element("span", {}, visible(index.families[index.family[g]])),
        element("span", {}, "mean reward ", element("b", {}, number(this.means[g], 3))),
        element("span", { class: "record" }, visible(index.records[index.record[g]]))),
      this.history(), this.film(), side,
      element("details", { class: "prompt" }, element("summary", {}, "prompt"), element("pre", {}, visible(data.prompt))));
    side.scrollLeft = scrolled;
    const chosen = side.children[this.rollout], box = side.getBoundingClientRect(), at = chosen.getBoundingClientRect();
    if (at.left < box.left || at.right > box.right) side.scrollLeft += at.left - box.left - 8;
    detail.dataset.group = g;
    detail.dataset.rollout = data.rollouts[this.rollout].n;
  }

  // The same prompt over training steps.
  history() {
    const visits = this.visits.get(this.index.record[this.group]);
    if (visits.length < 2) return element("p", { class: "note" }, "This prompt was dumped at one step only.");
    return element("div", { class: "visits", role: "group", "aria-label": "the same prompt at other steps" },
      element("span", {}, "over training"),
      ...visits.map((g) => element("button", { type: "button", "aria-pressed": g === this.group, onclick: () => this.open(g, 0) },
        `step ${this.index.step[g]} · ${number(this.means[g])}`)));
  }

  film() {
    const { data, hidden } = this, rollout = data.rollouts[this.rollout], clip = this.clip(this.index.clip[this.group]);
    const images = clip?.images ?? [], fits = images.length === data.times.length, over = data.over && fits;
    const columns = Math.max(data.times.length, images.length), cell = clip?.marked ? MARKED_CELL : CELL;
    const film = element("div", { class: "film", style: `grid-template-columns:max-content repeat(${columns},${cell}px)` });
    const line = (name, cells) => film.append(element("span", { class: "name" }, name), ...cells, ...Array(columns - cells.length).fill(0).map(() => element("span", {})));
    if (data.times.length) line("time", data.times.map((t) => element("span", { class: "time" }, `${number(t)} s`)));
    const scenes = (size, withImages) => data.times.map((_, i) => scenePicture({ ...size, image: withImages ? images[i] : "",
      truth: hidden.truth ? null : data.truth?.[i], predicted: hidden.predicted ? null : rollout.frames?.[i],
      stated: withImages || hidden.predicted ? undefined : Boolean(rollout.frames?.[i]) }));
    if (images.length) {
      const size = { width: cell, height: Math.round(cell * clip.h / clip.w) };
      line("frames", over ? scenes(size, true) : images.map((href) => scenePicture({ ...size, image: href })));
    }
    if (data.truth || rollout.frames) line(data.reference === "image" ? "on the image" : "from above", scenes({ width: CELL, height: CELL }, false));
    const legend = element("p", { class: "note legend-line" }, `Rollout #${rollout.n}: filled circles are its graph, dashed rings the truth, a line joins an object to its true place. `,
      images.length ? "" : "The frames of this clip are not in the page. ",
      images.length && data.times.length && !over ? "Drawn from above only: the dataset holds no camera to draw metres over the frames. " : "",
      rollout.absence ? element("b", { class: "bad" }, `No graph: ${visible(rollout.absence)}.`) : "");
    return element("div", { class: "pictures" }, legend, element("div", { class: "scroll", tabindex: "0", "aria-label": "frames, scroll sideways" }, film));
  }

  card(one, i) {
    const start = this.starts[this.group], notes = new Map(), gain = Math.round(one.advantage * 100) / 100 || 0;
    for (const note of one.notes) {
      const head = /^([a-z_]+): /.exec(note)?.[1] ?? "format";
      const part = head in one.parts ? head : "other";
      notes.set(part, [...(notes.get(part) ?? []), note]);
    }
    const noted = (part) => (notes.get(part) ?? []).map((note) => element("li", {}, visible(note)));
    const parts = Object.entries(one.parts).map(([name, value]) => element("div", { class: "part", "data-part": name },
      element("span", {}, visible(name)), element("span", { class: "meter" }, element("i", { class: value < 0 ? "below" : "", style: `width:${Math.min(1, Math.abs(value)) * 100}%` })),
      element("span", { class: "value" }, number(value)), ...(noted(name).length ? [element("ul", {}, ...noted(name))] : [])));
    const bits = this.index.fault[start + i];
    const tags = this.index.faults.filter(([name], bit) => bits >> bit & 1 && name !== "zero_variance").map(([, words]) => element("span", { class: "fault" }, words));
    return element("article", { class: `card rollout${this.matches[start + i] ? "" : " dim"}`, "data-rollout": one.n, "aria-current": i === this.rollout,
      onclick: (event) => { if (i !== this.rollout && !event.target.closest("details") && !getSelection().toString()) this.choose(i); } },
      element("header", {}, element("span", {}, `#${one.n}`), element("b", { class: "total" }, number(one.total, 3)),
        element("span", { class: gain < 0 ? "bad" : gain > 0 ? "good" : "" }, `advantage ${gain < 0 ? "" : "+"}${number(gain)}`),
        element("span", {}, `${one.tokens} tokens`), element("span", {}, visible(one.finish.toLowerCase()))),
      element("div", { class: "faults" }, ...tags), element("div", { class: "parts" }, ...parts, ...(noted("other").length ? [element("ul", {}, ...noted("other"))] : [])),
      this.text(one.text));
  }

  // The completion, its graph blocks folded.
  text(text) {
    const box = element("div", { class: "completion", dir: "ltr" });
    for (const piece of text.split(/(<graph>[\s\S]*?(?:<\/graph>|$))/)) {
      if (piece.startsWith("<graph>")) {
        box.append(element("details", { class: "graph", ...(!this.folded && { open: "" }) },
          element("summary", {}, `graph, ${piece.length.toLocaleString("en")} characters${piece.endsWith("</graph>") ? "" : ", never closed"}`), element("span", {}, visible(piece))));
      } else {
        for (const part of piece.split(/(<\/?(?:think|answer)>)/)) box.append(/^<\/?(think|answer)>$/.test(part) ? element("span", { class: "tag" }, part) : visible(part));
      }
    }
    return box;
  }
}

if (byId("index")) {
  unpacked("index").then((index) => {
    new Viewer(index).start();
    document.documentElement.dataset.ready = performance.now().toFixed(0);
  });
}
