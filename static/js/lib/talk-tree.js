// What was said, as a tree: each message names the one that it follows. An edited question and an answer that was asked
// for again are siblings of what stood there before. One branch is shown; `head` is its last message's id.

const ID_BYTES = 9; // 12 characters

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(ID_BYTES));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_");
}

export class TalkTree {
  #seen = new Map(); // id of a message -> id of the one after it that was shown last

  /** @param {object[]} messages each behind its parent */
  constructor(messages = [], head = null) {
    this.messages = messages;
    this.head = this.get(head) ? head : messages.at(-1)?.id ?? null;
    this.#remember();
  }

  get(id) {
    return this.messages.find((message) => message.id === id) ?? null;
  }

  /** The branch that is shown, first message first. */
  get path() {
    return this.pathTo(this.head);
  }

  pathTo(id) {
    const byId = new Map(this.messages.map((message) => [message.id, message]));
    const found = [];
    for (let at = byId.get(id); at; at = byId.get(at.parent_id)) found.unshift(at);
    return found;
  }

  get last() {
    return this.get(this.head);
  }

  /** Put `message` behind the one with the id `parent`, and show it. @returns the message with its ids */
  add(message, parent = this.head) {
    Object.assign(message, { id: newId(), parent_id: parent });
    this.messages.push(message);
    this.show(message.id);
    return message;
  }

  /** What follows the same message, in the order in which it was written. */
  siblings(message) {
    return this.messages.filter(({ parent_id: parent }) => (parent ?? null) === (message.parent_id ?? null));
  }

  /** Show the branch that ends with the message `id`; null: nothing. */
  show(id) {
    this.head = id;
    this.#remember();
  }

  /** Show the sibling `step` places further, down to where its branch was seen last. Whether there is one. */
  turn(message, step) {
    const siblings = this.siblings(message);
    const next = siblings[siblings.indexOf(message) + step];
    if (next) this.show(this.#deepest(next.id));
    return next !== undefined;
  }

  /** Take `message` and all that follows it away; a sibling is shown in its place, else what stood before. */
  prune(message) {
    const siblings = this.siblings(message);
    const place = siblings.indexOf(message);
    const isShown = this.path.includes(message);
    const gone = new Set([message.id]);
    for (const { id, parent_id: parent } of this.messages) if (gone.has(parent)) gone.add(id);
    this.messages = this.messages.filter(({ id }) => !gone.has(id));
    if (!isShown) return;
    const next = siblings[place + 1] ?? siblings[place - 1];
    this.show(next ? this.#deepest(next.id) : message.parent_id ?? null);
  }

  /** The branch up to `message`, copied for a conversation of its own. */
  copyTo(message) {
    let parent = null;
    return this.pathTo(message.id).map((original) => {
      const copy = { ...structuredClone(original), id: newId(), parent_id: parent };
      parent = copy.id;
      return copy;
    });
  }

  #deepest(id) {
    let at = id;
    for (;;) {
      const after = this.messages.filter((message) => message.parent_id === at);
      if (!after.length) return at;
      at = (after.find((message) => message.id === this.#seen.get(at)) ?? after.at(-1)).id;
    }
  }

  #remember() {
    for (const { id, parent_id: parent } of this.path) this.#seen.set(parent ?? null, id);
  }
}
