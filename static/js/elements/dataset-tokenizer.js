// Learning a tokenizer from a dataset: a dialog with the job's progress. Its end is the event "tokenizerready" on the
// document, with the tokenizer; the dialog may be closed meanwhile.

import { get, newKey, post } from "../lib/api.js";
import { setText } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { wireDialog } from "./dataset-dialog.js";
import { checkNumbers, clearProblems, problemNotice, showProblems } from "./dataset-problems.js";
import { toast, toastError } from "./toast-stack.js";

const ASK_EVERY_MS = 1000;
const HIDDEN_EVERY_MS = 5000;

class DatasetTokenizer extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.button = this.querySelector("[type=submit]");
    this.problem = this.querySelector("[data-problem]");
    this.progress = this.querySelector("[data-progress]");
    this.said = this.querySelector("[data-said]");
    this.key = newKey();
    this.dialog = wireDialog(this);
    this.form.addEventListener("change", () => { this.key = newKey(); });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.isBusy) this.#learn();
    });
  }

  disconnectedCallback() {
    clearTimeout(this.timer);
  }

  async #learn() {
    clearProblems(this.form);
    this.problem.replaceChildren();
    if (!checkNumbers(this.form)) return;
    this.#busy(true);
    setText(this.said, t("Waiting for a worker"));
    try {
      const { name, vocab_size: size } = this.form.elements;
      const asked = { dataset_id: this.getAttribute("dataset"), name: name.value.trim() || undefined, vocab_size: Number(size.value) };
      const tokenizer = await post("/tokenizers", asked, { key: this.key });
      this.key = newKey();
      this.#follow(tokenizer);
    } catch (error) {
      this.#busy(false);
      const rest = showProblems(this.form, error);
      if (rest) this.problem.replaceChildren(problemNotice(rest));
    }
  }

  async #follow({ id, job_id: job }) {
    try {
      const tokenizer = await get(`/tokenizers/${id}`);
      if (tokenizer.state !== "training") {
        this.#end(tokenizer);
        return;
      }
      if (job) this.#show(await get(`/jobs/${job}`));
    } catch (error) {
      if (error.status === 404) {
        this.#end({ state: "failed", error: { message: t("The tokenizer was deleted.") } });
        return;
      }
      const { status, message, hint = "" } = error;
      if (status === 401) {
        this.#end({ state: "failed", error: { message, hint } });
        return;
      }
      setText(this.said, status === 0 ? t("The studio does not answer. Trying again; the work goes on by itself.")
        : `${message} ${hint}`.trim());
    }
    if (!this.isConnected) return;
    this.timer = setTimeout(() => this.#follow({ id, job_id: job }), document.hidden ? HIDDEN_EVERY_MS : ASK_EVERY_MS);
  }

  #show({ state, progress }) {
    const bar = this.progress.querySelector("progress");
    if (progress.total) {
      bar.max = progress.total;
      bar.value = progress.done;
    } else bar.removeAttribute("value");
    if (state === "queued") setText(this.said, t("Waiting for a worker"));
    else if (!progress.total) setText(this.said, progress.message || t("Learning"));
    else if (progress.done >= progress.total) setText(this.said, t("Counting pairs and saving"));
    else setText(this.said, t("Read %(done)s of %(total)s rows", { done: integer(progress.done), total: integer(progress.total) }));
  }

  #end(tokenizer) {
    this.#busy(false);
    if (tokenizer.state === "ready") {
      this.dialog.close();
      toast(t("The tokenizer %(name)s is ready.", { name: tokenizer.name }));
      document.dispatchEvent(new CustomEvent("tokenizerready", { detail: tokenizer }));
      return;
    }
    const error = { message: t("The tokenizer could not be learnt."), ...tokenizer.error };
    if (this.dialog.open) this.problem.replaceChildren(problemNotice(error));
    else toastError(error);
  }

  #busy(isBusy) {
    this.isBusy = isBusy;
    this.button.disabled = isBusy;
    if (isBusy) this.button.setAttribute("aria-busy", "true");
    else this.button.removeAttribute("aria-busy");
    this.progress.hidden = !isBusy;
    for (const input of this.form.querySelectorAll("input")) input.readOnly = isBusy;
  }
}

customElements.define("dataset-tokenizer", DatasetTokenizer);
