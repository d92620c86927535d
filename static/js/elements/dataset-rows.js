// One row of a dataset for a reader: a text, the turns of a conversation, or a preference pair. Rows are hostile text:
// they go in as text nodes, whatever they say.

import { h } from "../lib/dom.js";
import { integer } from "../lib/format.js";
import { t } from "../lib/i18n.js";
import "./token-strip.js";

// by layout, the fields that training reads
const READ = { text: ["text"], txt: ["text"], conversations: ["conversations", "tools"], dpo: ["chosen", "rejected", "tools"],
               questions: ["question"] };
const ROLES = { system: t("System"), user: t("User"), assistant: t("Assistant"), tool: t("Tool") };

/** A row of GET /datasets/{id}/preview as a list item; `number` is its place in the dataset, whose layout is `layout`. */
export function rowElement(row, number, asTokens, layout) {
  const head = h("p.preview-head.small.muted", {}, h("strong", {}, t("Row %(number)s", { number: integer(number) })),
                 h("span", {}, t("line %(line)s", { line: integer(row.line) })));
  const item = h("li.preview-row", {}, head, ...(asTokens && row.tokens ? tokensOf(row) : textOf(row.row, layout)));
  const others = Object.keys(row.row).filter((key) => !READ[layout]?.includes(key));
  if (!asTokens && row.is_cut) item.append(h("p.small.muted", {}, t("Cut here: only the beginning of a long text is shown.")));
  if (!asTokens && others.length) {
    item.append(h("p.small.muted.wrap", {}, t("Fields that training does not use: %(names)s", { names: others.join(", ") })));
  }
  return item;
}

function tokensOf(row) {
  const strip = (tokens, label) => {
    const element = document.createElement("token-strip");
    element.show(tokens, { label, isCut: row.tokens_cut });
    return element;
  };
  if (!row.rejected_tokens) return [strip(row.tokens, t("Tokens"))];
  return [pair(strip(row.tokens, t("Tokens of the chosen answer")), strip(row.rejected_tokens, t("Tokens of the rejected answer")))];
}

function textOf(row, layout) {
  if (layout === "text" || layout === "txt") return [h("p.preview-text", { dir: "auto" }, row.text)];
  if (layout === "questions") return [h("p.preview-text", { dir: "auto" }, row.question)];
  const tools = listOf(row.tools).map(offered);
  const head = tools.length ? [h("div.turn", { "data-role": "system" }, h("p.turn-role", {}, t("Tools")), ...tools)] : [];
  if (layout === "conversations") return [...head, ...row.conversations.map(turn)];
  return [...head, pair(h("div.stack", {}, ...(row.chosen ?? []).map(turn)), h("div.stack", {}, ...(row.rejected ?? []).map(turn)))];
}

function pair(chosen, rejected) {
  return h("div.preview-pair", {}, h("section", {}, h("h3.small", {}, t("Chosen: the better answer")), chosen),
           h("section", {}, h("h3.small", {}, t("Rejected: the worse answer")), rejected));
}

function turn(message) {
  const known = Object.hasOwn(ROLES, message.role);
  const content = typeof message.content === "string" ? message.content : "";
  return h("div.turn", { "data-role": known ? message.role : "other" },
    h("p.turn-role", {}, known ? ROLES[message.role] : String(message.role)),
    message.reasoning_content ? aside(t("Thinks"), String(message.reasoning_content)) : null,
    content ? h("p.preview-text", { dir: "auto" }, content) : null,
    ...listOf(message.tool_calls).map((call) => code(t("Calls %(name)s", { name: nameOf(call) }), argumentsOf(call))),
    ...listOf(message.tools).map(offered));
}

/** A tool that may be called. Where a file had them in a column, they stand at the row and not at a message. */
function offered(tool) {
  return code(t("May use %(name)s", { name: nameOf(tool) }), (tool.function ?? tool).description ?? "");
}

function aside(title, text) {
  return h("div.turn-aside", {}, h("p.small.muted", {}, title), h("p.preview-text", { dir: "auto" }, text));
}

function code(title, text) {
  return h("div.turn-aside", {}, h("p.small.muted.wrap", {}, title),
           text ? h("pre.preview-code", { dir: "auto" }, typeof text === "string" ? text : JSON.stringify(text)) : null);
}

/** tool_calls and tools are lists, or JSON texts of lists; one that was cut short cannot be read any more. */
function listOf(value) {
  if (Array.isArray(value)) return value.filter((item) => item && typeof item === "object");
  if (!value) return [];
  try {
    return listOf(JSON.parse(value));
  } catch {
    return [{ name: "…", arguments: String(value) }];
  }
}

function nameOf(call) {
  return String((call.function ?? call).name ?? "?");
}

function argumentsOf(call) {
  const value = (call.function ?? call).arguments;
  return typeof value === "string" ? value : JSON.stringify(value ?? {});
}
