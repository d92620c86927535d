// The end of a run's log as it grows. Scrolls along only while the reader is at its end.

import { get } from "../lib/api.js";
import { h, saveAs, setText, throttled } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { RunElement } from "../lib/run-feed.js";

const MOST_LINES = 2000;
const PAGES_AT_ONCE = 50;
const NEAR_END_PX = 40;
const LOOK_AT_MOST_EVERY_MS = 1000;

class LogTail extends RunElement {
  follow() {
    if (!this.lines) this.#build();
    this.rank = 0;
    this.ranks.replaceChildren(h("option", { value: "0" }, t("Rank %(number)s", { number: 0 })));
    this.ranks.hidden = true;
    this.#clear();
    if (this.feed.run) this.#offerRanks(this.feed.run);
    const soon = throttled(() => this.#load(), LOOK_AT_MOST_EVERY_MS);
    this.on("any", soon);
    this.on("state", ({ detail }) => {
      this.#offerRanks(detail);
      soon(); // also after the studio was away
    });
    this.on("restart", soon);
    this.#load();
  }

  #build() {
    this.ranks = h("select.tiny-select", { "aria-label": t("Rank"), hidden: true, onchange: () => this.#choose() }, h("option", { value: "0" }, t("Rank %(number)s", { number: 0 })));
    this.lines = h("pre.log", { tabindex: "0", role: "log", "aria-live": "off", "aria-label": t("Log") });
    this.note = h("p.muted.small");
    this.replaceChildren(
      h("div.card-head", {}, h("h2", {}, t("Log")), h("span.row", {}, this.ranks,
        h("button.button.tiny", { type: "button", onclick: () => this.#save() }, t("Save")))),
      this.note, this.lines);
  }

  #clear() {
    this.generation = (this.generation ?? 0) + 1;
    this.cursor = null;
    this.attempt = null;
    this.texts = [];
    this.lines.replaceChildren();
    setText(this.note, t("Nothing yet."));
  }

  #choose() {
    this.rank = Number(this.ranks.value);
    this.#clear();
    this.#load();
  }

  #offerRanks(run) {
    const asked = run?.devices;
    const count = Array.isArray(asked) ? asked.length : asked?.count ?? 1;
    if (!Number.isInteger(count) || count < 2 || this.ranks.options.length === count) return;
    this.ranks.replaceChildren(...Array.from({ length: count }, (_, rank) => h("option", { value: String(rank) }, t("Rank %(number)s", { number: rank }))));
    this.ranks.value = String(this.rank);
    this.ranks.hidden = false;
  }

  async #load() {
    if (this.loading) return;
    const { feed, rank, generation } = this;
    this.loading = true;
    let isMore = false;
    try {
      for (let page = 0; page < PAGES_AT_ONCE; page++) {
        const query = new URLSearchParams({ rank: String(rank), ...(this.cursor ? { after: this.cursor } : {}) });
        const { items, next_cursor: next } = await get(`/runs/${feed.id}/logs?${query}`);
        if (this.generation !== generation) return;
        this.cursor = next;
        this.#append(items);
        if (!items.length) return;
      }
      isMore = true;
    } catch (error) {
      if (this.generation === generation) setText(this.note, `${error.message} ${error.hint}`);
    } finally {
      this.loading = false;
      if (this.feed && (isMore || this.generation !== generation)) this.#load();
    }
  }

  #append(items) {
    const box = this.lines;
    const follows = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END_PX;
    const fresh = document.createDocumentFragment();
    for (const { attempt, text } of items) {
      if (this.attempt !== null && attempt !== this.attempt) fresh.append(h("span.log-attempt", {}, t("attempt %(number)s", { number: attempt }), "\n"));
      this.attempt = attempt;
      this.texts.push(text);
      fresh.append(h("span", {}, `${text}\n`));
    }
    box.append(fresh);
    while (box.childElementCount > MOST_LINES) box.firstElementChild.remove();
    setText(this.note, this.texts.length === 0 ? t("Nothing yet.") : this.texts.length > MOST_LINES ? t("The newest %(count)s lines; Save has all of them.", { count: MOST_LINES }) : "");
    if (follows) box.scrollTop = box.scrollHeight;
  }

  #save() {
    saveAs(`run-${this.feed.id}-rank${this.rank}.log`, `${this.texts.join("\n")}\n`);
  }
}

customElements.define("log-tail", LogTail);
