// Where a refusal is shown: each problem beside its field, the rest in one notice.

import { h } from "../lib/dom.js";
import { integer, short } from "../lib/format.js";
import { t } from "../lib/i18n.js";

/** A notice with the sentence of an error, where it is in the file, and what to do. */
export function problemNotice({ message, hint, line, field }, ...actions) {
  const place = [line ? t("Line %(line)s", { line }) : null, field && line ? t("field %(field)s", { field }) : null];
  return h("div.notice.bad", {},
    h("div", {}, h("p", {}, h("strong", {}, message || t("This did not work."))),
      place.some(Boolean) ? h("p.small", {}, place.filter(Boolean).join(" · ")) : null,
      hint ? h("p.hint", {}, hint) : null),
    ...actions);
}

export function clearProblems(form) {
  for (const place of form.querySelectorAll("[data-error-of]")) place.replaceChildren();
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

/** Say `text` (and a hint) at the field `name`, if the form has a place for it; whether it has. */
export function sayAt(form, name, message, hint) {
  const place = form.querySelector(`[data-error-of="${CSS.escape(name)}"]`);
  if (!place) return false;
  place.append(h("span", {}, message), hint ? h("span.muted", {}, ` ${hint}`) : "");
  form.elements[name]?.setAttribute?.("aria-invalid", "true");
  place.closest("details:not([open])")?.setAttribute("open", "");
  return true;
}

/** Say at each number field that counts (a hidden one does not) what it takes, where it has none of it; whether all are right. */
export function checkNumbers(form) {
  const wrong = [...form.querySelectorAll("input[type=number]")]
    .filter((input) => !input.closest("[hidden]") && (input.value === "" || !input.validity.valid));
  for (const input of wrong) {
    const limits = { from: bound(input.min), to: bound(input.max) };
    sayAt(form, input.name, input.step === "1" ? t("Give a whole number from %(from)s to %(to)s.", limits)
      : t("Give a number from %(from)s to %(to)s.", limits));
  }
  wrong[0]?.focus();
  return wrong.length === 0;
}

const bound = (text) => (Number.isInteger(Number(text)) ? integer(Number(text)) : short(Number(text)));

/** Show an ApiError in a form. Returns what has no field there, as an error to show beside the form, or null. */
export function showProblems(form, error) {
  clearProblems(form);
  const problems = error.problems?.length ? error.problems : [error];
  // "source.languages.0" is the field languages
  const nameOf = (problem) => (problem.field ?? "").split(".").findLast((part) => part && !/^\d+$/.test(part)) ?? "";
  const rest = problems.filter((problem) => !nameOf(problem) || !sayAt(form, nameOf(problem), problem.message, problem.hint));
  form.querySelector("[aria-invalid]")?.focus();
  return rest.length ? { message: rest.map((problem) => problem.message).join(" "), hint: rest[0].hint ?? error.hint } : null;
}
