// One chart: uPlot behind an element of our own, with what a canvas lacks: words for a screen reader, a cursor for the
// keyboard, a table of the numbers, colours of the page's theme.

import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { drawLine, drawMarks } from "../lib/chart-drawing.js";
import { aligned, csv, extent, widened } from "../lib/curves.js";
import { h, saveAs, setText } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { KINDS } from "../lib/run-curves.js";

const HEIGHT = 230;
const TABLE_ROWS = 200;
const cursors = uPlot.sync("run");

class MetricChart extends HTMLElement {
  /**
   * @param about {{name: string, label: string, help?: string, kind?: string, line?: {at: number, label: string},
   *   series: {label: string, color: string, faint?: boolean, dots?: boolean}[]}} `color` is the name of a token
   *   without its dashes, `kind` one of KINDS, `line` a value to compare with
   */
  setup(about) {
    this.about = about;
    this.kind = KINDS[about.kind ?? "plain"];
    this.where = h("span");
    this.values = h("span.chart-values.number", {}, this.where, ...this.#legend());
    this.plot = h("div.chart-plot", { tabindex: "0", role: "group", "aria-roledescription": t("chart"), "aria-label": about.label });
    this.spoken = h("p.visually-hidden", { "aria-live": "polite" });
    this.note = h("p.chart-note.muted.small");
    this.table = h("details.chart-table", {}, h("summary", {}, t("Numbers")));
    this.table.addEventListener("toggle", () => this.#fillTable());
    this.replaceChildren(
      h("figure", {},
        h("figcaption.card-head", {}, h("h3", {}, about.label), this.values),
        about.help ? h("p.chart-help.small.muted", {}, about.help) : null,
        this.plot, this.spoken,
        h("div.chart-foot", {}, this.note, this.#exports()), this.table));
    this.plot.addEventListener("keydown", (event) => this.#key(event));
    this.data = [[], ...about.series.map(() => [])];
  }

  connectedCallback() {
    this.resizing = new ResizeObserver(() => this.#resize());
    this.resizing.observe(this);
    this.recolour = () => this.#rebuild();
    document.addEventListener("themechange", this.recolour);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.scheme.addEventListener("change", this.recolour);
  }

  disconnectedCallback() {
    this.resizing.disconnect();
    document.removeEventListener("themechange", this.recolour);
    this.scheme.removeEventListener("change", this.recolour);
    if (this.chart) cursors.unsub(this.chart);
    this.chart?.destroy();
    this.chart = null;
  }

  /**
   * @param parts one `{x, values}` per series
   * @param view {{isLog: boolean, axisLabel: string, range: [number, number] | null, marks: number[], note: string}}
   */
  draw(parts, view) {
    this.data = aligned(parts);
    const redo = !this.chart || this.view.isLog !== view.isLog || this.view.axisLabel !== view.axisLabel;
    this.view = view;
    if (redo) this.#rebuild();
    else this.chart.setData(this.data);
    setText(this.note, view.note);
    this.#showValues(null);
    if (this.table.open) this.#fillTable();
  }

  #rebuild() {
    if (!this.isConnected || !this.view) return;
    if (this.chart) cursors.unsub(this.chart);
    this.chart?.destroy();
    const ink = colourOf(this, "text-muted");
    const grid = { stroke: colourOf(this, "line"), width: 1 };
    const { isLog } = this.view;
    const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui, sans-serif" };
    this.chart = new uPlot({
      width: Math.max(200, this.plot.clientWidth),
      height: HEIGHT,
      legend: { show: false },
      cursor: { sync: { key: cursors.key, setSeries: false, filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } }, drag: { x: true, y: false, setScale: false }, points: { size: 7 } },
      scales: {
        x: { time: false, range: (u, low, high) => widened(...(this.view.range ?? [low, high])) },
        y: { distr: isLog ? 3 : 1, range: (u) => extent(u.data.slice(1), isLog, u.series[0].idxs ?? undefined, this.kind) },
      },
      axes: [
        { ...axis, size: 34, space: 70, values: (u, ticks) => ticks.map((tick) => axisNumber(tick)) },
        { ...axis, size: 66, values: (u, ticks) => ticks.map((tick) => (tick === null ? "" : this.kind.write(tick))) },
      ],
      series: [{}, ...this.about.series.map((series) => this.#series(series))],
      hooks: {
        setSelect: [(u) => this.#select(u)],
        setCursor: [(u) => this.#showValues(u.cursor.idx)],
        draw: [(u) => drawMarks(u, this.view.marks, colourOf(this, "good")), (u) => drawLine(u, this.about.line, ink)],
      },
    }, this.data, this.plot);
    cursors.sub(this.chart);
    this.chart.over.addEventListener("dblclick", () => this.#zoom(null));
    this.chart.over.addEventListener("click", () => this.#pick());
  }

  #series({ color, faint, dots }) {
    const stroke = colourOf(this, color);
    const points = dots ? { show: true, size: 6, fill: stroke } : { show: (u) => u.data[0].length < 3, size: 5 };
    return { stroke, width: faint ? 1 : 2, alpha: faint ? 0.35 : 1, points, spanGaps: false };
  }

  #resize() {
    const width = this.plot?.clientWidth ?? 0;
    if (this.chart && width > 0 && width !== this.chart.width) this.chart.setSize({ width, height: HEIGHT });
  }

  #select(u) {
    if (u.select.width < 6) return;
    this.#zoom([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  }

  #zoom(range) {
    this.dispatchEvent(new CustomEvent("zoom", { bubbles: true, detail: range }));
  }

  #pick() {
    const index = this.chart.cursor.idx;
    if (index !== null && index !== undefined) {
      this.dispatchEvent(new CustomEvent("pick", { bubbles: true, detail: this.data[0][index] }));
    }
  }

  /** What each line is, with its colour where there are several, and the place for its value. */
  #legend() {
    const shown = this.about.series.map((series, place) => ({ ...series, place })).filter((series) => !series.faint || this.about.series.length === 1);
    this.shown = shown.map(({ label, color, place }) => ({ place, value: h("span"), label, color }));
    return this.shown.map(({ label, color, value }) => h("span.chart-value", {},
      shown.length > 1 ? h("span.swatch", { "data-color": color, "aria-hidden": "true" }) : null, `${label} `, value));
  }

  #showValues(index) {
    const isAt = index !== null && index !== undefined;
    setText(this.where, isAt ? `${this.view?.axisLabel} ${integer(this.data[0][index])}: ` : "");
    for (const { place, value } of this.shown) setText(value, this.#cell(valueAt(this.data[place + 1], index)));
  }

  #cell(value) {
    return value === null ? t("not finite") : this.kind.write(value);
  }

  #key(event) {
    if (!this.chart || this.data[0].length === 0) return;
    const last = this.data[0].length - 1;
    const now = this.chart.cursor.idx ?? last;
    const jump = event.shiftKey ? Math.max(1, Math.round(last / 20)) : 1;
    const moves = { ArrowLeft: now - jump, ArrowRight: now + jump, Home: 0, End: last };
    if (event.key in moves) {
      const index = Math.min(last, Math.max(0, moves[event.key]));
      this.chart.setCursor({ left: this.chart.valToPos(this.data[0][index], "x"), top: 10 });
      setText(this.spoken, this.values.textContent);
    } else if (event.key === "+" || event.key === "-") {
      const [low, high] = this.view.range ?? [this.data[0][0], this.data[0][last]];
      const half = ((high - low) / 2) * (event.key === "+" ? 0.5 : 2);
      const isAll = half * 2 >= this.data[0][last] - this.data[0][0] && event.key === "-" && this.view.range === null;
      if (half > 0) this.#zoom(isAll || half > 1e15 ? null : [this.data[0][now] - half, this.data[0][now] + half]);
    } else if (event.key === "Escape" || event.key === "0") this.#zoom(null);
    else if (event.key === "Enter") this.#pick();
    else return;
    event.preventDefault();
  }

  #exports() {
    return h("span.row", {},
      h("button.button.quiet.tiny", { type: "button", onclick: () => this.#savePicture(), "aria-label": t("PNG: save %(chart)s as a picture", { chart: this.about.label }) }, "PNG"),
      h("button.button.quiet.tiny", { type: "button", onclick: () => this.#saveTable(), "aria-label": t("CSV: save %(chart)s as a table", { chart: this.about.label }) }, "CSV"));
  }

  #saveTable() {
    saveAs(`${this.about.name}.csv`, csv([this.view.axisLabel, ...this.about.series.map((s) => s.label)], this.data), "text/csv");
  }

  #savePicture() {
    const source = this.chart.ctx.canvas;
    const picture = h("canvas", { width: source.width, height: source.height });
    const ctx = picture.getContext("2d");
    ctx.fillStyle = colourOf(this, "surface-raised");
    ctx.fillRect(0, 0, picture.width, picture.height);
    ctx.drawImage(source, 0, 0);
    picture.toBlob((blob) => saveAs(`${this.about.name}.png`, blob));
  }

  /** The newest rows; a table of everything would help nobody, the CSV has it. */
  #fillTable() {
    if (!this.table.open) return;
    const heads = [this.view.axisLabel, ...this.about.series.map((series) => series.label)];
    const rows = [];
    for (let index = this.data[0].length - 1; index >= 0 && rows.length < TABLE_ROWS; index--) {
      rows.push(h("tr", {}, h("th", { scope: "row" }, axisNumber(this.data[0][index])),
        ...this.about.series.map((_, place) => h("td", {}, this.data[place + 1][index] === undefined ? "" : this.#cell(this.data[place + 1][index])))));
    }
    const table = h("table.table", {}, h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, ...rows));
    this.table.replaceChildren(this.table.querySelector("summary"), h("div.table-wrap", { tabindex: "0", role: "group", "aria-label": this.about.label }, table));
  }
}

customElements.define("metric-chart", MetricChart);

/** The value at the cursor; without one the newest. A sparse curve answers with its last point before the place. */
function valueAt(column, index) {
  for (let place = index ?? column.length - 1; place >= 0; place--) if (column[place] !== undefined) return column[place];
  return undefined;
}

function axisNumber(value) {
  if (value === null) return "";
  return Math.abs(value) >= 1e6 ? value.toExponential(1).replace("e+", "e") : integer(value);
}

/** A token as a canvas understands it: canvas knows no light-dark(). */
function colourOf(element, token) {
  const probe = h("span", { hidden: true });
  probe.style.color = `var(--${token})`;
  element.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}
