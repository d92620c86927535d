// <chat-settings>: sampling and the system prompt. An empty field is the server's default. Event: "chat-settings".

import { t } from "../lib/i18n.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

class ChatSettings extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.addEventListener("change", (event) => {
      event.stopPropagation();
      if (NUMBERS.includes(event.target.name) && !this.#check(event.target)) return;
      this.#tell();
    });
    // Enter means "done", a field that is wrong keeps the dialog open
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      const wrong = NUMBERS.map((name) => this.#field(name)).find((field) => !this.#check(field));
      if (wrong) wrong.focus();
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
    this.#field("system").value = system;
  }

  /** Only what is filled in; a field that is wrong counts as it was before. */
  get sampling() {
    return { ...this.right };
  }

  get system() {
    return this.#field("system").value;
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
