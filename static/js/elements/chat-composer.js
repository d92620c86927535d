// <chat-composer>: where a message is written and sent, and who answers it. Events: "chat-send" {text}, "chat-stop",
// "chat-choice" (another model or mode).

import { t } from "../lib/i18n.js";

const MOST_LINES_PX = 220;

class ChatComposer extends HTMLElement {
  connectedCallback() {
    const find = (name) => this.querySelector(`[data-${name}]`);
    Object.assign(this, { field: find("text"), send: find("send"), stop: find("stop"), select: find("model"),
                          warning: find("continues"), modes: [...this.querySelectorAll("[data-mode]")] });
    find("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.field.addEventListener("input", () => this.#fit());
    this.stop.addEventListener("click", () => this.#tell("chat-stop"));
    this.select.addEventListener("change", () => this.#tell("chat-choice", { what: "model" }));
    for (const button of this.modes) {
      button.addEventListener("click", () => {
        this.mode = button.dataset.mode;
        this.#tell("chat-choice", { what: "mode" });
      });
    }
    this.#fit();
  }

  get model() {
    return this.select.value;
  }

  get mode() {
    return this.modes.find((button) => button.getAttribute("aria-pressed") === "true").dataset.mode;
  }

  set mode(mode) {
    for (const button of this.modes) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    this.field.placeholder = mode === "text" ? t("Begin a text: the model goes on from its last word") : t("Write a message");
  }

  /** Shown for models that only know how to go on with a text. */
  warn(continuesText) {
    this.warning.hidden = !continuesText;
  }

  /** While an answer comes, Stop stands where Send was; the next message can be written already. */
  set isBusy(busy) {
    this.busy = busy;
    const hadFocus = [this.send, this.stop].includes(document.activeElement);
    this.send.hidden = busy;
    this.stop.hidden = !busy;
    if (hadFocus) this.field.focus();
    this.#fit();
  }

  focus() {
    this.field.focus();
  }

  #key(event) {
    // an Enter that picks a word of an input method is not meant for us; Safari says so only by its code
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.#submit();
  }

  #submit() {
    const text = this.field.value;
    if (this.busy || !text.trim()) return;
    this.field.value = "";
    this.#fit();
    this.#tell("chat-send", { text });
  }

  #fit() {
    this.send.disabled = !this.field.value.trim();
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight + 2, MOST_LINES_PX)}px`;
  }

  #tell(name, detail = {}) {
    this.dispatchEvent(new CustomEvent(name, { bubbles: true, detail }));
  }
}

customElements.define("chat-composer", ChatComposer);
