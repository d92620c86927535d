// Uploading a file: a look at it before it is sent, how fast it goes and how long it takes, then its import.

import { newKey } from "../lib/api.js";
import { h, setText } from "../lib/dom.js";
import { t, tn } from "../lib/i18n.js";
import { problemOf, Rate, send, sendingWords } from "../lib/upload.js";
import { followImport } from "./dataset-after.js";
import { clearProblems, problemNotice, sayAt, showProblems } from "./dataset-problems.js";
import "./file-drop.js";
import "./upload-preview.js";

class UploadForm extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.drop = this.querySelector("file-drop");
    this.preview = this.querySelector("upload-preview");
    this.after = this.querySelector("[data-after]");
    this.key = newKey();
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    // the key belongs to what is sent: the same again is harmless, something else is a new upload
    this.form.addEventListener("change", () => { this.key = newKey(); });
    this.preview.addEventListener("mappingchange", () => { this.key = newKey(); });
    this.drop.input.addEventListener("change", () => this.#look());
    this.form.elements.layout.addEventListener("change", () => this.#look());
    this.addEventListener("filedrop", ({ detail }) => {
      this.key = newKey();
      this.#look(detail.count > 1 ? tn("Only the first of %(num)s file is taken.", "Only the first of %(num)s files is taken.", detail.count) : "");
    });
    if (this.drop.file) this.#look();
    this.warn = (event) => event.preventDefault(); // leaving the page would end the upload
  }

  disconnectedCallback() {
    this.upload?.cancel();
    window.removeEventListener("beforeunload", this.warn);
  }

  /** Say at once what is wrong with the chosen file, or what is in it. */
  async #look(remark = "") {
    this.preview.clear();
    const file = this.drop.file;
    if ((await this.#check(remark)) && this.drop.file === file) this.preview.look(file, this.form.elements.layout.value);
  }

  /** Whether the chosen file may be sent. */
  async #check(remark = "") {
    clearProblems(this.form);
    const file = this.drop.file;
    const problem = file ? await problemOf(file) : null;
    if (this.drop.file !== file) return false; // another one was chosen meanwhile
    if (problem) sayAt(this.form, "file", problem.message, problem.hint);
    else if (remark) sayAt(this.form, "file", remark);
    if (problem || remark) this.form.elements.file.toggleAttribute("aria-invalid", Boolean(problem));
    return file !== null && problem === null;
  }

  async #submit() {
    if (this.upload) return;
    if (!this.drop.file) {
      clearProblems(this.form);
      sayAt(this.form, "file", t("Choose a file first."));
      this.form.elements.file.focus();
      return;
    }
    if (!(await this.#check()) || this.upload) {
      this.form.elements.file.focus();
      return;
    }
    await this.#send(this.drop.file);
  }

  async #send(file) {
    const { name, layout } = this.form.elements;
    const { mapping } = this.preview;
    const show = this.#showSending(file);
    this.upload = send(file, { name: name.value.trim(), layout: mapping ? "auto" : layout.value,
                               mapping: mapping ? JSON.stringify(mapping) : "" }, { key: this.key, onProgress: show });
    window.addEventListener("beforeunload", this.warn);
    try {
      const dataset = await this.upload.done;
      this.key = newKey();
      followImport(this.after, dataset, () => this.#again());
    } catch (error) {
      this.#bringBack();
      if (error.name === "AbortError") {
        this.after.hidden = false;
        this.after.replaceChildren(h("p.muted", { role: "status" }, t("The upload was cancelled. Nothing was stored.")));
        this.form.querySelector("[type=submit]").focus();
        return;
      }
      const rest = showProblems(this.form, error);
      if (rest) {
        this.after.hidden = false;
        this.after.replaceChildren(h("div", { role: "alert" }, problemNotice(rest)));
      }
    } finally {
      this.upload = null;
      window.removeEventListener("beforeunload", this.warn);
    }
  }

  /** Put the progress in the form's place. Returns what tells it how many bytes have left. */
  #showSending(file) {
    const bar = h("progress", { max: file.size, value: 0, "aria-label": t("Upload") });
    const amount = h("span.number");
    const news = h("span.visually-hidden", { role: "status" }, t("Sending"));
    const cancel = h("button.button", { type: "button", onclick: () => this.upload?.cancel() }, t("Cancel the upload"));
    this.form.hidden = true;
    this.after.hidden = false;
    this.after.replaceChildren(h("p.wrap", { dir: "auto" }, h("strong", {}, file.name)), bar, h("p.small", {}, amount, news),
                               h("p", {}, cancel));
    cancel.focus();
    const rate = new Rate();
    setText(amount, t("Starting to send"));
    return (sent, total) => {
      rate.add(sent, performance.now() / 1000);
      bar.max = total;
      bar.value = sent;
      setText(amount, sendingWords(rate, sent, total));
    };
  }

  #bringBack() {
    this.form.hidden = false;
    this.after.hidden = true;
    this.after.replaceChildren();
  }

  #again() {
    this.#bringBack();
    this.drop.clear();
    this.preview.clear();
    this.form.elements.name.value = "";
    this.form.elements.file.focus();
  }
}

customElements.define("upload-form", UploadForm);
