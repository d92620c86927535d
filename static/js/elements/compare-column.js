// <compare-column>: one model of a comparison: who it is, what it answers to every turn, how fast. Events: "compare-model"
// {model, adapter}, "compare-remove", "compare-retry".

import "./chat-message.js";
import { adaptersFor } from "../lib/conversation.js";
import { h, setText, throttled } from "../lib/dom.js";
import { integer, short } from "../lib/format.js";
import { t, tn } from "../lib/i18n.js";

const DRAWN_EVERY_MS = 100;

class CompareColumn extends HTMLElement {
  /** @param {HTMLSelectElement} menu of all models, this column's own copy. @param {Map} checkpoints by id */
  build(menu, checkpoints) {
    this.checkpoints = checkpoints;
    this.menu = menu;
    this.adapters = h("select.tiny-select", { "aria-label": t("Adapter over the model"), autocomplete: "off" });
    this.letter = h("span.compare-letter", {});
    this.removeButton = h("button.button.quiet.tiny", { type: "button", onclick: () => this.#tell("compare-remove") }, t("Remove"));
    this.choice = h("div.compare-choice", {}, menu, this.adapters, this.removeButton);
    this.name = h("h2.compare-name", {}, this.letter, h("span.wrap"));
    this.turns = h("div.compare-turns");
    this.foot = h("p.small.muted.number.compare-facts");
    this.problem = h("div");
    this.replaceChildren(h("header.compare-column-head", {}, this.name, this.choice), this.turns, this.problem, this.foot);
    menu.addEventListener("change", () => this.#tell("compare-model", { model: menu.value, adapter: null }));
    this.adapters.addEventListener("change", () => this.#tell("compare-model", { model: menu.value, adapter: this.adapters.value || null }));
    this.grow = throttled(() => this.#draw(), DRAWN_EVERY_MS);
    this.rows = [];
    return this;
  }

  /** @param {{column: object, letter: string, name: string, turns: string[], isHidden: boolean, isRemovable: boolean}} view */
  show(view) {
    const isOther = this.view?.column !== view.column;
    this.view = view;
    const { column, letter, name, isHidden, isRemovable } = view;
    if (isOther) {
      this.rows = [];
      this.turns.replaceChildren();
    }
    setText(this.letter, letter);
    setText(this.name.lastChild, isHidden ? t("Hidden until the vote") : name);
    this.setAttribute("role", "group");
    this.setAttribute("aria-label", t("Answer %(letter)s", { letter }));
    this.choice.hidden = isHidden;
    this.removeButton.hidden = !isRemovable;
    this.removeButton.setAttribute("aria-label", t("Remove model %(letter)s", { letter }));
    this.menu.setAttribute("aria-label", t("Model %(letter)s", { letter }));
    this.menu.value = isHidden ? "" : column.model;
    this.#chooseAdapter(isHidden ? null : column);
    this.#draw();
  }

  #chooseAdapter(column) {
    const model = this.checkpoints.get(column?.model);
    const adapters = model ? adaptersFor(model, [...this.checkpoints.values()]) : [];
    const named = ({ run_name: name, step }) => t("+ %(name)s, step %(step)s", { name, step: integer(step) });
    this.adapters.replaceChildren(h("option", { value: "" }, t("No adapter")),
                                  ...adapters.map((adapter) => h("option", { value: adapter.id }, named(adapter))));
    this.adapters.value = column?.adapter ?? "";
    this.adapters.hidden = adapters.length === 0;
  }

  #draw() {
    const { column, turns } = this.view;
    for (const extra of this.rows.splice(turns.length)) extra.remove();
    turns.forEach((turn, place) => {
      const row = (this.rows[place] ??= this.turns.appendChild(h("div.compare-turn", {},
        h("div.message.user", {}, h("span.visually-hidden", {}, t("You")), h("div.said.as-is")))));
      setText(row.firstChild.lastChild, turn);
      this.#answer(row, column.answers[place], place === turns.length - 1);
    });
    this.#problem(column);
    const answer = column.answers[turns.length - 1];
    setText(this.foot, answer && answer !== column.live && !this.view.isHidden ? this.#facts(answer).join(" · ") : "");
  }

  #answer(row, answer, isLast) {
    const old = row.children[1];
    if (!answer) {
      old?.remove();
      return;
    }
    const isLive = this.view.column.live === answer;
    const key = `${isLive} ${answer.content.length} ${answer.reasoning?.length ?? 0} ${answer.finish_reason}`;
    let shown = old;
    if (old?.answer !== answer) {
      shown = document.createElement("chat-message");
      shown.answer = answer;
      if (old) old.replaceWith(shown);
      else row.append(shown);
    } else if (old.key === key) return;
    shown.key = key;
    shown.show(answer, { plain: answer.mode === "text", model: "", isLast, isLive, isReadOnly: true, canGoOn: false, later: 0,
                         waiting: answer.content ? t("Writing…") : t("Waiting for the model…") });
  }

  #problem({ error, isStopped }) {
    const said = error ? error.message : isStopped ? t("Stopped.") : "";
    if (this.problem.dataset.said === said) return;
    this.problem.dataset.said = said;
    this.problem.replaceChildren(...(said ? [h(`div.notice.${error ? "bad" : "info"}`, error ? { role: "alert" } : {},
      h("div", {}, h("p", {}, said), error?.hint ? h("p.hint.small", {}, error.hint) : null),
      h("button.button.tiny", { type: "button", onclick: () => this.#tell("compare-retry") }, error ? t("Try again") : t("Answer again")))] : []));
  }

  #facts(answer) {
    const facts = [];
    if (answer.usage) facts.push(tn("%(num)s token", "%(num)s tokens", answer.usage.completion_tokens));
    const speed = answer.speed?.tokens_per_s ?? answer.tokensPerSecond;
    if (speed) facts.push(t("%(number)s tokens/s", { number: integer(speed) }));
    if (answer.firstMs !== null) facts.push(t("first after %(seconds)s s", { seconds: short(Math.round(answer.firstMs) / 1000) }));
    if (answer.finish_reason === "length") facts.push(t("cut off at its longest length"));
    facts.push(t("seed %(seed)s", { seed: answer.seed }));
    return facts;
  }

  #tell(name, detail = {}) {
    this.dispatchEvent(new CustomEvent(name, { bubbles: true, detail }));
  }
}

customElements.define("compare-column", CompareColumn);
