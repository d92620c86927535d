// What is typed and not sent yet, for each conversation and user. It stands in the tab's history entry, and goes along to
// the page that is opened next.

import { EntryStorage } from "./entry-storage.js";

const HANDED = "studio-drafts:";
const MOST_HANDED = 30;

/**
 * Drafts in the history entry and, for the next page of the tab, in the tab's name, which browsers clear where another site
 * is opened. The name is the newer one: what was sent meanwhile does not come back with the back button. It is written at
 * once, because a page that is being left is too late for it.
 */
export class DraftStorage extends EntryStorage {
  constructor(view = globalThis) {
    super("drafts", view);
  }

  setItem(key, text) {
    super.setItem(key, text);
    this.#hand();
  }

  removeItem(key) {
    super.removeItem(key);
    this.#hand();
  }

  #hand() {
    this.view.name = HANDED + JSON.stringify(Object.fromEntries(Object.entries(this.values).slice(-MOST_HANDED)));
  }

  take() {
    const { name } = this.view;
    if (!name.startsWith(HANDED)) return;
    const texts = Object.entries(JSON.parse(name.slice(HANDED.length))).filter(([, text]) => typeof text === "string");
    this.replace(Object.fromEntries(texts));
  }
}

const entry = new DraftStorage();
const nameOf = (user, conversation) => `studio-draft:${user}:${conversation ?? "new"}`;

export function loadDraft(user, conversation, storage = entry) {
  return attempt(() => storage.getItem(nameOf(user, conversation))) ?? "";
}

export function keepDraft(user, conversation, text, storage = entry) {
  attempt(() => (text ? storage.setItem(nameOf(user, conversation), text) : storage.removeItem(nameOf(user, conversation))));
}

/** The answer that this tab was hearing when it was left, so that a reload goes on with it. */
export function markLive(user, message, storage = entry) {
  keepDraft(user, "~live", message ?? "", storage);
}

export const wasLive = (user, message, storage = entry) => loadDraft(user, "~live", storage) === message;

/** An entry may be full; the page works without it. */
function attempt(work) {
  try {
    return work();
  } catch {
    return null;
  }
}

/** Go on with what the page before had. */
export function takeDrafts(view = globalThis, storage = entry) {
  attempt(() => storage.take());
  view.addEventListener("pageshow", () => attempt(() => storage.take())); // Back may bring a page as it was left
}
