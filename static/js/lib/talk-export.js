// A conversation as a file: Markdown to read, JSON to go on with.

import { plainMessage } from "./conversation.js";

/** @param {{title: string, system: string, messages: object[]}} talk `messages`: the branch that is shown */
export function asMarkdown({ title, system, messages }, nameOf, thoughts) {
  const parts = [`# ${title}`];
  if (system.trim()) parts.push(quoted(system.trim()));
  for (const message of messages) {
    parts.push(`## ${nameOf(message)}`);
    if (message.reasoning?.trim()) parts.push(quoted(`**${thoughts}**\n\n${message.reasoning.trim()}`));
    if (message.content.trim()) parts.push(message.content.trim());
    for (const call of message.tool_calls ?? []) parts.push(`- ${call.name}(${call.arguments})`);
  }
  return `${parts.join("\n\n")}\n`;
}

const quoted = (text) => `> ${text.replaceAll("\n", "\n> ")}`;

/** OpenAI's messages of the shown branch, and every branch under `branches` as the studio keeps them. */
export function asJson({ title, model, mode = null, system, sampling, messages, all, head }) {
  const turns = messages.map(({ role, content, reasoning, tool_calls: calls, tool_call_id: id, name }) => ({
    role, content, ...(reasoning ? { reasoning_content: reasoning } : {}), ...(id ? { tool_call_id: id, name } : {}),
    ...(calls?.length ? { tool_calls: calls.map((call) => ({ id: call.id, type: "function",
                                                             function: { name: call.name, arguments: call.arguments } })) } : {}) }));
  if (system.trim()) turns.unshift({ role: "system", content: system });
  return `${JSON.stringify({ title, model, mode, sampling, messages: turns, branches: all.map(plainMessage), head }, null, 2)}\n`;
}

/** A name for the file that every system takes. */
export const fileName = (title) => title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "chat";
