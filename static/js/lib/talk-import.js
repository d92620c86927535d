// A file of a conversation as the body of POST /conversations: what the studio exported, with all its branches, or a list
// of messages as OpenAI's API has them. What is in it is only looked at for its shape; the server decides what it keeps.

import { plainMessage, speakable } from "./conversation.js";
import { t } from "./i18n.js";

export const MOST_BYTES = 16 << 20; // an export says everything twice, indented
const TITLE_CHARS = 200;
const MODES = ["chat", "text"];
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * @param {string} text of the file
 * @param {{name: string, isThere: (id: string) => boolean}} about the file's name, and which checkpoints are here
 * @returns the body; throws an Error whose message is a sentence
 */
export function readTalk(text, { name, isThere }) {
  const file = parsed(text);
  const talk = Array.isArray(file) ? { messages: file } : file;
  if (!isObject(talk) || !Array.isArray(talk.branches ?? talk.messages)) {
    throw new Error(t("This file holds no conversation: it needs a list named messages, as the export of a chat has it."));
  }
  const turns = Array.isArray(talk.messages) ? talk.messages : [];
  if (!turns.every(isObject)) throw new Error(t("This file holds no conversation: its messages must be objects with role and content."));
  const [first] = turns;
  const system = ["system", "developer"].includes(first?.role) ? textOf(first, 1) : "";
  const messages = Array.isArray(talk.branches) ? talk.branches.map((message) => plainMessage(isObject(message) ? message : {}))
    : turns.slice(system ? 1 : 0).map((turn, place) => messageOf(turn, place + (system ? 2 : 1)));
  if (!messages.length) throw new Error(t("This conversation is empty: there is nothing to import."));
  const [checkpoint, adapter] = typeof talk.model === "string" ? talk.model.split("+") : [];
  const known = (id) => (id && isThere(id) ? id : null);
  return { title: titleOf(talk.title, name), checkpoint_id: known(checkpoint), adapter_checkpoint_id: known(checkpoint) && known(adapter),
           mode: MODES.includes(talk.mode) ? talk.mode : null, system: speakable(system), sampling: isObject(talk.sampling) ? talk.sampling : {}, messages,
           head: messages.some(({ id }) => id !== undefined && id === talk.head) ? talk.head : null };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(t("This file is not JSON: %(reason)s", { reason: error.message }));
  }
}

function titleOf(title, name) {
  const said = typeof title === "string" && title.trim() ? title : name.replace(/\.[^.]*$/, "");
  return [...speakable(said).replace(/[\s\p{C}]+/gu, " ").trim()].slice(0, TITLE_CHARS).join("") || t("Untitled chat");
}

/** The text of a message in OpenAI's shape; `number` counts from one. */
function textOf({ content }, number) {
  if (content === null || content === undefined) return "";
  if (typeof content === "string") return content;
  const parts = Array.isArray(content) ? content : [content];
  if (!parts.every((part) => part?.type === "text" && typeof part.text === "string")) {
    throw new Error(t("Message %(number)s holds something else than text, which this studio cannot keep.", { number }));
  }
  return parts.map((part) => part.text).join("");
}

/** A message in OpenAI's shape as the studio keeps it. */
function messageOf(turn, number) {
  const { role, reasoning_content: reasoning, tool_calls: calls, tool_call_id: id, name } = turn;
  const said = { role: role === "developer" ? "system" : role, content: speakable(textOf(turn, number)) };
  if (role === "tool") return plainMessage({ ...said, tool_call_id: id, name });
  if (role !== "assistant") return said;
  const tools = Array.isArray(calls) ? calls.map((call) => ({ id: call?.id, name: call?.function?.name, arguments: call?.function?.arguments })) : [];
  return plainMessage({ ...said, finish_reason: tools.length ? "tool_calls" : "stop", reasoning: reasoning || null,
                        tool_calls: tools.length ? tools : null });
}
