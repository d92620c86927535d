// <checkpoint-export data-checkpoint>: has the server write a checkpoint for other programs, says how far that is, and
// offers the file.

import { get, newKey, post } from "../lib/api.js";
import { h } from "../lib/dom.js";
import { bytes } from "../lib/format.js";
import { t } from "../lib/i18n.js";

const ASK_EVERY_MS = 1000;

class CheckpointExport extends HTMLElement {
  connectedCallback() {
    this.addEventListener("click", this);
  }

  disconnectedCallback() {
    this.removeEventListener("click", this);
    clearTimeout(this.timer);
  }

  handleEvent(event) {
    const button = event.target.closest("[data-format]");
    if (button && !this.isBusy) this.#make(button.dataset.format, button.firstChild.textContent.trim());
  }

  async #make(format, name) {
    this.isBusy = true;
    this.name = name;
    this.#say(h("p.small", {}, t("Asking for it…")));
    try {
      this.#follow(await post(`/checkpoints/${this.dataset.checkpoint}/export`, { format }, { key: newKey() }));
    } catch (error) {
      this.#fail(error);
    }
  }

  #follow(made) {
    if (made.state === "ready") {
      this.isBusy = false;
      const link = h("a.button.primary", { href: `/api/v1/exports/${made.id}/download`, download: "" },
                     t("Download %(what)s, %(size)s", { what: this.name, size: bytes(made.bytes) }));
      this.#say(h("p", {}, link));
      if (this.contains(document.activeElement)) link.focus();
    } else if (made.state === "failed") {
      this.#fail(made.error ?? { message: t("It could not be made.") });
    } else {
      const word = made.progress.message || t("Waiting for a worker");
      this.bar ??= h("progress", { "aria-label": t("Export") });
      this.word ??= h("p.small");
      if (this.word.textContent !== word) this.word.textContent = word;
      if (!this.bar.isConnected) this.#say(this.bar, this.word);
      this.timer = setTimeout(() => this.#look(made), ASK_EVERY_MS);
    }
  }

  async #look(made) {
    try {
      this.#follow(await get(`/exports/${made.id}`));
    } catch (error) {
      if (error.status === 0 || error.status >= 500) this.timer = setTimeout(() => this.#look(made), ASK_EVERY_MS);
      else this.#fail(error);
    }
  }

  #fail(error) {
    this.isBusy = false;
    this.#say(h("div.notice.bad.small", {}, h("div", {}, h("p", {}, error.message),
                                            error.hint ? h("p.hint", {}, error.hint) : null)));
  }

  #say(...parts) {
    this.querySelector("[data-said]").replaceChildren(...parts);
  }
}

customElements.define("checkpoint-export", CheckpointExport);
