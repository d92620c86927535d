// <pipeline-form data-offer>: stages in a line, each with its data and its budget.

import { newKey, post } from "../lib/api.js";
import { dataOf, h } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { fitting, placeOf, stagesOf } from "../lib/pipeline-stages.js";

const MOST_STAGES = 20;
let nextId = 0;

class PipelineForm extends HTMLElement {
  connectedCallback() {
    this.offer = dataOf(this, "offer");
    this.rows = this.querySelector("[data-rows]");
    this.addButton = this.querySelector("[data-add]");
    this.key = newKey();
    this.addButton.addEventListener("click", () => this.#add().querySelector("select").focus());
    this.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    this.addEventListener("input", () => (this.key = newKey()));
    this.#add("pretrain");
    this.#add("sft");
  }

  #add(name = this.offer.stages.at(-1).name) {
    const row = h("li.card");
    const field = (key, label, control, help) => {
      const id = `stage-field-${nextId++}`;
      control.id = id;
      control.dataset.field = key;
      const error = h("p.field-error", { id: `${id}-error`, role: "alert", "data-error": key });
      control.setAttribute("aria-describedby", `${id}-help ${id}-error`);
      return h("div.field", {}, h("label", { for: id }, label), control, h("p.help", { id: `${id}-help` }, help), error);
    };
    const stage = h("select", { onchange: () => this.#refresh() },
      ...this.offer.stages.map((each) => h("option", { value: each.name, selected: each.name === name }, each.title)));
    const number = (attributes) => h("input", { type: "number", step: "any", inputmode: "decimal", ...attributes });
    row.append(
      h("div.card-head", {}, h("h2", { "data-title": true }), h("button.button.quiet.tiny", { type: "button", "data-remove": true, onclick: () => this.#remove(row) }, t("Remove"))),
      h("div.station-fields", {},
        field("stage", t("Stage"), stage, ""),
        field("dataset", t("Data"), h("select"), t("Without data of your own it learns from the starter corpus.")),
        field("minutes", t("Minutes of training"), number({ min: "0", placeholder: t("one pass over the data") }), t("The time is turned into a number of steps before the first one.")),
        field("preset", t("Size of the model"), h("select", {}, h("option", { value: "" }, t("As suits the machine")),
          ...this.offer.presets.map((preset) => h("option", { value: preset.name }, preset.title))), t("Decided where the model begins; later stages keep it.")),
        field("gate", t("Go on only if the held-out loss is at most"), number({ min: "0", placeholder: t("always") }), t("Otherwise the line stops and waits for you."))));
    this.rows.append(row);
    this.#refresh();
    return row;
  }

  #remove(row) {
    row.remove();
    this.key = newKey();
    this.#refresh();
    this.addButton.focus();
  }

  /** Titles, and in each row the fields and data that fit its stage and place. */
  #refresh() {
    const rows = [...this.rows.children];
    rows.forEach((row, place) => {
      const stage = this.offer.stages.find((each) => each.name === control(row, "stage").value);
      const before = place > 0 ? control(rows[place - 1], "stage").value : null;
      row.querySelector("[data-title]").textContent = t("Stage %(number)s: %(name)s", { number: place + 1, name: stage.title });
      control(row, "stage").closest(".field").querySelector(".help").textContent = stage.summary;
      const data = control(row, "dataset");
      const chosen = data.value;
      data.replaceChildren(h("option", { value: "" }, t("Starter corpus")),
        ...fitting(this.offer.datasets, stage).map((each) => h("option", { value: each.id }, each.name)));
      data.value = [...data.options].some((option) => option.value === chosen) ? chosen : "";
      show(row, "minutes", stage.name !== "tokenizer");
      show(row, "preset", stage.name !== "tokenizer" && (before === null || before === "tokenizer"));
      show(row, "gate", stage.name !== "tokenizer" && place < rows.length - 1);
      row.querySelector("[data-remove]").disabled = rows.length === 1;
    });
    this.addButton.disabled = rows.length >= MOST_STAGES;
  }

  async #start() {
    const button = this.querySelector("[type=submit]");
    const rows = [...this.rows.children].map((row) => Object.fromEntries(
      [...row.querySelectorAll("[data-field]")].map((each) => [each.dataset.field, each.value])));
    this.#clear();
    if (this.#isUnreadable()) return;
    button.disabled = true;
    button.setAttribute("aria-busy", "true");
    try {
      const line = await post("/pipelines", { name: this.querySelector("[name=name]").value, stages: stagesOf(rows) }, { key: this.key });
      location.assign(`/pipelines/${line.id}`);
    } catch (error) {
      this.#explain(error);
      button.disabled = false;
      button.removeAttribute("aria-busy");
    }
  }

  /** A number that the browser cannot read has no value at all: it must not pass for an empty field. */
  #isUnreadable() {
    const wrong = [...this.querySelectorAll("input[type=number]")].find((input) => input.validity.badInput);
    if (!wrong) return false;
    wrong.closest(".field").querySelector(".field-error").textContent = t("This is not a number; write it like 1.5.");
    wrong.setAttribute("aria-invalid", "true");
    wrong.focus();
    return true;
  }

  #clear() {
    for (const place of this.querySelectorAll(".field-error")) place.textContent = "";
    for (const wrong of this.querySelectorAll("[aria-invalid]")) wrong.removeAttribute("aria-invalid");
    this.querySelector("[data-problem]").hidden = true;
  }

  #explain(error) {
    const homeless = [];
    let first = null;
    for (const problem of error.problems?.length ? error.problems : [{ field: error.field, message: error.message, hint: error.hint }]) {
      const place = placeOf(problem.field);
      const home = place === null ? null : place.row === null ? this : this.rows.children[place.row];
      const words = [problem.message, problem.hint].filter(Boolean).join(" ");
      const said = home?.querySelector(`[data-error="${place.name}"]`);
      if (!said) {
        homeless.push(words);
        continue;
      }
      said.textContent = words;
      const wrong = said.closest(".field").querySelector("input, select");
      wrong.setAttribute("aria-invalid", "true");
      first ??= wrong;
    }
    const notice = this.querySelector("[data-problem]");
    notice.textContent = homeless.join(" ");
    notice.hidden = homeless.length === 0;
    first?.focus();
  }
}

function control(row, name) {
  return row.querySelector(`[data-field="${name}"]`);
}

function show(row, name, isShown) {
  const field = control(row, name);
  field.closest(".field").hidden = !isShown;
  if (!isShown) field.value = "";
}

customElements.define("pipeline-form", PipelineForm);
