// <checkpoint-export data-checkpoint>: has the server write a checkpoint for other programs, says how far that is, and
// offers the file.

import "./copy-button.js";
import { get, newKey, post } from "../lib/api.js";
import { h, setBusy } from "../lib/dom.js";
import { bytes } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { JobProgress } from "../lib/job-progress.js";

const ASK_EVERY_MS = 1000;
const FIRST_LOOK_MS = 300; // small models are written in a moment

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
    if (button && !this.isBusy) this.#make({ ...button.dataset }, button.firstChild.textContent.trim());
    if (event.target.closest("[data-cancel]")) this.#cancel();
  }

  async #make(asked, name) {
    Object.assign(this, { isBusy: true, name, isCancelled: false, progress: new JobProgress(), parts: null, made: null });
    this.#say(h("p.small", {}, t("Asking for it…")));
    try {
      this.#follow(await post(`/checkpoints/${this.dataset.checkpoint}/export`, asked, { key: newKey() }), FIRST_LOOK_MS);
    } catch (error) {
      this.#fail(error);
    }
  }

  #follow(made, again = ASK_EVERY_MS) {
    this.made = made;
    if (made.state === "ready") {
      this.isBusy = false;
      const hadFocus = this.contains(document.activeElement);
      const link = h("a.button.primary", { href: `/api/v1/exports/${made.id}/download`, download: "" },
                     t("Download %(what)s, %(size)s", { what: this.name, size: bytes(made.bytes) }));
      this.#say(h("p", {}, link), ...this.#ways(made));
      if (hadFocus) link.focus();
    } else if (made.state === "failed" && this.isCancelled) {
      this.isBusy = false;
      this.#say(h("p.small", {}, t("It was cancelled.")));
    } else if (made.state === "failed") {
      this.#fail(made.error ?? { message: t("It could not be made.") });
    } else {
      this.parts ??= { bar: h("progress", { "aria-label": t("Export") }), word: h("p.small"),
                       cancel: h("button.button.tiny", { type: "button", "data-cancel": "" }, t("Cancel the export")) };
      const { bar, word, cancel } = this.parts;
      this.progress.show(bar, word, made.progress);
      if (!bar.isConnected) this.#say(bar, word, h("p", {}, cancel));
      this.timer = setTimeout(() => this.#look(), again);
    }
  }

  /** Its end is told by the next look. */
  async #cancel() {
    if (!this.made || this.isCancelled) return;
    this.isCancelled = true;
    setBusy(this.parts.cancel, true);
    try {
      await post(`/jobs/${this.made.id}/cancel`);
    } catch (error) {
      this.isCancelled = false;
      setBusy(this.parts.cancel, false);
      if (error.status !== 409) this.#fail(error); // 409: it has ended
    }
  }

  /** What to type where the file was put, ready to be copied. */
  #ways({ id, commands = [], modelfile = null }) {
    const texts = [...commands, ...(modelfile ? [{ tool: "Modelfile", text: modelfile }] : [])];
    return texts.map(({ tool, text }) => h("details.small", {}, h("summary", {}, tool),
                                           h("pre.mono", { tabindex: "0" }, text),
                                           h("p.row", {}, h("copy-button", { "data-text": text },
                                                            h("button.button.tiny", { type: "button" }, t("Copy"))),
                                             tool === "Modelfile" ? h("a.button.tiny", { href: `/api/v1/exports/${id}/modelfile`, download: "" }, t("Download")) : null)));
  }

  async #look() {
    try {
      this.#follow(await get(`/exports/${this.made.id}`));
    } catch (error) {
      if (error.status === 0 || error.status >= 500) this.timer = setTimeout(() => this.#look(), ASK_EVERY_MS);
      else this.#fail(error);
    }
  }

  #fail(error) {
    clearTimeout(this.timer);
    this.isBusy = false;
    this.#say(h("div.notice.bad.small", {}, h("div", {}, h("p", {}, error.message),
                                            error.hint ? h("p.hint", {}, error.hint) : null)));
  }

  #say(...parts) {
    this.querySelector("[data-said]").replaceChildren(...parts);
  }
}

customElements.define("checkpoint-export", CheckpointExport);
