// <compare-vote>: which of two answers is better. 1 to 4 vote from anywhere but a field; arrows where the buttons have the
// focus. Events: "compare-vote" {verdict}, "compare-undo", "compare-next".

import { h, isComposing, setBusy } from "../lib/dom.js";
import { t } from "../lib/i18n.js";

const KEYS = { 1: "a", 2: "b", 3: "tie", 4: "bad" };
const ARROWS = { ArrowLeft: "a", ArrowRight: "b", ArrowUp: "tie", ArrowDown: "bad" };
const isField = (element) => element.closest("input, textarea, select, [contenteditable]") !== null;

class CompareVote extends HTMLElement {
  connectedCallback() {
    this.buttons = [...this.querySelectorAll("[data-verdict]")];
    this.choices = this.querySelector("[data-choices]");
    this.done = this.querySelector("[data-done]");
    this.onKey = (event) => this.#key(event);
    document.addEventListener("keydown", this.onKey);
    this.addEventListener("click", ({ target }) => {
      const verdict = target.closest("[data-verdict]")?.dataset.verdict;
      if (verdict) this.#tell("compare-vote", { verdict });
    });
  }

  disconnectedCallback() {
    document.removeEventListener("keydown", this.onKey);
  }

  /** @param {"hidden"|"ready"|"sending"|"kept"} state @param {string} said what was chosen, for "kept" */
  show(state, said = "") {
    if (state === this.state && said === this.said) return;
    // a button that has the focus loses it while it is busy
    const hadFocus = this.contains(document.activeElement) || (this.hadFocus && document.activeElement === document.body);
    this.hadFocus = hadFocus;
    Object.assign(this, { state, said });
    this.hidden = state === "hidden";
    this.choices.hidden = state === "kept";
    for (const button of this.buttons) setBusy(button, state === "sending");
    this.done.replaceChildren(...(state === "kept" ? this.#kept(said) : []));
    if (hadFocus && state === "kept") this.done.querySelector("button")?.focus();
    else if (hadFocus && state === "ready") this.buttons[0].focus();
  }

  #kept(said) {
    const button = (text, name, kind) => h(`button.button.tiny.${kind}`, { type: "button", onclick: () => this.#tell(name) }, text);
    return [h("p", { role: "status" }, said), h("div.row", {}, button(t("Next prompt (N)"), "compare-next", "primary"),
      button(t("Take the vote back"), "compare-undo", "quiet"), h("a.button.quiet.tiny", { href: "/chat/votes" }, t("All votes")))];
  }

  takeFocus() {
    this.buttons[0].focus({ preventScroll: true });
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || isComposing(event)) return;
    if (document.querySelector("dialog[open]") || isField(event.target)) return;
    if (this.state === "kept" && event.key.toLowerCase() === "n") {
      event.preventDefault(); // else the letter stands in the field that gets the focus
      this.#tell("compare-next");
      return;
    }
    if (this.state !== "ready") return;
    const verdict = KEYS[event.key] ?? (this.contains(event.target) ? ARROWS[event.key] : undefined);
    if (!verdict) return;
    event.preventDefault();
    this.#tell("compare-vote", { verdict });
  }

  #tell(name, detail = {}) {
    this.dispatchEvent(new CustomEvent(name, { bubbles: true, detail }));
  }
}

customElements.define("compare-vote", CompareVote);
