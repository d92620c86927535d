// How far the import of a dataset is, asked each second until it is ready or failed; then the event "settled" with the
// dataset (null where it is gone), or with the attribute `reloads` the page as it is now.

import { get, post } from "../lib/api.js";
import { h, setText } from "../lib/dom.js";
import { bytes, integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";

const ASK_EVERY_MS = 1000;
const HIDDEN_EVERY_MS = 5000;
const LONG_QUEUED = 8;

class DatasetProgress extends HTMLElement {
  connectedCallback() {
    this.bar = this.querySelector("progress") ?? h("progress", { "aria-label": t("Import") });
    this.said = h("span", { role: "status" });
    this.amount = h("span.number.muted");
    this.problem = h("p.field-error", { role: "alert" });
    this.cancel = h("button.button.tiny", { type: "button", onclick: () => this.#cancel() }, t("Cancel the import"));
    this.append(this.bar, h("p.row.small", {}, this.said, this.amount), this.problem);
    if (this.getAttribute("job") && this.hasAttribute("cancels")) this.append(h("p", {}, this.cancel));
    this.queued = 0;
    this.#look();
  }

  disconnectedCallback() {
    clearTimeout(this.timer);
    this.isOver = true;
  }

  async #look() {
    const job = this.getAttribute("job");
    try {
      const dataset = await get(`/datasets/${this.getAttribute("dataset")}`);
      if (dataset.state !== "importing") return this.#settle(dataset);
      if (job) this.#show(await get(`/jobs/${job}`));
    } catch (error) {
      if (error.status === 404) return this.#settle(null);
      setText(this.said, error.status === 0 ? t("The studio does not answer. Trying again; the import goes on by itself.")
        : `${error.message} ${error.hint ?? ""}`.trim());
      if (error.status === 401) return;
    }
    if (!this.isOver) this.timer = setTimeout(() => this.#look(), document.hidden ? HIDDEN_EVERY_MS : ASK_EVERY_MS);
  }

  #show({ state, progress }) {
    this.queued = state === "queued" ? this.queued + 1 : 0;
    if (this.queued > LONG_QUEUED) setText(this.said, t("Still waiting for a worker. It may be busy with another import."));
    else if (state === "queued") setText(this.said, t("Waiting for a worker"));
    else setText(this.said, progress.message || t("Reading every row"));
    const show = progress.unit === "bytes" ? bytes : integer;
    if (progress.total) {
      this.bar.max = progress.total;
      this.bar.value = progress.done;
      setText(this.amount, t("%(done)s of %(total)s", { done: show(progress.done), total: show(progress.total) }));
    } else {
      this.bar.removeAttribute("value");
      setText(this.amount, progress.done ? t("%(done)s rows", { done: show(progress.done) }) : "");
    }
  }

  async #cancel() {
    this.cancel.setAttribute("aria-busy", "true");
    this.cancel.disabled = true;
    try {
      await post(`/jobs/${this.getAttribute("job")}/cancel`);
    } catch (error) {
      if (error.status !== 409) setText(this.problem, error.message); // 409: it has ended, as the next look will tell
      this.cancel.disabled = false;
      this.cancel.removeAttribute("aria-busy");
    }
  }

  #settle(dataset) {
    if (this.isOver) return;
    if (this.hasAttribute("reloads")) location.reload();
    else this.dispatchEvent(new CustomEvent("settled", { detail: dataset }));
  }
}

customElements.define("dataset-progress", DatasetProgress);
