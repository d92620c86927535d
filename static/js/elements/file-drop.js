// A place to drop a file on, around an ordinary <input type="file">. While files are dragged over the page the whole
// page takes them, so that a miss does not replace the page by the file.

import { h, setText } from "../lib/dom.js";
import { bytes } from "../lib/format.js";
import { t } from "../lib/i18n.js";

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

class FileDrop extends HTMLElement {
  connectedCallback() {
    this.input = this.querySelector("input[type=file]");
    this.name = this.querySelector("[data-file-name]");
    this.about = this.querySelector("[data-file-about]");
    this.idle = [this.name.textContent, this.about.textContent];
    this.input.addEventListener("change", () => this.#show());
    if (this.file) this.#show(); // chosen before this script was here, or kept by a reload
    this.controller = new AbortController();
    const options = { signal: this.controller.signal };
    document.addEventListener("dragover", (event) => this.#over(event), options);
    document.addEventListener("dragleave", (event) => event.relatedTarget === null && this.#mark(false), options);
    document.addEventListener("drop", (event) => this.#drop(event), options);
  }

  disconnectedCallback() {
    this.controller.abort();
  }

  get file() {
    return this.input.files[0] ?? null;
  }

  clear() {
    this.input.value = "";
    this.#show();
  }

  #over(event) {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    this.#mark(true);
  }

  #drop(event) {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    this.#mark(false);
    if (this.closest("form").hidden) return; // another file is on its way
    const files = [...event.dataTransfer.files];
    if (files.length) {
      const one = new DataTransfer();
      one.items.add(files[0]);
      this.input.files = one.files;
    }
    this.closest("details")?.setAttribute("open", "");
    this.#show();
    this.dispatchEvent(new CustomEvent("filedrop", { bubbles: true, detail: { count: files.length } }));
  }

  #mark(isOver) {
    this.toggleAttribute("data-over", isOver);
  }

  #show() {
    const file = this.file;
    setText(this.name, file ? file.name : this.idle[0]);
    this.about.replaceChildren(file ? h("span", {}, t("%(size)s. Choose another one?", { size: bytes(file.size) })) : this.idle[1]);
    this.toggleAttribute("data-chosen", file !== null);
  }
}

customElements.define("file-drop", FileDrop);
