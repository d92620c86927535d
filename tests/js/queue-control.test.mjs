import assert from "node:assert/strict";
import { test } from "node:test";

/** As much of a page as the queue's buttons touch. */
class FakePage extends EventTarget {
  body = { name: "body" };
  activeElement = this.body;
  documentElement = {};
  buttons = {};

  button(selector) {
    const made = { selector, dataset: {}, focus: () => (this.activeElement = made) };
    return made;
  }

  /** A render: buttons that go away lose the keyboard to the body. */
  render(...selectors) {
    const before = this.buttons;
    this.buttons = Object.fromEntries(selectors.map((s) => [s, before[s] ?? this.button(s)]));
    const isGone = Object.values(before).includes(this.activeElement) && !this.buttons[this.activeElement.selector];
    if (isGone) this.activeElement = this.body;
    this.dispatchEvent(new Event("fragment"));
  }

  querySelector(selector) {
    if (selector === "form[data-queue-form]") return this.form;
    return selector === "live-fragment" ? { refresh: async () => this.refreshed?.() } : this.buttons[selector] ?? null;
  }
}

const PAUSE = '[data-dialog="queue-dialog"]';
const RESUME = '[data-queue="resume"]';
const page = (globalThis.document = new FakePage());
globalThis.HTMLElement = class {};
globalThis.customElements = { define() {} };
globalThis.fetch = async () => new Response("{}");
const { bindQueueDialog } = await import("../../static/js/elements/queue-control.js");

/** Pauses the queue through the dialog; `refreshed`: what the refresh that follows shows. */
async function pause(refreshed) {
  page.render(PAUSE);
  page.refreshed = refreshed;
  let submit;
  const dialog = { close: () => page.buttons[PAUSE].focus() };
  const parts = { "[data-close]": { addEventListener() {} }, "[type=submit]": {}, ".field-error": {} };
  page.form = {
    closest: () => dialog, querySelector: (selector) => parts[selector], reset() {},
    elements: { note: { value: "" } }, addEventListener: (name, work) => (submit = work),
  };
  bindQueueDialog();
  await submit({ preventDefault() {} });
  assert.equal(parts[".field-error"].textContent, undefined);
}

test("after a pause the keyboard is on the button that resumes", async () => {
  await pause(() => page.render(RESUME));
  assert.equal(page.activeElement.selector, RESUME);
});

test("a refresh that was under way shows the old state once more", async () => {
  await pause(() => undefined);
  assert.equal(page.activeElement.selector, PAUSE);
  page.render(PAUSE);
  assert.equal(page.activeElement.selector, PAUSE);
  page.render(RESUME);
  assert.equal(page.activeElement.selector, RESUME);
});

test("a keyboard that has gone elsewhere is not called back", async () => {
  await pause(() => undefined);
  const field = (page.activeElement = { name: "field" });
  page.render(RESUME);
  assert.equal(page.activeElement, field);
  page.activeElement = page.body;
  page.render(RESUME);
  assert.equal(page.activeElement, page.body);
});
