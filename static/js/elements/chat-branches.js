// Among the actions of a message: which of its siblings it is, and what can be done with its branch. Events of the
// element that they stand in: "chat-branch" {message, what}: -1, 1, "fork" or "prune".

import { h } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";

/** @returns {Element[]} for `extra` of <chat-message> */
export function branchControls(message, siblings, tell) {
  const place = siblings.indexOf(message);
  const button = (what, text, label, disabled = false) => h("button.button.quiet.tiny", {
    type: "button", "data-action": `branch${what}`, "aria-label": label, title: label, disabled, onclick: () => tell(message, what) }, text);
  const turns = siblings.length < 2 ? [] : [h("span.branch-turn", { role: "group", "aria-label": t("Branches") },
    button(-1, "‹", t("Branch before this one"), place === 0),
    h("span.small.muted.number", {}, `${integer(place + 1)}/${integer(siblings.length)}`),
    button(1, "›", t("Next branch"), place === siblings.length - 1),
    button("prune", t("Delete branch"), t("Delete branch: this message and all that follows it")))];
  return [...turns, button("fork", t("Branch from here"), t("Branch from here: a new chat with everything up to this message"))];
}
