// The curves of a run with their controls: x axis, smoothing, logarithmic losses, zoom. What is chosen stands in the
// address, so that a reload or a link shows the same view; a new point never changes it. A chart appears with the first
// number that it can show; `brief` leaves all groups but the first away.

import "./metric-chart.js";
import { debounced, h, setText } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { chartsOf, newest } from "../lib/run-curves.js";
import { RunElement } from "../lib/run-feed.js";
import { get } from "../lib/api.js";

const AXES = () => ({ step: t("Step"), tokens: t("Tokens"), time: t("Seconds of training"), flops: t("FLOPs") });
class RunCharts extends RunElement {
  follow(feed) {
    const isFirst = !this.groups;
    if (isFirst) this.#build();
    this.marks = [];
    const view = this.#fromAddress();
    if (!isFirst && view.range) { // a part of another run's curve
      view.range = null;
      this.#keep({ from: null, to: null });
    }
    Object.assign(feed, { axis: view.axis, smoothing: view.smoothing, range: view.range });
    this.isLog = view.isLog;
    this.#showControls();
    for (const type of ["curves", "load"]) this.on(type, () => this.#draw());
    this.on("failed", ({ detail }) => setText(this.status, [detail.message, t("It is tried again.")].join(" ")));
    for (const type of ["checkpoint", "restart"]) this.on(type, () => this.#loadMarks());
    this.#loadMarks();
    this.#draw();
  }

  #build() {
    this.axes = h("select.tiny-select", { "aria-label": t("Horizontal axis"), onchange: () => this.#change({ axis: this.axes.value, range: null }) },
      ...Object.entries(AXES()).map(([value, label]) => h("option", { value }, label)));
    this.slider = h("input", { type: "range", min: "0", max: "0.99", step: "0.01", "aria-label": t("Smoothing") });
    const smooth = debounced(() => this.#change({ smoothing: Number(this.slider.value) }), 150);
    this.slider.addEventListener("input", () => {
      this.amount.textContent = this.slider.value;
      smooth();
    });
    this.amount = h("output.number.small");
    this.logButton = h("button.button.tiny", { type: "button", onclick: () => this.#change({ isLog: !this.isLog }) }, t("Log scale"));
    this.reset = h("button.button.tiny", { type: "button", hidden: true, onclick: () => this.#change({ range: null }) }, t("Whole run"));
    this.status = h("p.small.muted", { role: "status" });
    this.groups = h("div.chart-groups");
    this.addEventListener("zoom", (event) => this.#change({ range: event.detail }));
    this.addEventListener("pick", (event) => {
      if (this.feed.axis !== "step") return;
      document.dispatchEvent(new CustomEvent("step-picked", { detail: event.detail }));
    });
    this.replaceChildren(
      h("div.chart-controls", {},
        h("h2", {}, t("Curves")),
        h("label.row.small", {}, t("Axis"), this.axes),
        h("label.row.small.smoothing", {}, t("Smoothing"), this.slider, this.amount),
        this.logButton, this.reset, this.status),
      this.groups);
  }

  /** Make the charts that the run has numbers for; those that are there stay as and where they are. */
  #arrange(keys) {
    const groups = chartsOf(this.hasAttribute("brief") ? [] : keys, this.getAttribute("stage") ?? "");
    const ids = groups.map(({ charts }) => charts.map(({ name }) => name).join(" "));
    if (ids.join() === this.arranged) return;
    this.arranged = ids.join();
    const before = this.parts ?? new Map();
    this.parts = new Map(groups.map((group, place) => [ids[place], before.get(ids[place]) ?? this.#part(group)]));
    [...this.parts.values()].forEach(({ element }, place) => {
      const there = this.groups.children[place];
      if (there !== element) this.groups.insertBefore(element, there ?? null);
    });
    while (this.groups.children.length > this.parts.size) this.groups.lastChild.remove();
  }

  /** The first group is open to everybody's eyes, each other one says its newest values and opens to its charts. */
  #part({ name, title, charts }) {
    const made = charts.map((about) => {
      const chart = document.createElement("metric-chart");
      chart.className = "card";
      chart.setup(about);
      return chart;
    });
    const all = h("div.charts", {}, ...made);
    if (!title) return { element: all, charts: made };
    const values = h("span.chart-values.number");
    const element = h("details.card.chart-group", { open: this.#opened().includes(name), ontoggle: () => {
      const others = this.#opened().filter((each) => each !== name);
      this.#keep({ open: (element.open ? [...others, name] : others).join(".") || null });
      this.#draw();
    } }, h("summary", {}, h("h2", {}, title), values), all);
    return { element, charts: made, values };
  }

  /** Names of the groups that the address says are open. */
  #opened() {
    return (new URLSearchParams(location.search).get("open") ?? "").split(".").filter(Boolean);
  }

  /** Write what was chosen into the address; null is what needs no word. */
  #keep(values) {
    const url = new URL(location.href);
    for (const [name, value] of Object.entries(values)) {
      if (value === null) url.searchParams.delete(name);
      else url.searchParams.set(name, value);
    }
    history.replaceState(null, "", url);
  }

  #fromAddress() {
    const query = new URLSearchParams(location.search);
    const number = (name) => (query.has(name) && Number.isFinite(Number(query.get(name))) ? Number(query.get(name)) : null);
    const [from, to] = [number("from"), number("to")];
    return {
      axis: Object.hasOwn(AXES(), query.get("x") ?? "") ? query.get("x") : "step",
      smoothing: Math.min(0.99, Math.max(0, number("smooth") ?? 0.8)),
      isLog: query.get("log") === "1",
      range: from !== null && to !== null && from < to ? [from, to] : null,
    };
  }

  #change({ isLog = this.isLog, axis = this.feed.axis, smoothing = this.feed.smoothing, range = this.feed.range }) {
    const asks = axis !== this.feed.axis || smoothing !== this.feed.smoothing || range !== this.feed.range;
    this.isLog = isLog;
    this.#keep({ x: axis === "step" ? null : axis, smooth: smoothing === 0.8 ? null : String(smoothing), log: isLog ? "1" : null,
                 from: range ? String(range[0]) : null, to: range ? String(range[1]) : null });
    if (asks) this.feed.show({ axis, smoothing, range });
    this.#showControls();
    this.#draw();
  }

  #showControls() {
    this.axes.value = this.feed.axis;
    this.slider.value = String(this.feed.smoothing);
    this.amount.textContent = this.slider.value;
    this.logButton.setAttribute("aria-pressed", String(this.isLog));
    this.reset.hidden = this.feed.range === null;
  }

  async #loadMarks() {
    const feed = this.feed;
    try {
      const { items } = await get(`/runs/${feed.id}/checkpoints`);
      if (this.feed !== feed) return;
      this.marks = items;
      this.#draw();
    } catch {
      this.marks = []; // the list of checkpoints says what is wrong; the curves do without their marks
    }
  }

