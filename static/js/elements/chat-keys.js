// The keys of the chat page: each does what a button on the page does. bindKeys(page, {stop, write}).

import { isComposing } from "../lib/dom.js";
import { isMac, keyLabel, shortcutOf } from "../lib/shortcuts.js";

const isField = (element) => element.closest?.("input, textarea, select, [contenteditable]") !== null;

export function bindKeys(page, { stop, write }) {
  const onMac = isMac();
  const dialog = page.querySelector("#keys-dialog");
  for (const key of dialog.querySelectorAll("[data-letter]")) key.textContent = keyLabel(key.dataset.letter, onMac);
  for (const key of dialog.querySelectorAll("[data-slash]")) key.textContent = onMac ? "⌘/" : "Ctrl+/";
  const press = (selector) => [...page.querySelectorAll(selector)].at(-1)?.click();
  const turn = turner(page);
  const works = {
    new: () => press("[data-new-chat]"), search: () => page.querySelector("chat-list").takeFocus(), write,
    again: () => press('chat-thread [data-action="again"]'), edit: () => press('chat-thread [data-action="edit"]'),
    copy: () => press("chat-thread .message-foot copy-button button"), back: () => turn(-1), forth: () => turn(1),
    keys: () => press('[data-dialog="keys-dialog"]'),
  };
  document.addEventListener("keydown", (event) => {
    if (isComposing(event) || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") stop();
    const name = shortcutOf(event, { onMac, isTyping: isField(event.target) });
    if (!name) return;
    event.preventDefault();
    works[name]();
  });
}

/** Turns the branches of one message, the last that has some: the same one until something is said. */
function turner(page) {
  let parent;
  for (const name of ["chat-send", "chat-edit", "chat-again"]) page.addEventListener(name, () => (parent = undefined));
  return (step) => {
    const forks = [...page.querySelectorAll("chat-message")].filter((element) => element.querySelector(".branch-turn"));
    const fork = forks.find(({ message }) => (message.parent_id ?? null) === parent) ?? forks.at(-1);
    if (!fork) return;
    parent = fork.message.parent_id ?? null;
    fork.querySelector(`[data-action="branch${step}"]`).click();
  };
}
