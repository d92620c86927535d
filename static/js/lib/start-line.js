// Starting a pipeline from a form: what recipes and lines of one's own have in common.

import { post } from "./api.js";
import { setBusy } from "./dom.js";
import { t } from "./i18n.js";

/**
 * Send what `body()` gives and go to the page of the new pipeline. A refusal stands in the `.field-error` that
 * `placeOf(field)` finds for it; what has no place, in the form's [data-problem]. Returns whether it was started.
 */
export async function startLine(form, body, { key, placeOf }) {
  clear(form);
  if (isUnreadable(form)) return false;
  const button = form.querySelector("[type=submit]");
  setBusy(button, true);
  try {
    const line = await post("/pipelines", body(), { key });
    location.assign(`/pipelines/${line.id}`); // the button stays busy until the page is there
    return true;
  } catch (error) {
    explain(form, error.problems?.length ? error.problems : [error], placeOf);
    setBusy(button, false);
    return false;
  }
}

function clear(form) {
  for (const place of form.querySelectorAll(".field-error")) place.textContent = "";
  for (const wrong of form.querySelectorAll("[aria-invalid]")) wrong.removeAttribute("aria-invalid");
  form.querySelector("[data-problem]").hidden = true;
}

/** A number that the browser cannot read has no value at all: it must not pass for an empty field. */
function isUnreadable(form) {
  const wrong = [...form.querySelectorAll("input[type=number]")].find((input) => input.validity.badInput);
  if (!wrong) return false;
  sayAt(wrong.closest(".field").querySelector(".field-error"), t("This is not a number; write it like 1.5.")).focus();
  return true;
}

function explain(form, problems, placeOf) {
  const homeless = [];
  let first = null;
  for (const { field, message, hint } of problems) {
    const words = [message, hint].filter(Boolean).join(" ");
    const place = placeOf(field);
    if (!place) {
      homeless.push(words);
      continue;
    }
    const wrong = sayAt(place, words);
    first ??= wrong;
  }
  const notice = form.querySelector("[data-problem]");
  notice.textContent = homeless.join(" ");
  notice.hidden = homeless.length === 0;
  first?.focus();
}

/** Says it there; returns the control that it is about. */
function sayAt(place, words) {
  place.textContent = words;
  const wrong = place.closest(".field").querySelector("input, select");
  wrong.setAttribute("aria-invalid", "true");
  return wrong;
}
