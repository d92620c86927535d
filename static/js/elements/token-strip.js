// Tokens as a row of chips. One stop of the Tab key; arrows go from token to token, and the one under the pointer or
// the focus says its number and whether it is graded.

import { h } from "../lib/dom.js";
import { t, tn } from "../lib/i18n.js";
import { describe, pieces, spoken } from "../lib/tokens.js";

const SHOWN_AT_FIRST = 300;

class TokenStrip extends HTMLElement {
  /**
   * @param {{text: string, id: number, is_target: boolean, is_special: boolean, is_partial?: boolean}[]} tokens
   * `atFirst`: how many are shown before the reader asks for the rest
   */
  show(tokens, { label = t("Tokens"), isCut = false, atFirst = SHOWN_AT_FIRST } = {}) {
    this.tokens = tokens;
    this.list = h("div.tokens", { role: "listbox", "aria-label": label, "aria-orientation": "horizontal" });
    this.tip = h("span.token-tip", { "aria-hidden": "true", hidden: true });
    this.note = isCut ? h("p.small.muted", {}, t("There are more tokens than the studio sends at once.")) : null;
    this.replaceChildren(this.list, this.tip);
    this.#add(atFirst);
    if (!tokens.length) this.list.replaceWith(h("p.muted", {}, t("This row is too long to be shown as tokens.")));
    this.list.addEventListener("pointerover", (event) => this.#tell(event.target.closest(".token")));
    this.list.addEventListener("pointerleave", () => this.#tell(null));
    this.list.addEventListener("focusin", (event) => this.#tell(event.target.closest(".token")));
    this.list.addEventListener("focusout", () => this.#tell(null));
    this.list.addEventListener("keydown", (event) => this.#move(event));
  }

  #add(count) {
    const from = this.list.querySelectorAll(".token").length;
    const chips = this.tokens.slice(from, from + count).flatMap((token, place) => chip(token, from + place));
    this.list.append(...chips);
    const first = this.list.querySelector(".token");
    if (from === 0 && first) first.tabIndex = 0;
    const left = this.tokens.length - from - count;
    this.more?.remove();
    this.more = left > 0 ? h("button.button.tiny", { type: "button", onclick: () => this.#showRest(from + count) },
                             tn("Show %(num)s more token", "Show %(num)s more tokens", left)) : null;
    if (this.more) this.append(this.more);
    else if (this.note) this.append(this.note);
  }

  #showRest(from) {
    this.#add(Infinity);
    this.#goTo(this.list.querySelectorAll(".token")[from]);
  }

  #move(event) {
    const chips = [...this.list.querySelectorAll(".token")];
    const place = chips.indexOf(document.activeElement);
    const next = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1, Home: 0,
                   End: chips.length - 1 }[event.key];
    if (event.key === "Escape") this.#tell(null);
    if (place < 0 || next === undefined) return;
    event.preventDefault();
    this.#goTo(chips[Math.max(0, Math.min(chips.length - 1, next))]);
  }

  #goTo(token) {
    const old = this.list.querySelector('.token[tabindex="0"]');
    if (old) old.tabIndex = -1;
    token.tabIndex = 0;
    token.focus();
  }

  /** The words about a token beside it, kept inside the strip. */
  #tell(token) {
    if (!token) {
      this.tip.hidden = true;
      return;
    }
    this.tip.textContent = describe(this.tokens[Number(token.dataset.index)]);
    this.tip.hidden = false;
    const [frame, box] = [this.getBoundingClientRect(), token.getBoundingClientRect()];
    const left = Math.max(0, Math.min(box.left - frame.left, frame.width - this.tip.offsetWidth));
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${box.top - frame.top - this.tip.offsetHeight - 4}px`;
  }
}

/** The chip of one token, and a line's end where the text has one. */
function chip(token, place) {
  const parts = pieces(token.text);
  const shown = parts.map((part) => (part.isSign ? h("span.blank", {}, part.text) : part.text));
  const element = h("span.token", {
    role: "option", tabindex: "-1", "data-index": place, "data-target": token.is_target, "data-special": token.is_special,
    "aria-label": `${spoken(token)}, ${describe(token)}`,
  }, ...(shown.length ? shown : [h("span.blank", {}, token.is_partial ? "◌" : "∅")]));
  return parts.some((part) => part.breaks) ? [element, h("br")] : [element];
}

customElements.define("token-strip", TokenStrip);
