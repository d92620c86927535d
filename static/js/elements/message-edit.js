// The form in place of one's own message while it is edited. Enter sends, Escape leaves it as it was.

import { h, isComposing } from "../lib/dom.js";
import { t, tn } from "../lib/i18n.js";

/**
 * @param {string} text what stands there
 * @param {number} later how many messages go away by sending (0: none, they stay in a branch of their own)
 * @param {{send: (text: string) => void, close: () => void}} on
 */
export function editForm(text, later, { send, close }) {
  const field = h("textarea", { "aria-label": t("Edit this message"), maxlength: "100000", rows: "3" });
  field.value = text;
  const submit = () => field.value.trim() && send(field.value);
  field.addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      submit();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      close();
    }
  });
  const form = h("form.edit-message", {
    onsubmit: (event) => {
      event.preventDefault();
      submit();
    },
  }, field, later ? h("p.small.muted", {}, tn("The %(num)s message after this one will be removed.",
                                              "The %(num)s messages after this one will be removed.", later)) : null,
  h("div.row", {}, h("button.button.primary.tiny", { type: "submit" }, t("Send again")),
    h("button.button.quiet.tiny", { type: "button", onclick: close }, t("Cancel"))));
  return { form, focus: () => field.focus() };
}
