// <compare-settings>: how all the models of a comparison answer. An empty field is the server's default. Event:
// "compare-settings".

import { t } from "../lib/i18n.js";

const NUMBERS = ["temperature", "top_p", "max_tokens"];

class CompareSettings extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("change", ({ target }) => {
      const said = target.closest(".field")?.querySelector(".field-error");
      if (said) said.textContent = target.validity.valid ? "" : target.validationMessage;
      target.setAttribute("aria-invalid", String(!target.validity.valid));
      this.dispatchEvent(new CustomEvent("compare-settings", { bubbles: true }));
    });
  }

  /** @returns {{mode: string, system: string, sampling: object, seed: number|null, isSameSeed: boolean}} */
  get value() {
    const { elements } = this.form;
    return { mode: elements.mode.value, system: elements.system.value, seed: this.#number("seed"), isSameSeed: elements.same_seed.checked,
             sampling: Object.fromEntries(NUMBERS.map((name) => [name, this.#number(name)]).filter(([, value]) => value !== null)) };
  }

  /** Choose what `value` was at another time. */
  fill({ mode, system, seed, isSameSeed, sampling }) {
    const { elements } = this.form;
    for (const [name, value] of Object.entries({ mode, system, seed, ...sampling })) elements[name].value = value ?? "";
    elements.same_seed.checked = isSameSeed;
  }

  /** A field that is wrong counts as empty. */
  #number(name) {
    const field = this.form.elements[name];
    return field.value && field.validity.valid ? field.valueAsNumber : null;
  }

  /** In a closed box: what differs from the defaults. */
  get summary() {
    const { sampling, isSameSeed, system } = this.value;
    return [sampling.temperature !== undefined ? t("temperature %(number)s", { number: sampling.temperature }) : null,
            isSameSeed ? t("one seed for all") : t("a seed for each"), system.trim() ? t("with a system prompt") : null].filter(Boolean).join(" · ");
  }
}

customElements.define("compare-settings", CompareSettings);
