// The curves of a run with their controls: x axis, smoothing, logarithmic losses, zoom. What is chosen stands in the
// address, so that a reload or a link shows the same view; a new point never changes it.

import "./metric-chart.js";
import { debounced, h, setText } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { RunElement } from "../lib/run-feed.js";
import { get } from "../lib/api.js";

const AXES = () => ({ step: t("Step"), tokens: t("Tokens"), time: t("Seconds of training"), flops: t("FLOPs") });
//: the loss has its raw points behind the smooth line, and the held-out loss at its own sparse steps
const CHARTS = () => [
  { name: "loss", label: t("Loss"), keys: ["loss", "loss", "eval_loss"], logs: true, series: [
    { label: t("each step"), color: "curve-1", faint: true }, { label: t("training loss"), color: "curve-1" },
    { label: t("held-out loss"), color: "curve-2", dots: true }] },
  { name: "speed", label: t("Speed, tokens per second"), keys: ["tokens_per_s", "tokens_per_s"], series: [
    { label: t("each step"), color: "curve-3", faint: true }, { label: t("speed"), color: "curve-3" }] },
  { name: "learning-rate", label: t("Learning rate"), keys: ["lr"], series: [{ label: t("learning rate"), color: "curve-4" }] },
  { name: "gradient-norm", label: t("Gradient norm"), keys: ["grad_norm", "grad_norm"], logs: true, series: [
    { label: t("each step"), color: "curve-2", faint: true }, { label: t("gradient norm"), color: "curve-2" }] },
];

class RunCharts extends RunElement {
  follow(feed) {
    const isFirst = !this.charts;
    if (isFirst) this.#build();
    this.marks = [];
    const view = this.#fromAddress();
    if (!isFirst && view.range) { // a part of another run's curve
      view.range = null;
      const url = new URL(location.href);
      for (const name of ["from", "to"]) url.searchParams.delete(name);
      history.replaceState(null, "", url);
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
    this.charts = CHARTS().map((about) => {
      const chart = document.createElement("metric-chart");
      chart.className = "card";
      chart.setup(about);
      return chart;
    });
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
      h("div.charts", {}, ...this.charts));
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
    const url = new URL(location.href);
    const set = (name, value) => (value === null ? url.searchParams.delete(name) : url.searchParams.set(name, value));
    set("x", axis === "step" ? null : axis);
    set("smooth", smoothing === 0.8 ? null : String(smoothing));
    set("log", isLog ? "1" : null);
    set("from", range ? String(range[0]) : null);
    set("to", range ? String(range[1]) : null);
    history.replaceState(null, "", url);
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
    for (const chart of this.charts) {
      const { keys, logs, series } = chart.about;
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
                          marks: marks.filter((mark) => mark !== null), series });
    }
    if (feed.isLoaded && !feed.isLoading) setText(this.status, "");
  }
}

customElements.define("run-charts", RunCharts);
