// The controls of the new-run form: their texts, and what is wrong with them. A field is an element with data-field (an
// option of the stage) or data-place (a part of the request).

import { dataOf, setText } from "./dom.js";
import { isChanged } from "./run-config.js";
import { t, tn } from "./i18n.js";

const PLACES = ["stage", "name", "dataset_id", "base_checkpoint_id", "teacher_checkpoint_id", "devices", "ranks", "priority", "tags", "notes", "budget"];

const optionsOf = (root) => [...root.querySelectorAll("[data-field]")];

export function specsOf(root) {
  return optionsOf(root).map((field) => ({ name: field.dataset.field, kind: field.dataset.kind,
                                           default: field.dataset.default, bounds: dataOf(field, "bounds") ?? {} }));
}

function textOf(field) {
  const controls = [...field.querySelectorAll("input, select")];
  if (field.dataset.kind === "flag") return controls[0].checked ? "1" : "0";
  if (field.dataset.kind === "choices") return controls.filter((c) => c.checked).map((c) => c.value).join(",");
  return controls[0].value;
}

/** Back to what it is where nobody says anything. */
export function reset(field) {
  const wanted = field.dataset.default;
  for (const control of field.querySelectorAll("input, select")) {
    if (control.type === "checkbox") control.checked = field.dataset.kind === "flag" ? wanted === "1" : wanted.split(",").includes(control.value);
    else control.value = control.nodeName === "SELECT" ? wanted : "";
  }
}

/** Every text of the form; what a stage does not have is "not given". */
export function stateOf(form) {
  const state = { values: {}, needed: [...form.querySelectorAll("[data-required]")].map((field) => field.dataset.place) };
  for (const name of PLACES) state[name] = form.elements[name]?.value ?? "";
  state.devices ||= "auto";
  state.budget ||= "passes";
  for (const field of optionsOf(form)) state.values[field.dataset.field] = textOf(field);
  return state;
}

/** Show only what the choices made so far ask for. */
export function showParts(form, state, budgets) {
  for (const part of form.querySelectorAll("[data-budget-of]")) {
    part.hidden = !budgets[state.budget].includes(part.dataset.budgetOf);
  }
  for (const note of form.querySelectorAll("[data-budget-note]")) note.hidden = note.dataset.budgetNote !== state.budget;
  for (const note of form.querySelectorAll("[data-preset-note]")) note.hidden = note.dataset.presetNote !== state.values.preset;
  form.querySelector("[data-ranks]").hidden = state.devices !== "cpu" && state.devices !== "cuda";
}

/** Mark what is not as usual, and count it on each group. */
export function markChanges(form) {
  for (const field of optionsOf(form)) {
    const changed = isChanged({ kind: field.dataset.kind, default: field.dataset.default }, textOf(field));
    field.toggleAttribute("data-changed", changed);
    field.querySelector("[data-tools]").dataset.tools = changed ? "shown" : "idle";
  }
  for (const group of form.querySelectorAll("[data-group]")) {
    const count = group.querySelectorAll("[data-changed]").length;
    say(group.querySelector("[data-changed-count]"), count && tn("%(num)s changed", "%(num)s changed", count));
  }
}

function say(element, text) {
  if (!element) return; // notes and tags have no usual value to differ from
  element.hidden = !text;
  setText(element, text || "");
}

const fieldOfName = (form, name) => form.querySelector(`[data-field="${CSS.escape(name)}"], [data-place="${CSS.escape(name)}"]`);

/** What a field is called on the page, or its name where it is not there. */
export function labelOf(form, name) {
  return fieldOfName(form, name)?.dataset.label ?? name;
}

export function hasField(form, name) {
  return Boolean(name && fieldOfName(form, name));
}

/** Show `problems` ([{field, message, hint}]) beside their fields and take away those that were mended. */
export function showProblems(form, problems) {
  for (const field of form.querySelectorAll("[data-field], [data-place]")) {
    const name = field.dataset.field ?? field.dataset.place;
    const mine = problems.filter((problem) => problem.field === name);
    const help = field.querySelector(".help")?.textContent;
    const text = mine.map(({ message, hint }) => (hint && hint !== help ? `${message} ${hint}` : message)).join(" ");
    setText(field.querySelector(".field-error"), text);
    field.toggleAttribute("data-wrong", mine.length > 0);
    for (const control of field.querySelectorAll("input, select, textarea")) {
      if (mine.length) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
    }
  }
  for (const group of form.querySelectorAll("[data-group]")) {
    const count = group.querySelectorAll("[data-wrong]").length;
    say(group.querySelector("[data-problem-count]"), count && tn("%(num)s to fix", "%(num)s to fix", count));
  }
}

/** Bring the reader to a field, also into a closed group. */
export function goTo(form, name) {
  const field = fieldOfName(form, name);
  if (!field) return;
  const group = field.closest("details");
  if (group) group.open = true;
  const control = [...field.querySelectorAll("input, select, textarea")].find((c) => c.type !== "radio" || c.checked);
  control?.focus();
  field.scrollIntoView({ block: "center" });
}

/** Say inside of empty inputs what "auto" becomes. `known`: values by option. */
export function hintDefaults(form, known) {
  for (const field of optionsOf(form)) {
    const input = field.querySelector("input[placeholder]");
    if (!input?.placeholder || field.dataset.default !== "") continue;
    const value = known[field.dataset.field];
    input.placeholder = value === undefined || value === null ? t("auto") : t("auto (%(value)s)", { value });
  }
}

/** Put what depends on the stage in the place of what is shown; open groups, notes and tags stay as they are. */
export function replaceParts(form, fresh) {
  const kept = ["notes", "tags"].map((name) => [name, form.elements[name]?.value ?? ""]);
  const pairs = [...form.querySelectorAll("[data-stage-part]")].map((shown) => (
    [shown, fresh.querySelector(`[data-stage-part="${shown.dataset.stagePart}"]`)]));
  if (pairs.some(([, part]) => !part)) throw new Error("some other page"); // all parts or none
  for (const [shown, part] of pairs) {
    for (const group of shown.querySelectorAll("details")) {
      part.querySelector(`[data-group="${group.dataset.group}"]`)?.toggleAttribute("open", group.open);
    }
    shown.replaceWith(part);
  }
  for (const [name, text] of kept) if (form.elements[name]) form.elements[name].value = text;
}
