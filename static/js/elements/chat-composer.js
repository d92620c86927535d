// <chat-composer>: where a message is written and sent, and who answers it. Events: "chat-send" {text}, "chat-stop",
// "chat-draft" {text},
// "chat-choice" (another model, adapter or mode). `checkpoints`: those that can be chosen, by id.

import { adaptersFor } from "../lib/conversation.js";
import { h, isComposing } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";

const MOST_LINES_PX = 220;
const NAME_CHARS = 40;

const named = ({ run_name: name, step }) => `+ ${name.length > NAME_CHARS ? `${name.slice(0, NAME_CHARS - 1)}…` : name} · ${
  t("step %(step)s", { step: integer(step) })}`;

class ChatComposer extends HTMLElement {
  connectedCallback() {
    const find = (name) => this.querySelector(`[data-${name}]`);
    Object.assign(this, { field: find("text"), send: find("send"), stop: find("stop"), select: find("model"),
                          adapters: find("adapter"), warning: find("continues"), modes: [...this.querySelectorAll("[data-mode]")] });
    find("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.field.addEventListener("input", () => {
      this.#fit();
      this.#tell("chat-draft", { text: this.field.value });
    });
    this.stop.addEventListener("click", () => this.#tell("chat-stop"));
    this.select.addEventListener("change", () => {
      this.choose(this.model, this.adapter);
      this.#tell("chat-choice", { what: "model" });
    });
    this.adapters.addEventListener("change", () => this.#tell("chat-choice", { what: "adapter" }));
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

  /** The checkpoint whose adapter is laid over the model, or null. */
  get adapter() {
    return this.adapters.value || null;
  }

  get checkpoint() {
    return this.checkpoints.get(this.model);
  }

  /** Whose words an answer is in: the adapter's, where there is one. */
  get speaker() {
    return this.checkpoints.get(this.adapter) ?? this.checkpoint;
  }

  /** Whether it has only ever read texts; an adapter was taught something. */
  get continuesText() {
    return this.checkpoint.continues_text && !this.adapter;
  }

  /** As the address of the page says it. */
  get who() {
    return { checkpoint: this.model, ...(this.adapter ? { adapter: this.adapter } : {}) };
  }

  /** Take another model, where it is there, and the adapter `chosen` (an id or null), where it fits. */
  choose(model, chosen) {
    if (this.checkpoints.has(model)) this.select.value = model;
    const adapters = adaptersFor(this.checkpoint, [...this.checkpoints.values()]);
    this.adapters.replaceChildren(this.adapters.options[0],
                                  ...adapters.map((adapter) => h("option", { value: adapter.id }, named(adapter))));
    this.adapters.value = adapters.some((adapter) => adapter.id === chosen) ? chosen : "";
    this.adapters.hidden = adapters.length === 0;
  }

  get mode() {
    return this.modes.find((button) => button.getAttribute("aria-pressed") === "true").dataset.mode;
  }

  set mode(mode) {
    for (const button of this.modes) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    this.field.placeholder = mode === "text" ? t("Begin a text: the model goes on from its last word") : t("Write a message");
  }

  /** Shown for models that only know how to go on with a text. */
  warn() {
    this.warning.hidden = !this.continuesText;
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

  /** What was typed before and not sent, where nothing new was. */
  set draft(text) {
    if (!this.field.value) this.field.value = text;
    this.#fit();
  }

  /** Somebody listens now. What was sent by an Enter before, when the field alone only began a new line, goes too. */
  begin({ hasFocus }) {
    this.choose(this.model, this.adapter); // another model may have been chosen before
    if (hasFocus) this.field.focus();
    if (!this.field.value.endsWith("\n")) return;
    this.field.value = this.field.value.slice(0, -1);
    this.#submit();
  }

  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
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
