// <checkpoint-import>: sends the files of a model or an adapter, follows the job that reads them, and leads to what
// became of them. The dialog may be closed meanwhile: a toast says how it ended.

import { get, newKey, post } from "../lib/api.js";
import { h, setBusy, setText } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { JobProgress } from "../lib/job-progress.js";
import { Rate, send, sendingWords } from "../lib/upload.js";
import { wireDialog } from "./dataset-dialog.js";
import { clearProblems, problemNotice, sayAt, showProblems } from "./dataset-problems.js";
import { toast, toastError } from "./toast-stack.js";

const ASK_EVERY_MS = 1000;
const HIDDEN_EVERY_MS = 5000;

class CheckpointImport extends HTMLElement {
  connectedCallback() {
    const find = (selector) => this.querySelector(selector);
    Object.assign(this, { form: find("form"), fields: find("[data-fields]"), progress: find("[data-progress]"),
                          bar: find("progress"), said: find("[data-said]"), problem: find("[data-problem]"),
                          button: find("[type=submit]"), cancel: find("[data-cancel]"), key: newKey() });
    this.dialog = wireDialog(this, () => this.isDone && this.#show("fields"));
    this.form.addEventListener("change", () => {
      this.key = newKey(); // the key belongs to what is sent
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.upload && !this.job) this.#send();
    });
    this.cancel.addEventListener("click", () => this.#cancel());
    this.warn = (event) => event.preventDefault(); // leaving the page would end the upload
  }

  disconnectedCallback() {
    this.upload?.cancel();
    clearTimeout(this.timer);
    window.removeEventListener("beforeunload", this.warn);
  }

  async #send() {
    clearProblems(this.form);
    this.problem.replaceChildren();
    const { file, name, base_checkpoint_id: base, tokenizer_id: tokenizer } = this.form.elements;
    const files = [...file.files];
    if (!files.length) {
      sayAt(this.form, "file", t("Choose a file first."));
      file.focus();
      return;
    }
    this.#show("progress");
    const rate = new Rate();
    const onProgress = (sent, total) => {
      rate.add(sent, performance.now() / 1000);
      Object.assign(this.bar, { max: total, value: sent });
      setText(this.said, sendingWords(rate, sent, total));
    };
    setText(this.said, t("Starting to send"));
    window.addEventListener("beforeunload", this.warn);
    this.upload = send(files, { name: name.value.trim(), base_checkpoint_id: base.value, tokenizer_id: tokenizer?.value },
                       { key: this.key, path: "/checkpoints/import", onProgress });
    try {
      this.job = (await this.upload.done).id;
      this.reading = new JobProgress();
      this.#look();
    } catch (error) {
      this.#show("fields");
      if (error.name === "AbortError") {
        this.problem.replaceChildren(h("p.muted", { role: "status" }, t("The upload was cancelled. Nothing was stored.")));
        return;
      }
      const rest = showProblems(this.form, error);
      if (rest) this.problem.replaceChildren(problemNotice(rest));
    } finally {
      this.upload = null;
      window.removeEventListener("beforeunload", this.warn);
    }
  }

  /** Its end is told by the upload, or by the job. */
  async #cancel() {
    this.upload?.cancel();
    if (!this.job) return;
    setBusy(this.cancel, true);
    try {
      await post(`/jobs/${this.job}/cancel`);
    } catch (error) {
      if (error.status !== 409) toastError(error); // 409: it has ended, as the next look will tell
      setBusy(this.cancel, false);
    }
  }

  async #look() {
    try {
      const job = await get(`/jobs/${this.job}`);
      if (!["queued", "running"].includes(job.state)) {
        this.#end(job);
        return;
      }
      this.reading.show(this.bar, this.said, job.progress);
    } catch (error) {
      if ([401, 404].includes(error.status)) {
        this.#end({ state: "failed", error });
        return;
      }
      setText(this.said, error.message); // it goes on by itself
    }
    this.timer = setTimeout(() => this.#look(), document.hidden ? HIDDEN_EVERY_MS : ASK_EVERY_MS);
  }

  #end({ state, result, error }) {
    this.job = null;
    this.key = newKey();
    if (state !== "completed") {
      const said = error ?? { message: t("It was cancelled.") };
      this.#show("fields");
      if (!said.field || !sayAt(this.form, said.field, said.message, said.hint)) {
        this.problem.replaceChildren(problemNotice({ message: said.message, hint: said.hint }));
      }
      if (!this.dialog.open) toastError(said);
      return;
    }
    this.isDone = this.cancel.hidden = true;
    this.form.reset();
    setText(this.said, result.kind === "adapter" ? t("The adapter is here.") : t("The model is here."));
    Object.assign(this.bar, { max: 1, value: 1 });
    const chat = h("a.button.primary", { href: `/chat?checkpoint=${result.checkpoint_id}` }, t("Chat with it"));
    this.problem.replaceChildren(h("p.row", {}, chat, h("a.button", { href: `/runs/${result.run_id}` }, t("Show it"))));
    if (this.dialog.open) chat.focus();
    else toast(this.said.textContent);
  }

  /** The form, or how far it is. */
  #show(part) {
    this.isDone = false;
    const isForm = part === "fields";
    const hadFocus = [this.button, this.cancel].includes(document.activeElement);
    this.fields.hidden = this.button.hidden = !isForm;
    this.progress.hidden = this.cancel.hidden = isForm;
    setBusy(this.cancel, false);
    this.bar.removeAttribute("value");
    this.problem.replaceChildren();
    if (hadFocus) (isForm ? this.button : this.cancel).focus(); // the one that had it is gone
  }
}

customElements.define("checkpoint-import", CheckpointImport);
