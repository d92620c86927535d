// A checksum that is shown short and copied whole.

import { h } from "../lib/dom.js";
import { t } from "../lib/i18n.js";

const SAID_MS = 2000;

class DatasetChecksum extends HTMLElement {
  connectedCallback() {
    const button = h("button.button.quiet.tiny", { type: "button", onclick: () => this.#copy(button) }, t("Copy"));
    this.append(button);
  }

  async #copy(button) {
    const value = this.getAttribute("value");
    try {
      await navigator.clipboard.writeText(value);
      button.textContent = t("Copied");
      setTimeout(() => { button.textContent = t("Copy"); }, SAID_MS);
    } catch { // pages that are not on this machine or behind TLS have no clipboard: show it to be marked by hand
      this.replaceChildren(h("code.wrap", {}, value));
      getSelection().selectAllChildren(this);
    }
  }
}

customElements.define("dataset-checksum", DatasetChecksum);
