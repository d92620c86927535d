import assert from "node:assert/strict";
import { test } from "node:test";
import { isMac, keyLabel, shortcutOf } from "../../static/js/lib/shortcuts.js";

const asked = (event, { onMac = false, isTyping = true } = {}) => shortcutOf({ keyCode: 0, getModifierState: () => false, ...event }, { onMac, isTyping });

test("a letter counts with Alt, on a Mac with Control and Shift", () => {
  assert.equal(asked({ key: "n", code: "KeyN", altKey: true }), "new");
  assert.equal(asked({ key: "N", code: "KeyN", ctrlKey: true, shiftKey: true }, { onMac: true }), "new");
  assert.equal(asked({ key: "˜", code: "KeyN", altKey: true }, { onMac: true }), null, "it writes a character there");
  assert.equal(asked({ key: "N", code: "KeyN", ctrlKey: true, shiftKey: true }), null, "a browser's own");
  assert.equal(asked({ key: "n", code: "KeyN" }), null);
  assert.equal(asked({ key: "x", code: "KeyX", altKey: true }), null);
  assert.deepEqual([keyLabel("N", false), keyLabel("N", true)], ["Alt+N", "⌃⇧N"]);
  assert.deepEqual(["MacIntel", "iPad", "Linux x86_64", "Win32", undefined].map((platform) => isMac({ navigator: { platform } })),
    [true, true, false, false, false]);
});

test("what is written on the key counts, where it is no Latin letter its place", () => {
  assert.equal(asked({ key: "r", code: "KeyO", altKey: true }), "again", "Dvorak");
  assert.equal(asked({ key: "к", code: "KeyR", altKey: true }), "again", "Russian");
});

test("nothing is done while an input method, AltGr or a held key writes", () => {
  const alt = { key: "n", code: "KeyN", altKey: true };
  assert.equal(asked({ ...alt, isComposing: true }), null);
  assert.equal(asked({ ...alt, keyCode: 229 }), null);
  assert.equal(asked({ ...alt, repeat: true }), null);
  assert.equal(asked({ ...alt, ctrlKey: true }), null);
  assert.equal(asked({ ...alt, getModifierState: (name) => name === "AltGraph" }), null);
});

test("a question mark is one where something is written, else it asks for the list", () => {
  assert.equal(asked({ key: "?", code: "Slash", shiftKey: true }), null);
  assert.equal(asked({ key: "?", code: "Slash", shiftKey: true }, { isTyping: false }), "keys");
  assert.equal(asked({ key: "/", code: "Slash", ctrlKey: true }), "keys");
  assert.equal(asked({ key: "/", code: "Digit7", ctrlKey: true, shiftKey: true }), "keys", "a German keyboard");
  assert.equal(asked({ key: "/", code: "Slash", metaKey: true }, { onMac: true }), "keys");
  assert.equal(asked({ key: "/", code: "Slash" }), null);
});
