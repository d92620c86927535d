// What the studio recognises in a chosen file before it is sent: its layout, its first rows as training would read them,
// and, where that is not right or not certain, which column means what.

import { post } from "../lib/api.js";
import { columnName, columnsOf, encodingName, layoutName, mappingOf, sayChoice, toChoice } from "../lib/data-layouts.js";
import { h } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t, tn } from "../lib/i18n.js";
import { problemNotice } from "./dataset-problems.js";
import { rowElement } from "./dataset-rows.js";

const SENT_BYTES = 2 ** 20; // the beginning says enough
const MAX_ARCHIVE_BYTES = 32 * 2 ** 20; // a zip is sent whole: the list of its files stands at its end

class UploadPreview extends HTMLElement {
  #asked = null; // the request that is on its way
  #known = null; // what was recognised last
  #words = {}; // placeholder -> what stands in its place

  /** The mapping that the upload should say; null where the studio finds everything out by itself. */
  get mapping() {
    return this.#known?.said ?? null;
  }

  clear() {
    this.#asked?.abort();
    this.#asked = null;
    this.#known = null;
    this.#words = {};
    this.hidden = true;
    this.replaceChildren();
  }

  /** Look at `file`. `layout`: as the form says; `mapping`: what a user has said of its columns. */
  async look(file, layout, mapping = null) {
    this.#asked?.abort();
    const asked = (this.#asked = new AbortController());
    this.hidden = false;
    if (!this.#known) this.replaceChildren(h("p.small.muted", { role: "status" }, t("Looking at the file…")));
    this.setAttribute("aria-busy", "true");
    try {
      const isArchive = /\.zip$/i.test(file.name);
      if (isArchive && file.size > MAX_ARCHIVE_BYTES) {
        this.replaceChildren(h("p.small.muted", {}, t("A zip of this size is looked into when it is imported.")));
        return;
      }
      let found = await inspect(file, layout, mapping, isArchive, asked.signal);
      if (!found.is_certain && mapping === null && found.mapping.layout) {
        const proposal = found;
        mapping = found.mapping; // a proposal: shown as it would be read, to be confirmed by sending it
        found = { ...(await inspect(file, "auto", mapping, isArchive, asked.signal)), is_proposal: true };
        if (!found.rows.length) found = proposal;
      } else {
        found.is_proposal = this.#known?.found.is_proposal ?? false;
      }
      this.#known = { found, said: mapping, file, layout };
      this.#show();
    } catch (error) {
      if (error.name === "AbortError") return;
      this.replaceChildren(problemNotice(error)); // what cannot be looked at may still be imported
    } finally {
      if (this.#asked === asked) this.removeAttribute("aria-busy");
    }
  }

  #show() {
    const { found } = this.#known;
    const open = this.querySelector("details:not(.look)[open]") !== null;
    const focused = this.contains(document.activeElement) ? document.activeElement.name : null;
    const rows = found.rows.map((row, place) => rowElement(row, place + 1, false, found.canonical));
    const parts = [h("p", { role: "status" }, h("strong", {}, this.#summary())), ...found.problems.map((problem) => problemNotice(problem)),
                   ...found.warnings.map((warning) => h("div.notice.warn", {}, h("p", {}, warning)))];
    if (found.is_proposal && found.rows.length) {
      parts.push(h("div.notice.info", {}, h("p", {}, t("The columns of this file are not known. Is this what they mean?"))));
    }
    parts.push(...this.#columns(open || found.is_proposal || !found.layout || found.problems.some((p) => p.field?.startsWith("mapping"))));
    if (rows.length) {
      parts.push(h("details.look", { open: true }, h("summary", {}, t("The first rows, as training reads them")),
                   h("ol.preview-rows.stack", { tabindex: "0", "aria-label": t("The first rows") }, ...rows)));
    }
    this.replaceChildren(...parts);
    if (focused) this.querySelector(`[name="${CSS.escape(focused)}"]`)?.focus();
  }

  #summary() {
    const { layout, canonical, counted, encoding, container } = this.#known.found;
    if (!layout) return t("The layout of this file is not known.");
    const words = [layoutName(layout)];
    if (counted !== null) words.push(tn("%(num)s row", "%(num)s rows", counted));
    if (container) words.push(container);
    if (encoding) words.push(encodingName(encoding));
    const becomes = { text: t("read as texts"), txt: t("read as texts"), conversations: t("read as conversations"), dpo: t("read as preference pairs") };
    if (layout !== canonical) words.push(becomes[canonical]);
    return words.join(" · ");
  }

  /** The words for placeholders and the selects of columns, where there are any. */
  #columns(isOpen) {
    const { found } = this.#known;
    const names = found.columns;
    const isOurs = found.layout === "text" && !found.mapping.text; // rows of our own have nothing to choose
    const selects = names.length && !isOurs ? columnsOf(found.layout).map(({ key, isNeeded }) => this.#select(key, isNeeded, names)) : [];
    const placeholders = [...new Set([...found.placeholders, ...Object.keys(this.#words)])];
    const words = placeholders.map((name, place) => field(`word-${place}`, t("In the place of %(name)s", { name }),
      h("input", { id: `upload-word-${place}`, name: `word-${place}`, maxlength: 200, autocomplete: "off", value: this.#words[name] ?? "",
                   onchange: (event) => this.#replace(name, event.target.value.trim()) })));
    return [
      words.length ? h("div.stack", {}, h("p", {}, t("The rows hold placeholders. What should stand there instead?")), h("div.fields", {}, ...words)) : null,
      selects.length ? h("details", { open: isOpen }, h("summary", {}, t("What the columns mean")), h("div.fields", {}, ...selects)) : null,
    ].filter(Boolean);
  }

  #select(key, isNeeded, names) {
    const chosen = toChoice(this.#known.found.mapping[key]);
    const values = [...new Set([...(isNeeded && chosen ? [] : [""]), ...(chosen ? [chosen] : []), ...names])];
    const select = h("select", { id: `upload-column-${key}`, name: `column-${key}`, onchange: (event) => this.#choose(key, event.target.value) },
      ...values.map((value) => h("option", { value, selected: value === chosen }, value ? sayChoice(value) : t("none"))));
    return field(`column-${key}`, columnName(key), select);
  }

  #choose(key, value) {
    this.#again({ [key]: value });
  }

  #replace(name, word) {
    this.#words[name] = word;
    this.#again({});
  }

  #again(chosen) {
    const { found, file, layout } = this.#known;
    this.look(file, layout, mappingOf(found.mapping, chosen, this.#words));
    this.dispatchEvent(new CustomEvent("mappingchange", { bubbles: true }));
  }
}

function field(name, label, input) {
  return h("div.field", {}, h("label", { for: input.id }, label), input, h("p.field-error", { role: "alert", "data-error-of": name }));
}

function inspect(file, layout, mapping, isArchive, signal) {
  const isPartial = !isArchive && file.size > SENT_BYTES;
  const body = new FormData();
  if (mapping) body.append("mapping", JSON.stringify(mapping));
  else body.append("layout", layout);
  body.append("is_partial", String(isPartial));
  body.append("file", isPartial ? file.slice(0, SENT_BYTES) : file, file.name);
  return post("/datasets/inspect", body, { signal });
}

customElements.define("upload-preview", UploadPreview);
