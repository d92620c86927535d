// <token-view>: an answer as its tokens, each in the colour of its probability. One stop of the Tab key; arrows go from
// token to token, and the one under the pointer, the finger or the focus shows what else could have stood there.

import { h } from "../lib/dom.js";
import { integer, short } from "../lib/format.js";
import { t, tn } from "../lib/i18n.js";
import { alternatives, chanceOf, chanceWords, nameOf, rankOf, readable, STEP_COUNT, stepOf, summary } from "../lib/token-chances.js";
import { pieces, spoken } from "../lib/tokens.js";

let made = 0; // so that every card has its own id

class TokenView extends HTMLElement {
  /** @param {{token, logprob, bytes, top_logprobs}[]} tokens may grow from call to call: what stands already stays */
  show(tokens) {
    if (!this.list) this.#build();
    const groups = readable(tokens);
    const same = this.groups.findIndex((group, place) => (
      group.text !== groups[place]?.text || group.tokens[0] !== groups[place].tokens[0]));
    const kept = same < 0 ? this.groups.length : same;
    for (const chip of this.chips.splice(kept)) {
      if (chip.nextSibling?.nodeName === "BR") chip.nextSibling.remove();
      chip.remove();
    }
    this.groups = groups;
    const added = groups.slice(kept).map((group, place) => chipOf(group, kept + place));
    this.chips.push(...added.map(([chip]) => chip));
    this.list.append(...added.flat());
    if (this.chips[0] && !this.list.querySelector('[tabindex="0"]')) this.chips[0].tabIndex = 0;
    this.sum.textContent = sumWords(summary(tokens), tokens.length);
  }

  #build() {
    this.groups = [];
    this.chips = [];
    this.sum = h("p.small.muted.number");
    this.list = h("div.chances", { role: "listbox", "aria-label": t("Tokens of the answer"), "aria-orientation": "horizontal" });
    made += 1;
    this.card = h("div.chance-card", { id: `chance-card-${made}`, hidden: true });
    this.replaceChildren(this.#legend(), this.list, this.card, this.sum);
    this.list.addEventListener("pointerover", (event) => this.#tell(event.target.closest(".chance")));
    this.list.addEventListener("pointerleave", () => this.#tell(this.#focused()));
    this.list.addEventListener("focusin", (event) => this.#focus(event.target.closest(".chance")));
    this.list.addEventListener("focusout", () => this.#tell(null));
    this.list.addEventListener("keydown", (event) => this.#move(event));
  }

  #legend() {
    const swatches = Array.from({ length: STEP_COUNT }, (_, place) => h(`span.chance.chance-${place}`, { "aria-hidden": "true" }, "·"));
    return h("p.chance-legend.small.muted", {}, t("surprising"), h("span.chance-swatches", {}, ...swatches), t("expected"),
             h("span", {}, t("Point at a token, or go there with the arrow keys: what else could have stood there?")));
  }

  #focused() {
    return this.list.contains(document.activeElement) ? document.activeElement.closest(".chance") : null;
  }

  #focus(chip) {
    const old = this.list.querySelector('[tabindex="0"]');
    if (old) old.tabIndex = -1;
    chip.tabIndex = 0;
    this.#tell(chip);
  }

  #move(event) {
    const place = this.chips.indexOf(document.activeElement);
    const next = { ArrowRight: place + 1, ArrowLeft: place - 1, ArrowDown: this.#below(place, 1), ArrowUp: this.#below(place, -1),
                   Home: 0, End: this.chips.length - 1 }[event.key];
    if (event.key === "Escape" && !this.card.hidden) {
      event.stopPropagation();
      this.#tell(null);
    }
    if (place < 0 || next === undefined) return;
    event.preventDefault();
    this.chips[Math.max(0, Math.min(this.chips.length - 1, next))].focus();
  }

  /** The token on the next line (or the one before) that stands nearest below this one. */
  #below(place, direction) {
    const at = this.chips[place]?.getBoundingClientRect();
    if (!at) return place;
    const aside = (other) => Math.abs(this.chips[other].getBoundingClientRect().left - at.left);
    let found = place;
    let line = null;
    for (let other = place + direction; this.chips[other]; other += direction) {
      const box = this.chips[other].getBoundingClientRect();
      if (Math.abs(box.top - at.top) < at.height / 2) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) > at.height / 2) break;
      if (found === place || aside(other) < aside(found)) found = other;
    }
    return found;
  }

  /** The card about a token below it, kept inside the view; null takes it away. */
  #tell(chip) {
    this.told?.removeAttribute("aria-describedby");
    this.told = chip;
    this.card.hidden = !chip;
    if (!chip) return;
    chip.setAttribute("aria-describedby", this.card.id);
    this.card.replaceChildren(...this.groups[Number(chip.dataset.index)].tokens.flatMap(cardOf));
    const [frame, box] = [this.getBoundingClientRect(), chip.getBoundingClientRect()];
    this.card.style.left = `${Math.max(0, Math.min(box.left - frame.left, frame.width - this.card.offsetWidth))}px`;
    this.card.style.top = `${box.bottom - frame.top + 4}px`;
  }
}

/** The chip of a group, and a line's end where its text has one. */
function chipOf({ text, tokens, chance }, place) {
  const step = stepOf(chance);
  const signs = pieces(text);
  const rank = tokens.length === 1 ? rankOf(tokens[0]) : null;
  const label = [spoken({ text }), chanceWords(chance), rank ? t("choice %(rank)s", { rank }) : null].filter(Boolean).join(", ");
  const chip = h(`span.chance${step === null ? "" : `.chance-${step}`}`, {
    role: "option", tabindex: "-1", "data-index": place, "aria-label": label }, ...signsOf(text));
  return signs.some((part) => part.breaks) ? [chip, h("br")] : [chip];
}

/** What a card says of one token. */
function cardOf(token) {
  const rank = rankOf(token);
  const words = rank ? t("Choice %(rank)s of the model", { rank: integer(rank) })
    : token.top_logprobs?.length ? t("Not among the %(count)s likeliest", { count: integer(token.top_logprobs.length) }) : "";
  const others = alternatives(token);
  const bars = others.map(({ token: text, chance, isChosen }) => h(`li${isChosen ? ".is-chosen" : ""}`, {},
    h("span.chance-name.mono", {}, ...signsOf(text), isChosen ? h("span.visually-hidden", {}, " (", t("chosen"), ")") : null),
    h("progress", { max: 1, value: chance ?? 0, "aria-hidden": "true" }), h("span.number", {}, chanceWords(chance))));
  const chance = h("span.number", {}, chanceWords(chanceOf(token.logprob)));
  return [h("p.chance-head", {}, h("strong.mono", {}, ...signsOf(nameOf(token))), " ", chance),
          words && h("p.small.muted", {}, words), others.length > 1 && h("ol", {}, ...bars)].filter(Boolean);
}

function signsOf(text) {
  const signs = pieces(text);
  const shown = signs.map((part) => (part.isSign ? h("span.blank", {}, part.text) : part.text));
  return shown.length ? shown : [h("span.blank", {}, "∅")];
}

/** How sure the model was of the whole answer. */
function sumWords(sum, count) {
  const tokens = tn("%(num)s token", "%(num)s tokens", count);
  if (!sum) return tokens;
  return [tokens, t("perplexity %(number)s", { number: short(sum.perplexity) }),
          t("mean log probability %(number)s", { number: short(sum.meanLogprob) })].join(" · ");
}

customElements.define("token-view", TokenView);
