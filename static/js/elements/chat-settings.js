// <chat-settings>: sampling and the system prompt. An empty field is the server's default. Event: "chat-settings".

import "./chat-presets.js";
import { t } from "../lib/i18n.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"];
const SWITCHES = ["tools", "thinking"];
const MOST_STOPS = 16;

class ChatSettings extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.addEventListener("change", (event) => {
      event.stopPropagation();
      if (NUMBERS.includes(event.target.name) && !this.#check(event.target)) return;
      this.#tell();
    });
    this.addEventListener("chat-preset", ({ detail }) => {
      this.fill({ ...detail.sampling, ...this.#switches() }, detail.system ?? this.system);
      this.#tell();
    });
    this.querySelector("chat-presets").now = () => ({ sampling: this.sampling, system: this.system });
    // Enter means "done", a field that is wrong keeps the dialog open
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      const wrong = NUMBERS.map((name) => this.#field(name)).find((field) => !this.#check(field));
      if (wrong) {
        const folded = wrong.closest("details");
        if (folded) folded.open = true;
        wrong.focus();
      }
      else this.closest("dialog").close();
    });
    // closed without "done": what is shown next time is what counts
    this.closest("dialog").addEventListener("close", () => this.fill(this.sampling, this.system));
    this.querySelector("[data-defaults]").addEventListener("click", () => {
      this.fill({}, "");
      this.#tell();
    });
  }

  fill(sampling, system) {
    this.right = {}; // the last value of each field that was right
    for (const name of NUMBERS) {
      this.#field(name).value = sampling[name] ?? "";
      this.#check(this.#field(name));
    }
    for (const name of SWITCHES) this.#field(name).checked = sampling[name] === true;
    this.#field("stop").value = (sampling.stop ?? []).join("\n");
    this.#field("system").value = system;
  }

  /** Only what is filled in; a field that is wrong counts as it was before. */
  get sampling() {
    const stop = this.#field("stop").value.split("\n").filter(Boolean).map((text) => text.slice(0, 1000)).slice(0, MOST_STOPS);
    return { ...this.right, ...(stop.length ? { stop } : {}), ...this.#switches() };
  }

  get system() {
    return this.#field("system").value;
  }

  #switches() {
    return Object.fromEntries(SWITCHES.filter((name) => this.#field(name).checked).map((name) => [name, true]));
  }

  #field(name) {
    return this.form.elements[name];
  }

  #check(field) {
    const said = field.parentElement.querySelector(".field-error");
    field.setCustomValidity(Number.isSafeInteger(field.valueAsNumber) || field.step === "any" || !field.value ? ""
      : t("This number is too large."));
    said.textContent = field.validity.valid ? "" : field.validationMessage;
    field.setAttribute("aria-invalid", String(!field.validity.valid));
    if (field.validity.valid && field.value) this.right[field.name] = field.valueAsNumber;
    else if (field.validity.valid) delete this.right[field.name];
    return field.validity.valid;
  }

  #tell() {
    this.dispatchEvent(new CustomEvent("chat-settings", { bubbles: true }));
  }
}

customElements.define("chat-settings", ChatSettings);
