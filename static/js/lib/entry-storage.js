// What a page keeps in the tab's history entry: it comes back with a reload or the back button, ends with the tab, and no
// other page of the browser can read it.

const WRITE_AFTER_MS = 400; // browsers limit how often an entry is written

/** As the page is left: Chromium reads the entry before "pagehide", Safari on phones has only that. */
export function onLeave(work, view = globalThis) {
  for (const name of ["beforeunload", "pagehide"]) view.addEventListener?.(name, work);
}

/** The part `name` of the entry as a small storage. What is written too soon after another is written a little later. */
export class EntryStorage {
  constructor(name, view = globalThis) {
    Object.assign(this, { name, view });
    onLeave(() => this.write(), view);
  }

  get values() {
    return (this.held ??= { ...this.view.history?.state?.[this.name] });
  }

  getItem(key) {
    return this.values[key] ?? null;
  }

  /** @param value anything that can be cloned */
  setItem(key, value) {
    delete this.values[key]; // the newest stands last
    this.values[key] = value;
    this.timer ??= setTimeout(() => this.write(), WRITE_AFTER_MS);
  }

  removeItem(key) {
    delete this.values[key];
    this.timer ??= setTimeout(() => this.write(), WRITE_AFTER_MS);
  }

  /** All of it at once. */
  replace(values) {
    this.held = values;
    this.timer ??= setTimeout(() => this.write(), WRITE_AFTER_MS);
  }

  /** Now, what waits for being written. */
  write() {
    if (this.timer === undefined) return;
    clearTimeout(this.timer);
    this.timer = undefined;
    const { history } = this.view;
    history.replaceState({ ...history.state, [this.name]: { ...this.values } }, "");
  }
}