  #draw() {
    const { feed } = this;
    if (!feed) return;
    const shown = feed.shown ?? feed; // what is on its way is not shown under its new name yet
    const axis = AXES()[shown.axis];
    const marks = this.marks.map((c) => (shown.axis === "step" ? c.step : shown.axis === "tokens" ? c.tokens : null));
    this.#arrange(feed.curves.keys());
    for (const { element, charts, values } of this.parts.values()) {
      setText(values, newest(charts.map(({ about }) => about), feed.curves));
      if (!values || element.open) for (const chart of charts) this.#drawChart(chart, shown, axis, marks);
    }
    if (feed.isLoaded && !feed.isLoading) setText(this.status, "");
  }

  #drawChart(chart, shown, axis, marks) {
    const { feed } = this;
    const { keys, logs } = chart.about;
    const parts = keys.map((key, place) => {
      const curve = feed.curves.get(key);
      if (!curve) return { x: [], values: [] };
      const smooths = keys.length > 1 && keys.indexOf(key) !== place;
      return { x: curve.x, values: smooths ? curve.smooth : curve.y };
    });
    const main = feed.curves.get(keys[0]);
    const isEmpty = !main || main.x.length === 0;
    chart.classList.toggle("is-empty", isEmpty);
    const note = isEmpty ? (feed.isLoaded ? t("Points appear with the first training steps.") : t("Loading."))
      : shown.range ? t("Zoomed: %(all)s points. A double click, or Escape, shows the whole run.", { all: integer(main.total) })
      : main.x.length < main.total
        ? t("%(shown)s of %(all)s points; every peak is kept. Drag to zoom.", { shown: integer(main.x.length), all: integer(main.total) })
        : t("%(all)s points. Drag to zoom.", { all: integer(main.total) });
    chart.draw(parts, { isLog: this.isLog && Boolean(logs), axisLabel: axis, range: shown.range, note,
                        marks: marks.filter((mark) => mark !== null) });
  }
}

customElements.define("run-charts", RunCharts);
