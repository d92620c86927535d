// <chat-thread>: the turns of a conversation, what to begin with where there are none, and what went wrong. Stays at its
// end while it grows, unless the reader has scrolled up. Events: "chat-send" {text} of a suggestion, "chat-again" {}.

import "./chat-message.js";
import { branchControls } from "./chat-branches.js";
import { h, throttled } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { resultsOf } from "../lib/message-facts.js";

const DRAWN_EVERY_MS = 100;
const NEAR_END_PX = 80;
const SPOKEN_MS = 5000;
const SPOKEN_CHARS = 1000;
const SHARE_OF_DRAWING = 5; // a long answer that takes 50 ms to draw is drawn every 250 ms

class ChatThread extends HTMLElement {
  #views = new Map(); // message -> its element

  connectedCallback() {
    this.grow = throttled(() => this.#grow(), DRAWN_EVERY_MS);
  }

  /**
   * @param {object[]} messages the branch that is shown
   * @param {{live: object|null, isRunning: boolean, waiting: string, isReadOnly: boolean, isBusy: boolean, plain: (m) => boolean,
   *          canGoOn: (m) => boolean, siblings: (m) => object[], model: (m) => string}} state `live`: the answer that is
   *          coming; `isRunning`: tools are at work
   */
  show(messages, state) {
    Object.assign(this, { messages, state });
    const atEnd = this.#isAtEnd();
    const answered = new Set(messages.flatMap((message) => resultsOf(messages, message)));
    const shown = messages.filter((message) => message.role !== "system" && !answered.has(message));
    const elements = shown.map((message) => {
      const element = this.#views.get(message) ?? document.createElement("chat-message");
      this.#views.set(message, element);
      this.#draw(message, element);
      return element;
    });
    for (const message of this.#views.keys()) if (!messages.includes(message)) this.#views.delete(message);
    this.#place([...elements, ...this.#after(shown)]);
    if (atEnd) this.toEnd();
  }

  /** Only what is new goes in: an element that moves would lose its focus and selection. */
  #place(elements) {
    for (const child of [...this.children]) if (!elements.includes(child)) child.remove();
    elements.forEach((element, place) => {
      if (this.children[place] !== element) this.insertBefore(element, this.children[place] ?? null);
    });
  }

  #draw(message, element) {
    const { state, messages } = this;
    const isLast = messages.at(-1) === message;
    const isReadOnly = state.isReadOnly || state.isBusy;
    element.show(message, {
      plain: state.plain(message), model: state.model(message), isLive: state.live === message, waiting: state.waiting, isLast,
      later: 0, isReadOnly, canGoOn: isLast && state.canGoOn(message), canAsk: canAsk(messages, message), results: resultsOf(messages, message),
      isRunning: isLast && state.isRunning,
      extra: isReadOnly ? [] : branchControls(message, state.siblings(message), (of, what) => this.#tell("chat-branch", { message: of, what })),
    });
  }

  #grow() {
    const element = this.#views.get(this.state?.live);
    if (!element) return;
    const began = performance.now();
    if (began < this.restUntil) {
      this.grow();
      return;
    }
    const atEnd = this.#isAtEnd();
    this.#draw(this.state.live, element);
    if (atEnd) this.toEnd();
    this.restUntil = began + (performance.now() - began) * SHARE_OF_DRAWING;
  }

  /** Finished answers are spoken, once; every token would be noise. Null: nothing to say. */
  speak(region, answer) {
    region.textContent = !answer ? "" : answer.finish_reason === "cancelled" ? t("Stopped.") : this.#spoken(answer);
    clearTimeout(this.speaking);
    this.speaking = setTimeout(() => (region.textContent = ""), SPOKEN_MS); // whoever walks the page hears it only once
  }

  /** What of an answer is read out: its words without thoughts and marks. */
  #spoken(message) {
    const said = this.#views.get(message)?.querySelectorAll(".formatted, .as-is") ?? [];
    return [...said].map(wordsOf).join(" ").slice(0, SPOKEN_CHARS);
  }

  /** The word about what the answer is waiting for. */
  wait(text) {
    this.state.waiting = text;
    this.grow();
  }

  #after(shown) {
    if (this.problem) return [this.problem];
    if (!shown.length) return this.welcome ? [this.welcome] : [];
    if (this.state.isBusy || this.state.isReadOnly || this.messages.at(-1).role === "assistant") return [];
    return [h("div.notice", {}, h("p", {}, t("This message has no answer yet.")), this.#again(t("Get an answer")))];
  }

  /** What stands where nothing was said: who is there, and what could be asked. */
  greet(title, text, prompts) {
    const chips = prompts.map((prompt) => h("button.button.chip", {
      type: "button", onclick: () => this.#tell("chat-send", { text: prompt }) }, prompt));
    this.welcome = h("div.empty.chat-welcome", {}, h("h2", {}, title), h("p", {}, text),
      chips.length ? h("div.row", { role: "group", "aria-label": t("Suggestions") }, ...chips) : null);
    if (this.messages) this.show(this.messages, this.state);
  }

  /** A request that failed; null takes the notice away. */
  fail(error) {
    if (error?.code === "context_length_exceeded") {
      error.hint = t("Begin a new chat, or edit an earlier message: the model only remembers so much.");
    } else if (error?.retryAfter) {
      error.hint ||= t("It may work again in %(seconds)s s. Your message is kept.", { seconds: integer(error.retryAfter) });
    }
    this.problem = error && h("div.notice.bad", { role: "alert" },
      h("div", {}, h("p", {}, error.message), error.hint ? h("p.hint.small", {}, error.hint) : null),
      this.#again(t("Try again")));
  }

  #again(text) {
    return h("button.button.tiny", { type: "button", "data-action": "again", onclick: () => this.#tell("chat-again") }, text);
  }

  /** Do what takes or gives room elsewhere on the page, and stay at the end. */
  holdEnd(work) {
    const atEnd = this.#isAtEnd();
    work();
    if (atEnd) this.toEnd();
  }

  #isAtEnd() {
    const page = document.documentElement;
    return page.scrollHeight - window.scrollY - window.innerHeight < NEAR_END_PX;
  }

  toEnd() {
    window.scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
  }

  #tell(name, detail = {}) {
    this.dispatchEvent(new CustomEvent(name, { bubbles: true, detail }));
  }
}

/** Whether it ends the answer to something: what called tools on the way to it is asked for again with it. */
function canAsk(messages, message) {
  const place = messages.indexOf(message);
  const follows = messages[place + 1]?.role ?? "user";
  return follows === "user" && messages.slice(0, place).some(({ role }) => role === "user");
}

/** The words of a text without what stands round its code; a formula as it was written. */
function wordsOf(text) {
  const copy = text.cloneNode(true);
  for (const head of copy.querySelectorAll(".code-head")) head.remove();
  for (const math of copy.querySelectorAll("math")) math.replaceWith(math.getAttribute("aria-label"));
  return [...copy.childNodes].map((node) => node.textContent.trim()).filter(Boolean).join(" ");
}

customElements.define("chat-thread", ChatThread);
