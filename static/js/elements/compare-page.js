// <compare-page data-view>: two to four models on one prompt, and a vote between two. What is asked and said is in
// lib/compare.js; here it is shown, and the address says who is compared.

import "./compare-column.js";
import "./compare-settings.js";
import "./compare-vote.js";
import { newKey, post, remove } from "../lib/api.js";
import { Column, Comparison, FEWEST, MOST } from "../lib/compare.js";
import { dataOf, isComposing, setText, throttled } from "../lib/dom.js";
import { EntryStorage, onLeave } from "../lib/entry-storage.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { completion } from "../lib/sse.js";
import { toastError } from "./toast-stack.js";

const LETTERS = ["A", "B", "C", "D"];
const NEAR_END_PX = 80;
const FOLLOWED_EVERY_MS = 150;
const KEPT_EVERY_MS = 500;
const isTouched = () => matchMedia("(pointer: coarse)").matches; // there a field with the focus opens the keyboard

class ComparePage extends HTMLElement {
  connectedCallback() {
    const view = dataOf(this, "view");
    this.checkpoints = new Map(view.checkpoints.map((checkpoint) => [checkpoint.id, checkpoint]));
    this.parts = Object.fromEntries([...this.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
    if (!this.parts.columns) return; // there is no model yet
    Object.assign(this, { elements: [], settings: this.querySelector("compare-settings"), voting: this.querySelector("compare-vote") });
    this.comparison = new Comparison({
      columns: view.columns.map(({ model, adapter }) => new Column(model, adapter)), complete: completion,
      settings: () => this.settings.value, onChange: (column) => this.comparison && this.#changed(column),
      continuesText: ({ model, adapter }) => !adapter && (this.checkpoints.get(model)?.continues_text ?? false),
    });
    this.isAtEnd = true;
    this.follow = throttled(() => this.isAtEnd && this.#toEnd(), FOLLOWED_EVERY_MS);
    this.#listen();
    this.#remember(view.user_id);
    if (view.is_blind && !this.comparison.isBlind) this.#blind(true);
    this.#changed(null);
    if (!isTouched()) this.parts.text.focus();
  }

  /** What was asked and answered comes back with a reload, where who answered is still there. */
  #remember(user) {
    const entry = new EntryStorage("compare");
    const keep = () => entry.setItem(user, { talk: this.comparison.snapshot, settings: this.settings.value, text: this.parts.text.value });
    const kept = entry.getItem(user);
    if (kept?.talk.columns.every(({ model, adapter }) => this.checkpoints.has(model) && (!adapter || this.checkpoints.has(adapter)))) {
      this.settings.fill(kept.settings);
      this.parts.text.value = kept.text;
      this.comparison.restore(kept.talk).then(() => kept.talk.columns.some(({ isAsked }) => isAsked) && this.#answered());
    }
    this.keepSoon = throttled(keep, KEPT_EVERY_MS);
    onLeave(() => {
      keep(); // as long as they still answer: what is cut off by leaving is asked for again
      entry.write();
    });
  }

  disconnectedCallback() {
    this.comparison?.stop();
  }

  #listen() {
    const { text, form, stop, again, add, blind, twice } = this.parts;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#say();
    });
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
      event.preventDefault();
      this.#say();
    });
    text.addEventListener("input", () => this.#buttons());
    stop.addEventListener("click", () => this.comparison.stop());
    again.addEventListener("click", () => this.comparison.again());
    add.addEventListener("click", () => this.#put(null, this.comparison.columns.at(-1).model));
    blind.addEventListener("click", () => this.#blind(!this.comparison.isBlind));
    twice.addEventListener("click", () => this.#twice());
    const on = (name, work) => this.addEventListener(name, (event) => work(event.detail, event.target));
    on("compare-model", ({ model, adapter }, element) => this.#put(element.view.column, model, adapter));
    on("compare-remove", (_, element) => this.comparison.remove(element.view.column));
    on("compare-retry", (_, element) => this.comparison.catchUp([element.view.column]));
    on("compare-settings", () => this.#changed(null));
    on("compare-vote", ({ verdict }) => this.#vote(verdict));
    on("compare-undo", () => this.#undo());
    on("compare-next", () => this.#next());
    window.addEventListener("scroll", () => {
      const page = document.documentElement;
      this.isAtEnd = page.scrollHeight - window.scrollY - window.innerHeight < NEAR_END_PX;
    }, { passive: true });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !isComposing(event)) this.comparison.stop();
    });
  }

  #say() {
    const { text } = this.parts;
    if (this.comparison.isBusy || !text.value.trim()) return;
    const said = text.value;
    text.value = "";
    setText(this.parts.spoken, "");
    this.comparison.say(said).then(() => this.#answered());
    this.#toEnd();
  }

  #toEnd() {
    window.scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
  }

  /** Whoever has nothing to write now votes with one key. */
  #answered() {
    const { text, spoken } = this.parts;
    const isWhole = this.comparison.columns.every(({ error, isStopped }) => !error && !isStopped);
    setText(spoken, isWhole ? t("All have answered.") : t("Not all have answered."));
    const isIdle = [document.body, text].includes(document.activeElement) && !text.value;
    if (this.comparison.canVote && isIdle && !isTouched()) this.voting.takeFocus();
  }

  #put(column, model, adapter = null) {
    this.comparison.put(column, model, adapter);
    this.parts.columns.lastElementChild.scrollIntoView({ block: "nearest", inline: column ? "nearest" : "end" });
  }

  /** Hide who is who, or show it; what was said until now told it already. */
  #blind(is) {
    this.comparison.isBlind = is;
    this.comparison.begin();
    this.parts.text.focus();
  }

  #twice() {
    const [{ model, adapter }] = this.comparison.columns;
    this.comparison.stop();
    this.comparison.columns = [new Column(model, adapter), new Column(model, adapter)];
    this.#blind(true);
  }

  async #vote(verdict) {
    if (!this.comparison.canVote || this.isSending) return;
    this.isSending = true;
    this.#changed(null);
    try {
      this.comparison.keep(await post("/votes", this.comparison.voteBody(verdict), { key: newKey() }));
    } catch (error) {
      toastError(error);
    }
    this.isSending = false;
    this.#changed(null);
  }

  async #undo() {
    try {
      await remove(`/votes/${this.comparison.vote.id}`);
    } catch (error) {
      if (error.status !== 404) {
        toastError(error);
        return;
      }
    }
    this.comparison.takeBack();
  }

  #next() {
    this.comparison.begin();
    this.parts.text.focus();
  }

  /** @param {Column|null} column the one that has grown, null where anything may be different */
  #changed(column) {
    const { comparison, elements } = this;
    if (comparison.isBusy) this.follow();
    const place = comparison.columns.indexOf(column);
    if (place >= 0 && column.live?.content && elements[place]?.view?.column === column) {
      elements[place].grow();
      return;
    }
    for (const extra of elements.splice(comparison.columns.length)) extra.remove();
    comparison.columns.forEach((each, at) => {
      elements[at] ??= this.#element();
      elements[at].show({ column: each, letter: LETTERS[at], name: this.#named(each), turns: comparison.turns,
                          isHidden: comparison.isHidden, isRemovable: comparison.columns.length > FEWEST });
    });
    this.#buttons();
    this.#showVote();
    this.#address();
  }

  #element() {
    const { columns, menu } = this.parts;
    for (const drawn of columns.querySelectorAll("[data-drawn]")) drawn.remove(); // by the server, before this script was here
    const element = document.createElement("compare-column");
    columns.append(element);
    return element.build(menu.content.firstElementChild.cloneNode(true), this.checkpoints);
  }

  #named({ model, adapter }) {
    return [model, adapter].map((id) => this.checkpoints.get(id)).filter(Boolean).map(({ run_name: name, step }) =>
      t("%(name)s, step %(step)s", { name, step: integer(step) })).join(" + ");
  }

  #buttons() {
    this.keepSoon?.();
    const { comparison, parts } = this;
    const { columns, turns, isBusy } = comparison;
    const hadFocus = [parts.send, parts.stop].includes(document.activeElement);
    parts.send.disabled = !parts.text.value.trim();
    parts.send.hidden = isBusy;
    parts.stop.hidden = !isBusy;
    if (hadFocus) parts.text.focus();
    parts.again.hidden = isBusy || !turns.length || !columns.some((column) => column.answers.length === turns.length);
    parts.add.disabled = columns.length >= MOST || comparison.isBlind;
    parts.blind.setAttribute("aria-pressed", String(comparison.isBlind));
    parts.blind.disabled = columns.length !== FEWEST;
    parts.blind.title = parts.blind.disabled ? t("A blind test is between two: remove the others first")
      : t("Who is who stays hidden until you have said which answer is better");
    parts.twice.disabled = isBusy;
    parts.empty.hidden = turns.length > 0;
    setText(parts.seed, turns.length && !comparison.isHidden ? t("Seed %(seed)s", { seed: comparison.bases.at(-1) }) : "");
    setText(parts.summary, this.settings.summary);
    const isOne = columns.length === FEWEST && columns[0].id === columns[1].id;
    parts.greedy.hidden = !(isOne && this.settings.value.sampling.temperature === 0);
  }

  #showVote() {
    const { comparison } = this;
    const { vote } = comparison;
    if (!vote) {
      this.voting.show(this.isSending ? "sending" : comparison.canVote ? "ready" : "hidden");
      return;
    }
    const [a, b] = comparison.columns.map((column) => this.#named(column));
    const texts = { a: t("You chose A: %(name)s.", { name: a }), b: t("You chose B: %(name)s.", { name: b }),
                    tie: t("Both are as good: A is %(a)s, B is %(b)s.", { a, b }),
                    bad: t("Both are bad: A is %(a)s, B is %(b)s.", { a, b }) };
    this.voting.show("kept", texts[vote.verdict]);
  }

  #address() {
    if (this.comparison.isHidden && this.comparison.turns.length) return; // it would tell who is who
    const columns = this.comparison.columns.map(({ id }) => ["checkpoint", id]);
    if (this.comparison.isBlind) columns.sort(([, a], [, b]) => (a < b ? -1 : 1));
    const query = new URLSearchParams([...columns, ...(this.comparison.isBlind ? [["blind", "1"]] : [])]);
    if (location.search !== `?${query}`) history.replaceState(history.state, "", `?${query}`);
  }
}

customElements.define("compare-page", ComparePage);
