// A conversation that is edited turn by turn, and beside it the tokens that a model reads of it. The server does the
// reading (POST /chat_format), through the functions that training and chat use.

import { post } from "../lib/api.js";
import { debounced, h, setText } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { countWords } from "../lib/tokens.js";
import { problemNotice } from "./dataset-problems.js";
import "./token-strip.js";

const SHOWN_AT_FIRST = 1000; // tools alone are some hundred, and what is learnt stands behind them
const TYPING_PAUSE_MS = 250;
const TRY_AGAIN_MS = 2000;

class ChatFormat extends HTMLElement {
  connectedCallback() {
    const find = (name) => this.querySelector(name);
    this.parts = { turns: find("[data-turns]"), blank: find("template"), tools: find("[data-tools]"), choice: find("[data-choice]"),
                   problem: find("[data-problem]"), tokens: find("[data-tokens]"), text: find("[data-text]"), count: find("[data-count]") };
    this.example = [...this.parts.turns.children].map(asWritten);
    this.behind = "";
    const soon = debounced(() => this.#load(), TYPING_PAUSE_MS);
    this.addEventListener("input", ({ target }) => target.matches("textarea") && soon());
    this.addEventListener("change", ({ target }) => this.#chosen(target));
    this.addEventListener("click", ({ target }) => this.#click(target.closest("button")));
    for (const role of this.querySelectorAll("[data-role-of]")) this.#showRole(role); // chosen before this script was here
    this.#number();
    this.#load();
  }

  disconnectedCallback() {
    this.controller?.abort();
    clearTimeout(this.timer);
  }

  /** What is typed, as the API takes it; JSON goes as text, so that the server says what is wrong with it. */
  #asked() {
    const messages = [...this.parts.turns.children].map((turn) => {
      const message = { role: turn.dataset.role };
      for (const field of turn.querySelectorAll("[data-key]")) {
        const { key } = field.dataset;
        if (key === "content" || (message.role === "assistant" && field.value.trim())) message[key] = field.value;
      }
      return message;
    });
    const [kind, id] = this.parts.choice.value.split(":");
    return { messages, tools: this.parts.tools.value.trim() || null, ...(id ? { [`${kind}_id`]: id } : {}),
             add_generation_prompt: this.behind !== "", open_thinking: this.behind === "open" };
  }

  async #load() {
    this.controller?.abort();
    clearTimeout(this.timer);
    const controller = (this.controller = new AbortController());
    const { tokens, text, count, problem } = this.parts;
    tokens.setAttribute("aria-busy", "true");
    try {
      const seen = await post("/chat_format", this.#asked(), { signal: controller.signal });
      problem.replaceChildren();
      tokens.show(seen.tokens, { label: t("What the model reads"), isCut: seen.tokens_cut, atFirst: SHOWN_AT_FIRST });
      setText(text, seen.text);
      setText(count, countWords(seen.num_tokens, seen.num_targets));
      delete tokens.dataset.stale;
    } catch (error) {
      if (error.name === "AbortError") return;
      tokens.dataset.stale = "";
      if (error.status === 0) this.timer = setTimeout(() => this.#load(), TRY_AGAIN_MS);
      problem.replaceChildren(problemNotice(error)); // what was read before stays, marked
    }
    tokens.removeAttribute("aria-busy");
  }

  #chosen(control) {
    if (control.matches("[data-role-of]")) {
      this.#showRole(control);
      this.#number();
      this.#load();
    } else if (control === this.parts.choice) {
      const url = new URL(location.href);
      if (control.value) url.searchParams.set("with", control.value);
      else url.searchParams.delete("with");
      history.replaceState(history.state, "", url);
      this.#load();
    }
  }

  #showRole({ value, parentElement }) {
    const turn = parentElement.closest("[data-turn]");
    turn.dataset.role = value;
    for (const part of turn.querySelectorAll("[data-of-assistant]")) part.hidden = value !== "assistant";
  }

  #click(button) {
    if (!button) return;
    const { turns, blank } = this.parts;
    if ("behind" in button.dataset) {
      this.behind = button.dataset.behind;
      for (const other of this.querySelectorAll("[data-behind]")) other.setAttribute("aria-pressed", String(other === button));
    } else if ("add" in button.dataset) {
      const turn = blank.content.firstElementChild.cloneNode(true);
      const follows = turns.lastElementChild.dataset.role === "user" ? "assistant" : "user";
      turns.append(turn);
      const role = turn.querySelector("[data-role-of]");
      role.value = follows;
      this.#chosen(role);
      turn.querySelector("[data-key=content]").focus();
      return;
    } else if ("remove" in button.dataset) {
      const turn = button.closest("[data-turn]");
      const next = turn.nextElementSibling ?? turn.previousElementSibling;
      turn.remove();
      next.querySelector("[data-role-of]").focus();
    } else if ("example" in button.dataset) {
      turns.replaceChildren(...this.example.map((turn) => turn.cloneNode(true)));
      this.parts.tools.value = this.parts.tools.defaultValue;
    } else {
      return;
    }
    this.#number();
    this.#load();
  }

  /** The number that errors speak of, in sight and in the names of controls. The last turn cannot be removed. */
  #number() {
    const turns = [...this.parts.turns.children];
    for (const [place, turn] of turns.entries()) {
      const role = turn.querySelector("[data-role-of]");
      const remove = turn.querySelector("[data-remove]");
      setText(turn.querySelector("[data-place]"), String(place + 1));
      role.setAttribute("aria-label", t("Who speaks in turn %(number)s", { number: place + 1 }));
      remove.setAttribute("aria-label", t("Remove turn %(number)s", { number: place + 1 }));
      remove.disabled = turns.length === 1;
    }
  }
}

/** A turn of the example, whatever has been typed into it since. */
function asWritten(turn) {
  const copy = turn.cloneNode(true);
  for (const field of copy.querySelectorAll("textarea")) field.value = field.defaultValue;
  return copy;
}

customElements.define("chat-format", ChatFormat);
