// What a form of "Add data" shows once the studio has taken it: the import's progress, then how it ended.

import { h } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t, tn } from "../lib/i18n.js";
import "./dataset-progress.js";
import { problemNotice } from "./dataset-problems.js";

/** Follow the import of `dataset` in `place`; `again()` brings the form back. Tells the page that its list changed. */
export function followImport(place, dataset, again) {
  const changed = () => place.dispatchEvent(new CustomEvent("datasetchange", { bubbles: true }));
  const progress = h("dataset-progress.stack", { dataset: dataset.id, job: dataset.job_id ?? "", cancels: true });
  progress.addEventListener("settled", ({ detail }) => {
    const hadFocus = place.contains(document.activeElement);
    const shown = detail ?? { state: "failed", error: { message: t("The dataset was deleted.") } };
    place.replaceChildren(...(shown.state === "ready" ? ready(shown, again) : [failed(shown, again)]));
    if (hadFocus) place.querySelector("a, button")?.focus(); // what had it is gone; elsewhere nobody is disturbed
    changed();
  });
  const hadFocus = place.contains(document.activeElement);
  place.replaceChildren(h("p.wrap", { dir: "auto" }, h("strong", {}, dataset.name)), progress);
  if (hadFocus) progress.querySelector("button")?.focus();
  changed();
}

function ready(dataset, again) {
  return [
    h("div.notice.good", { role: "status" }, h("p", {}, tn("%(name)s is ready: %(num)s row.", "%(name)s is ready: %(num)s rows.",
                                                       dataset.rows ?? 0, { name: dataset.name }))),
    ...dataset.warnings.map((warning) => h("div.notice.warn", {}, h("p", {}, warning))),
    h("p.row", {}, h("a.button.primary", { href: `/datasets/${dataset.id}` }, t("Look at it")),
      h("button.button", { type: "button", onclick: again }, t("Add more"))),
  ];
}

function failed(dataset, again) {
  const error = dataset.error ?? { message: "" };
  return h("div.stack", { role: "alert" },
    problemNotice({ ...error, message: error.message || t("The import did not work.") }),
    error.line ? h("p.small.muted", {}, t("Correct line %(line)s in the file and upload it again.", { line: integer(error.line) })) : null,
    h("p.row", {}, h("button.button", { type: "button", onclick: again }, t("Try again")),
      h("a.button.quiet", { href: `/datasets/${dataset.id}` }, t("Show the failed import"))));
}
