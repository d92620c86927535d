// How long the first rows of a dataset are, as bars, with the same said in words.

import { get } from "../lib/api.js";
import { h, svg } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { histogram, median } from "../lib/tokens.js";

const ROWS_A_REQUEST = 100;
const REQUESTS = 3;
const [WIDTH, HEIGHT, GAP] = [100, 40, 0.4];

class DatasetLengths extends HTMLElement {
  connectedCallback() {
    this.controller = new AbortController();
    this.#load().catch(() => {}); // an extra: what is wrong with the rows, the rows themselves will say
  }

  disconnectedCallback() {
    this.controller.abort();
  }

  async #load() {
    const lengths = [];
    let isCut = false;
    for (let cursor = "0", request = 0; cursor !== null && request < REQUESTS; request++) {
      const page = await get(`/datasets/${this.getAttribute("dataset")}/preview?limit=${ROWS_A_REQUEST}&cursor=${cursor}`,
                             { signal: this.controller.signal });
      for (const row of page.items) {
        lengths.push(characters(row.row));
        isCut ||= row.is_cut;
      }
      cursor = page.next_cursor;
    }
    if (lengths.length > 1) this.#show(lengths, isCut);
  }

  #show(lengths, isCut) {
    const bars = histogram(lengths);
    const [least, most] = [Math.min(...lengths), Math.max(...lengths)];
    const rows = t("the first %(num)s rows", { num: integer(lengths.length) });
    const words = t("Of %(rows)s, half have at most %(median)s characters; the shortest has %(least)s, the longest %(most)s.", {
      rows, median: integer(median(lengths)), least: integer(least), most: integer(most) });
    const cut = isCut ? " " + t("Very long texts are counted up to where the preview cuts them.") : "";
    const list = bars.filter((bar) => bar.count).map((bar) => h("li", {}, bar.to === null
      ? t("%(from)s characters and more: %(count)s", { from: integer(bar.from), count: integer(bar.count) })
      : t("%(from)s to %(to)s characters: %(count)s", { from: integer(bar.from), to: integer(bar.to - 1), count: integer(bar.count) })));
    this.replaceChildren(h("details", {}, h("summary", {}, t("How long the rows are")),
      h("div.stack", {}, h("div", { "aria-hidden": "true" }, chart(bars), axis(bars)), h("p.small.muted", {}, words + cut),
        h("details.small", {}, h("summary", {}, t("As a list")), h("ul", {}, ...list)))));
    this.hidden = false;
  }
}

/** Bars from left to right; what they show stands below in words, so the picture itself is decoration. */
function chart(bars) {
  const tallest = Math.max(...bars.map((bar) => bar.count));
  const width = WIDTH / bars.length;
  const drawn = bars.map((bar, place) => svg("rect", {
    x: place * width + GAP / 2, width: width - GAP, y: HEIGHT - (HEIGHT * bar.count) / tallest, height: (HEIGHT * bar.count) / tallest }));
  return svg("svg", { class: "lengths", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" },
             ...drawn, svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }));
}

function axis(bars) {
  const last = bars.at(-1);
  return h("p.lengths-axis.small.muted", {}, h("span", {}, integer(bars[0].from)),
           h("span", {}, last.to === null ? t("%(from)s characters and more", { from: integer(last.from) }) : t("%(to)s characters", { to: integer(last.to) })));
}

/** Characters that people see in a row: its text, or what is said in its conversation. */
function characters(row) {
  if (typeof row.text === "string") return [...row.text].length;
  const messages = row.conversations ?? row.chosen ?? [];
  return messages.reduce((sum, message) => sum + [...String(message.content ?? ""), ...String(message.reasoning_content ?? "")].length, 0);
}

customElements.define("dataset-lengths", DatasetLengths);
