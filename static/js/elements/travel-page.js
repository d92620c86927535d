// <travel-page data-view>: one prompt, every checkpoint of a run, a slider through the answers. What is asked of whom is
// in lib/travel.js.

import "./travel-strip.js";
import { chatRequest, receive, speakable, textRequest } from "../lib/conversation.js";
import { dataOf, h, isComposing, setText, throttled } from "../lib/dom.js";
import { EntryStorage, onLeave } from "../lib/entry-storage.js";
import { compact, integer, loss } from "../lib/format.js";
import { t, tn } from "../lib/i18n.js";
import { completion } from "../lib/sse.js";
import { absent, changes, Traveller } from "../lib/travel.js";

const PLAY_EVERY_MS = 900;
const DRAWN_EVERY_MS = 60;
const KEPT_EVERY_MS = 500;
const TOKENS = 96; // enough to see how it speaks; every checkpoint writes so many
const SEED = 42;
/** What it said; one that was cut off while it thought has only its thoughts to show. */
const wordsOf = (answer) => answer?.content || answer?.reasoning || "";

class TravelPage extends HTMLElement {
  connectedCallback() {
    this.way = dataOf(this, "view");
    this.parts = Object.fromEntries([...this.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
    if (!this.parts.slider) return; // there is nothing to travel through
    this.traveller = new Traveller({ points: this.way.points, ask: (...asked) => this.#ask(...asked), onChange: () => this.draw() });
    this.draw = throttled(() => this.#draw(), DRAWN_EVERY_MS);
    this.#listen();
    this.#remember(this.dataset.user);
    this.#draw();
  }

  /** The prompt and what was answered come back with a reload. */
  #remember(user) {
    const { text, mode, chance, marked } = this.parts;
    const entry = new EntryStorage("travel");
    const kept = entry.getItem(user);
    if (kept) {
      text.value = kept.text;
      marked.checked = kept.isMarked;
      if (kept.talk.request) ({ prompt: this.prompt, mode: mode.value, chance: chance.value } = kept.talk.request);
      this.traveller.restore(kept.talk);
    }
    const keep = () => entry.setItem(user, { talk: this.traveller.snapshot, text: text.value, isMarked: marked.checked });
    this.keepSoon = throttled(keep, KEPT_EVERY_MS);
    onLeave(() => {
      keep(); // as long as they still answer: what is cut off by leaving is asked for again
      entry.write();
    });
  }

  disconnectedCallback() {
    clearInterval(this.playing);
    this.traveller?.stop();
  }

  #listen() {
    const { form, text, stop, mode, chance, marked, slider, play, back, forth, strip } = this.parts;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
      event.preventDefault();
      this.#start();
    });
    text.addEventListener("input", () => this.#draw());
    stop.addEventListener("click", () => this.traveller.stop());
    for (const choice of [mode, chance]) choice.addEventListener("change", () => this.traveller.request && this.#start(this.prompt));
    marked.addEventListener("change", () => this.#draw());
    slider.addEventListener("input", () => this.#go(Number(slider.value)));
    back.addEventListener("click", () => this.#go(this.traveller.at - 1));
    forth.addEventListener("click", () => this.#go(this.traveller.at + 1));
    play.addEventListener("click", () => this.#play(!this.playing));
    strip.addEventListener("travel-to", ({ detail }) => this.#go(detail.place));
  }

  #start(prompt = this.parts.text.value) {
    if (!prompt.trim()) return;
    this.prompt = speakable(prompt);
    const { mode, chance } = this.parts;
    this.traveller.start({ prompt: this.prompt, mode: mode.value, chance: chance.value });
  }

  /** Ask one checkpoint; see Traveller. */
  #ask(point, { prompt, mode, chance }, answer, { signal, onPart }) {
    const isText = mode === "text" || (mode === "auto" && point.continues_text);
    const sampling = { max_tokens: TOKENS, ...(chance === "greedy" ? { temperature: 0 } : { seed: SEED }) };
    const asked = { model: point.id, system: "", sampling, messages: [{ role: "user", content: prompt }] };
    const [path, body] = isText ? ["/v1/completions", textRequest(asked)] : ["/v1/chat/completions", chatRequest(asked)];
    answer.isText = isText;
    return receive(answer, completion(path, body, { signal }), onPart);
  }

  #go(place) {
    this.traveller.moveTo(place);
    this.#draw(); // at once: the slider is not to lag behind the hand
  }

  #play(is) {
    const { play } = this.parts;
    clearInterval(this.playing);
    this.playing = null;
    play.setAttribute("aria-pressed", String(is));
    setText(play.querySelector("span"), is ? t("Pause") : t("Play"));
    if (!is) return;
    const last = this.way.points.length - 1;
    if (this.traveller.at === last) this.#go(0);
    this.playing = setInterval(() => {
      const result = this.traveller.results[this.traveller.at];
      if (this.traveller.isBusy && ["waiting", "asking"].includes(result?.state)) return; // it is worth waiting for
      this.#go(this.traveller.at + 1);
      if (this.traveller.at === last) this.#play(false);
    }, PLAY_EVERY_MS);
  }

  #draw() {
    const { traveller, parts, way } = this;
    this.keepSoon?.();
    const { at, results } = traveller;
    const point = way.points[at];
    const result = results[at];
    parts.slider.value = at;
    parts.slider.setAttribute("aria-valuetext", this.#named(point));
    parts.back.disabled = at === 0;
    parts.forth.disabled = at === way.points.length - 1;
    parts.send.disabled = !parts.text.value.trim();
    parts.send.hidden = traveller.isBusy;
    parts.stop.hidden = !traveller.isBusy;
    parts.strip.show(way.points, results.map(({ state }) => state), at);
    setText(parts.count, results.length ? t("%(done)s of %(count)s have answered", { done: traveller.answered, count: results.length }) : "");
    setText(parts.facts, this.#facts(point, result?.state === "answered" ? result.answer : null));
    setText(parts.prompt, result ? this.prompt : "");
    this.#answer(result, at);
    this.#links(point);
    this.#problem(traveller.problem);
  }

  #answer(result, at) {
    const { answer } = this.parts;
    const text = wordsOf(result?.answer);
    const before = this.parts.marked.checked ? this.#before(at) : "";
    const key = JSON.stringify([result?.state, text, before, at]);
    if (this.drawn === key) return;
    this.drawn = key;
    if (!text) {
      const said = !result ? t("Its answer will stand here.") : result.state === "answered" ? t("The model said nothing.") : absent(result);
      answer.replaceChildren(h("span.muted", {}, said));
      return;
    }
    answer.replaceChildren(...changes(before, text).map((piece) => (piece.isNew ? h("ins", {}, piece.text) : piece.text)));
  }

  /** What the last checkpoint before `at` that has answered said; "" where what it does is not the same. */
  #before(at) {
    const { results } = this.traveller;
    const earlier = results.slice(0, at).findLast(({ state }) => state === "answered");
    return earlier && earlier.answer.isText === results[at]?.answer?.isText ? wordsOf(earlier.answer) : "";
  }

  #named({ run_name: name, step }) {
    return t("%(name)s, step %(step)s", { name, step: integer(step) });
  }

  #facts(point, answer) {
    const facts = [this.#named(point), t("%(count)s tokens read", { count: compact(point.tokens) })];
    if (point.eval_loss !== null) facts.push(t("held-out loss %(loss)s", { loss: loss(point.eval_loss) }));
    if (answer?.usage) facts.push(tn("%(num)s token", "%(num)s tokens", answer.usage.completion_tokens));
    if (answer?.finish_reason === "length") facts.push(t("cut off at its longest length"));
    return facts.join(" · ");
  }

  #links(point) {
    const { links, chat, compare } = this.parts;
    const last = this.way.points.at(-1);
    links.hidden = false;
    chat.href = `/chat?${new URLSearchParams({ checkpoint: point.id })}`;
    compare.href = `/chat/compare?${new URLSearchParams([["checkpoint", point.id], ["checkpoint", last.id]])}`;
    compare.hidden = point === last;
  }

  #problem(error) {
    const { problem } = this.parts;
    if (problem.error === error) return;
    problem.error = error;
    problem.hidden = !error;
    problem.replaceChildren(...(error ? [h("div", {}, h("p", {}, error.message), error.hint ? h("p.hint.small", {}, error.hint) : null),
      h("button.button.tiny", { type: "button", onclick: () => this.#start(this.prompt) }, t("Try again"))] : []));
  }
}

customElements.define("travel-page", TravelPage);
