// Pages of a dataset's rows, as text or as the tokens that training reads. Which view, tokenizer and page is shown
// stands in the address, so that it can be sent to somebody.

import { get } from "../lib/api.js";
import { h, setText } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { counted, countedWords } from "../lib/tokens.js";
import { problemNotice } from "./dataset-problems.js";
import { rowElement } from "./dataset-rows.js";

const ROWS_A_PAGE = 10;
const TRY_AGAIN_MS = 2000;

class DatasetPreview extends HTMLElement {
  connectedCallback() {
    const find = (name) => this.querySelector(name);
    this.parts = { list: find("[data-rows]"), problem: find("[data-problem]"), loading: find("[data-loading]"),
                   pager: find("[data-pager]"), place: find("[data-place]"), tools: find("[data-tokens-tools]"),
                   legend: find("[data-legend]"), pageCount: find("[data-page-count]"), counted: find("[data-counted]"),
                   choice: find("#tokenizer-choice"), count: find("[data-count]"), hasChoices: find("[data-if-choices]"),
                   noChoices: find("[data-if-no-choices]") };
    this.datasetId = this.getAttribute("dataset");
    this.total = Number(this.getAttribute("rows"));
    this.#readAddress();
    this.addEventListener("click", ({ target }) => this.#click(target.closest("button")));
    this.parts.choice.addEventListener("change", () => this.#chosen());
    this.onReady = ({ detail }) => this.#offer(detail);
    document.addEventListener("tokenizerready", this.onReady);
    this.#load();
  }

  disconnectedCallback() {
    document.removeEventListener("tokenizerready", this.onReady);
    this.controller?.abort();
    clearTimeout(this.timer);
  }

  #readAddress() {
    const asked = new URLSearchParams(location.search);
    this.view = asked.get("view") === "tokens" ? "tokens" : "text";
    const from = Number.parseInt(asked.get("row") ?? "1", 10);
    this.from = Number.isSafeInteger(from) && from > 0 && from <= this.total ? from - 1 : 0;
    const { choice } = this.parts;
    if ([...choice.options].some((option) => option.value === asked.get("with"))) choice.value = asked.get("with");
  }

  #writeAddress() {
    const url = new URL(location.href);
    const set = (name, value) => (value ? url.searchParams.set(name, value) : url.searchParams.delete(name));
    set("view", this.view === "tokens" ? "tokens" : "");
    set("with", this.view === "tokens" ? this.parts.choice.value : "");
    set("row", this.from ? String(this.from + 1) : "");
    history.replaceState(history.state, "", url);
  }

  get #wantsTokens() {
    return this.view === "tokens" && this.parts.choice.value !== "";
  }

  async #load() {
    this.controller?.abort();
    clearTimeout(this.timer);
    const controller = (this.controller = new AbortController());
    this.#showTools();
    this.#writeAddress();
    const { list, problem, loading } = this.parts;
    list.setAttribute("aria-busy", "true");
    const query = new URLSearchParams({ limit: ROWS_A_PAGE, cursor: this.from });
    if (this.#wantsTokens) query.set(...this.parts.choice.value.split(":"));
    try {
      const { items, next_cursor: next } = await get(`/datasets/${this.datasetId}/preview?${query}`, { signal: controller.signal });
      problem.replaceChildren();
      this.#show(items, next);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === 0) this.timer = setTimeout(() => this.#load(), TRY_AGAIN_MS); // the rows that are shown stay
      else list.replaceChildren();
      problem.replaceChildren(problemNotice(error, h("button.button", { type: "button", onclick: () => this.#load() }, t("Try again"))));
    }
    loading.hidden = true;
    list.setAttribute("aria-busy", "false");
  }

  #showTools() {
    const { tools, legend, hasChoices, noChoices, choice, count } = this.parts;
    for (const button of this.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-pressed", String(button.dataset.view === this.view));
    }
    tools.hidden = this.view !== "tokens";
    hasChoices.hidden = !choice.options.length;
    noChoices.hidden = Boolean(choice.options.length);
    legend.hidden = !this.#wantsTokens;
    // only tokenizers that stand by themselves can count; one inside a checkpoint cannot
    count.hidden = !choice.value.startsWith("tokenizer:");
    if (choice.value && count.hidden) setText(this.parts.counted, t("This one belongs to a checkpoint. To count all tokens, choose a tokenizer."));
  }

  #show(rows, next) {
    this.shownFrom = this.from;
    const { list, pager, place, pageCount } = this.parts;
    list.replaceChildren(...rows.map((row, index) => rowElement(row, this.from + index + 1, this.#wantsTokens,
                                                              this.getAttribute("layout"))));
    if (this.#wantsTokens) setText(pageCount, countedWords(counted(rows), rows.some((row) => row.tokens_cut)));
    pager.hidden = this.from === 0 && next === null;
    this.querySelector('[data-go="previous"]').disabled = this.from === 0;
    this.querySelector('[data-go="next"]').disabled = next === null;
    setText(place, t("Rows %(from)s to %(to)s of %(total)s", {
      from: integer(this.from + 1), to: integer(this.from + rows.length), total: integer(this.total) }));
  }

  #click(button) {
    if (!button) return;
    const { view, go } = button.dataset;
    if (view && view !== this.view) {
      this.view = view;
      this.#load();
    } else if (go) {
      this.from = Math.max(0, this.shownFrom + (go === "next" ? ROWS_A_PAGE : -ROWS_A_PAGE));
      this.#load();
      this.querySelector("h2").scrollIntoView({ block: "start" });
    } else if (button === this.parts.count) this.#count(button);
  }

  #chosen() {
    setText(this.parts.counted, "");
    this.#load();
  }

  /** A tokenizer that was just learnt here is what the reader wants to see. */
  #offer(tokenizer) {
    const value = `tokenizer:${tokenizer.id}`;
    const size = t("%(size)s tokens", { size: integer(tokenizer.vocab_size) });
    this.parts.choice.prepend(h("option", { value }, `${tokenizer.name} · ${size}`));
    this.parts.choice.value = value;
    this.view = "tokens";
    this.#chosen();
  }

  async #count(button) {
    const { choice } = this.parts;
    const chosen = choice.value;
    button.setAttribute("aria-busy", "true");
    button.disabled = true;
    setText(this.parts.counted, t("Counting…"));
    try {
      const id = chosen.slice("tokenizer:".length);
      const { tokens, is_exact: isExact } = await get(`/datasets/${this.datasetId}/tokens?tokenizer=${encodeURIComponent(id)}`);
      if (choice.value === chosen) {
        setText(this.parts.counted, isExact ? t("%(number)s tokens in one pass over the data.", { number: integer(tokens) })
          : t("About %(number)s tokens in one pass, estimated from a part of the rows.", { number: integer(tokens) }));
      }
      if (isExact) setText(document.querySelector("[data-token-count]"), integer(tokens));
    } catch (error) {
      setText(this.parts.counted, `${error.message} ${error.hint}`.trim());
    } finally {
      button.disabled = false;
      button.removeAttribute("aria-busy");
    }
  }
}

customElements.define("dataset-preview", DatasetPreview);
