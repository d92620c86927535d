// Layouts of data files as the studio's import knows them: their names, and which of a file's columns each one needs.

import { t } from "./i18n.js";

const NAMES = {
  alpaca: () => t("Alpaca: instructions with answers"), sharegpt: () => t("ShareGPT conversations"),
  openai: () => t("OpenAI messages"), dialogue: () => t("Dialogues"), pairs: () => t("Questions with answers"),
  self_instruct: () => t("Self-Instruct tasks"), preference: () => t("Preference pairs"),
  kto: () => t("Rated answers (KTO), as pairs"), kto_good: () => t("Rated answers (KTO), the good ones as conversations"),
  text: () => t("Texts"), lines: () => t("Plain text, a document a line"), txt: () => t("Plain text"),
  conversations: () => t("Conversations"), questions: () => t("Questions for a teacher"), dpo: () => t("Preference pairs"),
};
const COLUMN_NAMES = {
  question: () => t("Question"), answer: () => t("Answer"), system: () => t("System prompt"), text: () => t("Text"),
  instruction: () => t("Instruction"), input: () => t("Input"), output: () => t("Answer"), history: () => t("Earlier turns"),
  instances: () => t("Instances"), messages: () => t("Messages"), tools: () => t("Tools"), chosen: () => t("Better answer"),
  rejected: () => t("Worse answer"), label: () => t("Is it good?"),
};
const TALK = [["messages", true], ["system"], ["tools"]];
const RATED = [["label", true], ["messages"], ["question"], ["answer"], ["system"], ["tools"]];
const COLUMNS = {
  alpaca: [["instruction", true], ["input"], ["output", true], ["system"], ["history"]],
  sharegpt: TALK, openai: TALK, dialogue: [["messages", true], ["system"]],
  pairs: [["question", true], ["answer", true], ["system"]],
  self_instruct: [["instruction", true], ["instances", true]],
  preference: [["question"], ["messages"], ["chosen", true], ["rejected", true], ["system"], ["tools"]],
  kto: RATED, kto_good: RATED, text: [["text", true]],
};
const PART_NAMES = {
  text: () => t("stories and facts"), dialogues: () => t("dialogues"), preferences: () => t("Preference pairs").toLowerCase(),
  tools: () => t("dialogues with tool calls"), identity: () => t("dialogues with another name"), questions: () => t("questions"),
};
const ENCODINGS = { "utf-8": "UTF-8", "utf-8-sig": "UTF-8", gb18030: "GB18030 (GBK)" };

export const layoutName = (layout) => NAMES[layout]?.() ?? layout;
export const columnName = (key) => COLUMN_NAMES[key]?.() ?? key;
/** What a part of the starter corpus holds. */
export const partName = (part) => PART_NAMES[part]?.() ?? part;
export const encodingName = (encoding) => ENCODINGS[encoding] ?? encoding.toUpperCase();

/** The columns that a layout takes: `[{key, isNeeded}]`; none where nothing is to be chosen. */
export function columnsOf(layout) {
  return (COLUMNS[layout] ?? []).map(([key, isNeeded = false]) => ({ key, isNeeded }));
}

/** A column of a mapping as one value of a select, and back: several are joined by a character that no name has. */
const JOINED = "\u001f";
export const toChoice = (column) => (Array.isArray(column) ? column.join(JOINED) : column ?? "");
export const fromChoice = (value) => (value.includes(JOINED) ? value.split(JOINED) : value || null);
export const sayChoice = (value) => value.split(JOINED).join(" + ");

/**
 * The mapping to send: what was understood of a file, with the columns that were chosen and the words put in the place
 * of placeholders. `chosen` and `words` are objects; an empty word replaces nothing.
 */
export function mappingOf(understood, chosen, words) {
  const mapping = { ...understood };
  for (const [key, value] of Object.entries(chosen)) {
    const column = fromChoice(value);
    if (column === null) delete mapping[key];
    else mapping[key] = column;
  }
  const replace = Object.fromEntries(Object.entries(words).filter(([, word]) => word));
  if (Object.keys(replace).length) mapping.replace = replace;
  else delete mapping.replace;
  return mapping;
}
