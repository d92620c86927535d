// The list of checkpoints: new ones appear by themselves, older ones on demand.

import "../elements/checkpoint-export.js";
import "../elements/checkpoint-import.js";
import "../elements/copy-button.js";
import "../elements/live-fragment.js";
import { toastError } from "../elements/toast-stack.js";
import { errorOf } from "../lib/api.js";
import { localTimes } from "../lib/dom.js";

document.querySelector("[data-filter] select")?.addEventListener("change", (event) => event.target.form.requestSubmit());

document.querySelector("main").addEventListener("click", (event) => {
  const link = event.target.closest("[data-more] a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (link.getAttribute("aria-busy") !== "true") showMore(link);
});

async function showMore(link) {
  link.setAttribute("aria-busy", "true");
  try {
    const url = new URL(link.href);
    url.searchParams.set("part", "rows");
    const response = await fetch(url, { headers: { Accept: "text/html" } });
    if (!response.ok) throw await errorOf(response);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    localTimes(fresh);
    stopLive();
    const rows = [...fresh.querySelectorAll("tbody tr")];
    document.querySelector("tbody").append(...rows);
    rows[0]?.querySelector("a").focus();
    link.closest("[data-more]").replaceWith(...fresh.querySelectorAll("[data-more]"));
  } catch (error) {
    link.removeAttribute("aria-busy");
    toastError(error);
  }
}

/** The server renders the first page only; once more is shown, a refresh would take it away again. */
function stopLive() {
  const fragment = document.querySelector("live-fragment");
  fragment?.replaceWith(...fragment.childNodes);
}
