// <pipeline-form data-offer>: stages in a line, each with its data and its budget.

import { newKey } from "../lib/api.js";
import { partName } from "../lib/data-layouts.js";
import { dataOf, h, onReturn, setBusy } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { beginsModel, fitting, partValue, placeOf, stagesOf } from "../lib/pipeline-stages.js";
import { startLine } from "../lib/start-line.js";

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
    onReturn(() => setBusy(this.querySelector("[type=submit]"), false));
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
        field("from", t("Starts from"), h("select"), t("Weights that it goes on with.")),
        field("teacher", t("Teacher"), h("select"), t("Whose probabilities it learns; both need one tokenizer.")),
        field("minutes", t("Minutes of training"), number({ min: "0", placeholder: t("one pass over the data") }), t("The time is turned into a number of steps before the first one.")),
        field("preset", t("Size of the model"), h("select", {}, h("option", { value: "" }, t("As suits the machine")),
          ...this.offer.presets.map((preset) => h("option", { value: preset.name }, preset.title))), t("Decided where the model begins; later stages keep it.")),
        field("gate", t("Go on only if the held-out loss is at most"), number({ min: "0", placeholder: t("always") }), t("Otherwise the line stops and waits for you."))));
    for (const key of ["from", "teacher"]) {
      control(row, key).addEventListener("change", (event) => {
        row[key] = this.#rowOf(event.target.value);
        this.#refresh();
      });
    }
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

  #rowOf(value) {
    return Number(value) >= 0 && value !== "" ? this.rows.children[Number(value)] : value;
  }

  /** Titles, and in each row the fields and data that fit its stage and place. */
  #refresh() {
    const rows = [...this.rows.children];
    const titles = rows.map((row, place) => t("Stage %(number)s: %(name)s", { number: place + 1, name: this.#stageOf(row).title }));
    rows.forEach((row, place) => {
      const stage = this.#stageOf(row);
      const trains = stage.name !== "tokenizer";
      row.querySelector("[data-title]").textContent = titles[place];
      control(row, "stage").closest(".field").querySelector(".help").textContent = stage.summary;
      offer(control(row, "dataset"), [["", t("Starter corpus")],
        ...stage.parts.map((part) => [partValue(part), t("Starter corpus: %(part)s", { part: partName(part) })]),
        ...fitting(this.offer.datasets, stage).map((each) => [each.id, each.name])]);
      const earlier = rows.slice(0, place).map((each, at) => [String(at), titles[at]]);
      this.#offerPlaces(row, "from", [["", t("The stage before")], ["-1", t("Random weights")], ...earlier.slice(0, -1)]);
      this.#offerPlaces(row, "teacher", [["", t("Choose one")], ...earlier.filter(([at]) => this.#stageOf(rows[at]).name !== "tokenizer")]);
      show(row, "from", trains && place > 0);
      show(row, "teacher", stage.has_teacher);
      const isLeast = stage.gate === "reward_accuracy";
      control(row, "gate").closest(".field").querySelector("label").textContent = isLeast
        ? t("Go on only if the preferred answers win in at least this share of the held-out pairs") : t("Go on only if the held-out loss is at most");
      show(row, "gate", trains);
      show(row, "minutes", trains);
      row.querySelector("[data-remove]").disabled = rows.length === 1;
    });
    const values = this.#values();
    rows.forEach((row, place) => show(row, "preset", beginsModel(values, place)));
    this.addButton.disabled = rows.length >= MOST_STAGES;
  }

  #stageOf(row) {
    return this.offer.stages.find((each) => each.name === control(row, "stage").value);
  }

  /** Places in the line to choose from; the chosen stage stays chosen when its place changes. */
  #offerPlaces(row, key, choices) {
    const select = control(row, key);
    offer(select, choices);
    const chosen = row[key] instanceof Element ? String([...this.rows.children].indexOf(row[key])) : row[key] ?? "";
    select.value = chosen;
    if (select.value !== chosen || select.selectedIndex < 0 || (chosen === "-1" && row[key] instanceof Element)) select.value = row[key] = "";
  }

  #values() {
    return [...this.rows.children].map((row) => Object.fromEntries(
      [...row.querySelectorAll("[data-field]")].map((each) => [each.dataset.field, each.value])));
  }

  async #start() {
    const body = () => ({ name: this.querySelector("[name=name]").value, stages: stagesOf(this.#values()) });
    const isStarted = await startLine(this.querySelector("form"), body, { key: this.key, placeOf: (field) => this.#errorOf(field) });
    if (isStarted) this.key = newKey();
  }

  /** Where a problem of this field of the API is said, or null. */
  #errorOf(field) {
    const place = placeOf(field);
    const home = place === null ? null : place.row === null ? this : this.rows.children[place.row];
    return home?.querySelector(`[data-error="${place.name}"]`) ?? null;
  }
}

function control(row, name) {
  return row.querySelector(`[data-field="${name}"]`);
}

/** Choices of a select, as [value, text]; what was chosen stays so where it still can. */
function offer(select, choices) {
  const chosen = select.value;
  select.replaceChildren(...choices.map(([value, text]) => h("option", { value }, text)));
  select.value = choices.some(([value]) => value === chosen) ? chosen : "";
}

function show(row, name, isShown) {
  const field = control(row, name);
  field.closest(".field").hidden = !isShown;
  if (!isShown) field.value = "";
}

customElements.define("pipeline-form", PipelineForm);
