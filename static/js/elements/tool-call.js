// <tool-call>: one call of a tool, and beneath it what came back.

import { h } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import { prettyJson, resultText, shortArguments } from "../lib/message-facts.js";

const MOST_SHOWN = 300; // characters or
const MOST_LINES = 4; // lines; more is folded

class ToolCall extends HTMLElement {
  /**
   * @param {{name: string, arguments?: string}} call arguments: as the model wrote them, null where only the result is known
   * @param {{content: string, is_error?: boolean}|null} result null: there is none (yet)
   */
  show(call, result, isLive) {
    const key = JSON.stringify([call, result, isLive]);
    if (this.key === key) return; // a fold that the reader opened stays open
    this.key = key;
    const name = call.name || t("a tool");
    this.className = result?.is_error ? "tool-call is-error" : "tool-call";
    this.setAttribute("role", "group");
    this.setAttribute("aria-label", t("Call of %(name)s", { name }));
    const few = shortArguments(call.arguments);
    this.replaceChildren(
      h("p.tool-head", {}, h("span", { "aria-hidden": "true" }, "⚒"), h("strong.mono", {}, name),
        few && h("code", {}, few), h("span.small.muted", {}, state(result, isLive))),
      ...(few === null && typeof call.arguments === "string" ? [folded(t("Arguments"), prettyJson(call.arguments))] : []),
      ...(result ? [folded(t("Result"), resultText(result))] : []));
  }
}

function state(result, isLive) {
  if (result?.is_error) return t("failed");
  if (result) return "";
  return isLive ? t("is being called…") : t("was not run");
}

/** Text under a word; folded where it is long. */
function folded(label, text) {
  const body = h("pre", { tabindex: "0", "aria-label": label }, text);
  if (text.length <= MOST_SHOWN && text.split("\n").length <= MOST_LINES) {
    return h("div.tool-part", {}, h("span.small.muted", {}, label), body);
  }
  const size = t("%(number)s characters", { number: integer(text.length) });
  return h("details.tool-part", {}, h("summary.small.muted", {}, `${label} · ${size}`), body);
}

customElements.define("tool-call", ToolCall);
