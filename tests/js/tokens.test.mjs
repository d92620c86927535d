import assert from "node:assert/strict";
import { test } from "node:test";

import { counted, countedWords, countWords, describe, histogram, median, pieces, spoken } from "../../static/js/lib/tokens.js";

const shown = (text) => pieces(text).map((piece) => (piece.isSign ? `[${piece.text}]` : piece.text)).join("");

test("what cannot be seen gets a sign", () => {
  assert.equal(shown(" the ferry"), "[·]the[·]ferry");
  assert.equal(shown("a\n\tb\r"), "a[↵][→]b[␍]");
  assert.equal(shown("x\u00a0y\u3000z\u200b"), "x[U+00A0]y[U+3000]z[U+200B]");
  assert.equal(shown("\u202egnp.exe"), "[U+202E]gnp.exe");
  assert.equal(shown("\u0000\u001b[31m"), "[U+0000][U+001B][31m");
  assert.equal(shown("船🚢né"), "船🚢né");
  assert.deepEqual(pieces(""), []);
  assert.deepEqual(pieces("a\nb").map((piece) => piece.breaks), [false, true, false]);
});

test("a token in words", () => {
  const token = { text: " ferry", id: 12, is_target: true, is_special: false, is_partial: false };
  assert.equal(describe(token), "id 12 · graded");
  assert.equal(describe({ ...token, is_target: false, is_special: true }), "id 12 · control token · read only");
  assert.equal(spoken(token), "ferry");
  assert.equal(spoken({ text: " " }), "space");
  assert.equal(spoken({ text: "\n" }), "new line");
  assert.equal(spoken({ text: "", is_partial: true }), "part of a character");
});

test("tokens of a page are counted on both sides of a pair", () => {
  const [yes, no] = [{ is_target: true }, { is_target: false }];
  const rows = [{ tokens: [no, yes, yes] }, { tokens: [no], rejected_tokens: [yes] }, { tokens: null }];
  assert.deepEqual(counted(rows), { tokens: 5, targets: 3 });
  assert.match(countedWords(counted(rows), false), /5 tokens, 3 graded \(60 %\)\.$/);
  assert.match(countedWords(counted(rows), true), /in part\.$/);
  assert.match(countedWords({ tokens: 20000, targets: 10000 }, false), /20,000 tokens, 10,000 graded/);
  assert.equal(countedWords({ tokens: 0, targets: 0 }), "");
});

test("how many tokens of a conversation are graded", () => {
  assert.equal(countWords(1200, 300), "1,200 tokens, 300 graded (25 %).");
  assert.equal(countWords(1, 0), "1 token, 0 graded (0 %).");
});

test("a histogram has round bars and one for the long tail", () => {
  assert.deepEqual(histogram([]), []);
  assert.deepEqual(histogram([0, 0, 1]), [{ from: 0, to: 1, count: 2 }, { from: 1, to: 2, count: 1 }]);
  const values = Array.from({ length: 200 }, (_, i) => i);
  const bars = histogram([...values, 1_000_000]);
  assert.ok(bars.length <= 20);
  assert.equal(bars.reduce((sum, bar) => sum + bar.count, 0), 201);
  assert.equal(bars[0].to, 10);
  assert.equal(bars.at(-1).to, null);
  for (const size of [1, 7, 99, 12_345, 9_999_999]) {
    const some = histogram([size, size / 2 | 0, 0]);
    assert.ok(some.length >= 1 && some.length <= 20, `${size}: ${some.length}`);
    assert.equal(some.reduce((sum, bar) => sum + bar.count, 0), 3);
  }
});

test("the median", () => {
  assert.equal(median([5]), 5);
  assert.equal(median([9, 1, 5]), 5);
  assert.equal(median([1, 3]), 2);
});
