// <chat-presets>: named sets of sampling and system prompt: three that are built in, and one's own. `now()` gives what is
// set at present. Event: "chat-preset" {sampling, system}; a built-in one leaves the system prompt as it is.

import { get, newKey, post, remove, patch } from "../lib/api.js";
import { h } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { toastError } from "./toast-stack.js";

const BUILT_IN = [
  { id: "exact", name: () => t("Exact"), sampling: { temperature: 0 } },
  { id: "balanced", name: () => t("Balanced"), sampling: {} },
  { id: "daring", name: () => t("Daring"), sampling: { temperature: 1.2, top_p: 0.98 } },
];

class ChatPresets extends HTMLElement {
  connectedCallback() {
    this.own = [];
    this.select = h("select", { id: "s-preset", autocomplete: "off" });
    this.name = h("input", { "aria-label": t("Name of the preset"), maxlength: "200", autocomplete: "off", placeholder: t("Name of the preset") });
    this.name.addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault()); // it would close the dialog
    const button = (text, work) => h("button.button.tiny", { type: "button", onclick: () => this.#do(work) }, text);
    this.ofOwn = [button(t("Rename"), () => this.#rename()), button(t("Update"), () => this.#update()), button(t("Delete preset"), () => this.#delete())];
    this.append(h("div.field", {}, h("label", { for: "s-preset" }, t("Preset")), this.select),
                h("div.row", {}, this.name, button(t("Save as new"), () => this.#save()), ...this.ofOwn));
    this.addEventListener("change", (event) => {
      event.stopPropagation();
      if (event.target === this.select) this.#choose();
    });
    this.closest("dialog").addEventListener("toggle", () => this.isLoaded || this.#do(() => this.#load()));
    this.#show("");
  }

  #chosen() {
    return this.own.find(({ id }) => id === this.select.value) ?? null;
  }

  #choose() {
    const preset = this.#chosen() ?? BUILT_IN.find(({ id }) => id === this.select.value);
    this.#fit();
    if (preset) this.dispatchEvent(new CustomEvent("chat-preset", { bubbles: true, detail: { sampling: preset.sampling, system: preset.system } }));
  }

  #show(id) {
    const option = (value, text) => h("option", { value }, text);
    this.select.replaceChildren(option("", t("None")),
      h("optgroup", { label: t("Built in") }, ...BUILT_IN.map((preset) => option(preset.id, preset.name()))),
      ...(this.own.length ? [h("optgroup", { label: t("Your own") }, ...this.own.map((preset) => option(preset.id, preset.name)))] : []));
    this.select.value = id;
    this.#fit();
  }

  #fit() {
    const own = this.#chosen();
    for (const button of this.ofOwn) button.hidden = own === null;
    if (this.named !== own?.id) this.name.value = own?.name ?? ""; // else somebody may be writing another one
    this.named = own?.id;
  }

  async #do(work) {
    try {
      await work();
    } catch (error) {
      toastError(error);
    }
  }

  async #load(id = this.select.value) {
    this.own = (await get("/chat/presets")).items;
    this.isLoaded = true;
    this.#show(id);
  }

  async #save() {
    const name = this.name.value.trim();
    if (!name) this.name.focus();
    else await this.#load((await post("/chat/presets", { name, ...this.now() }, { key: newKey() })).id);
  }

  async #rename() {
    await patch(`/chat/presets/${this.select.value}`, { name: this.name.value.trim() });
    await this.#load();
  }

  async #update() {
    await patch(`/chat/presets/${this.select.value}`, this.now());
    await this.#load();
  }

  async #delete() {
    await remove(`/chat/presets/${this.select.value}`);
    await this.#load("");
  }
}

customElements.define("chat-presets", ChatPresets);
