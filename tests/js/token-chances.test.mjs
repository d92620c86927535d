import assert from "node:assert/strict";
import { test } from "node:test";
import {
  alternatives, chanceOf, chanceWords, rankOf, readable, setWantsTokens, stepOf, summary, tokenOptions, wantsTokens,
} from "../../static/js/lib/token-chances.js";

const bytesOf = (text) => [...new TextEncoder().encode(text)];
const token = (text, logprob = -1, top = []) => ({ token: text, logprob, bytes: bytesOf(text), top_logprobs: top });
const part = (bytes, logprob = -1) => ({ token: "\ufffd", logprob, bytes, top_logprobs: [] });
const texts = (tokens) => readable(tokens).map(({ text }) => text);

test("parts of a character are read together, with the chance of all of them", () => {
  const fox = bytesOf("🦊");
  const groups = readable([token("a"), part(fox.slice(0, 1), -0.5), part(fox.slice(1, 3), -0.25), part(fox.slice(3), 0), token("b")]);
  assert.deepEqual(groups.map(({ text, tokens }) => [text, tokens.length]), [["a", 1], ["🦊", 3], ["b", 1]]);
  assert.ok(Math.abs(groups[1].chance - Math.exp(-0.75)) < 1e-12);
  const mixed = { token: "x\ufffd", logprob: -1, bytes: [...bytesOf("x"), ...bytesOf("é").slice(0, 1)], top_logprobs: [] };
  assert.deepEqual(texts([mixed, part(bytesOf("é").slice(1))]), ["xé"]);
});

test("what never becomes whole stays apart", () => {
  assert.deepEqual(texts([part([0xff]), token("a"), part([0xe4, 0xb8])]), ["‹FF›", "a", "‹E4 B8›"]);
  assert.deepEqual(texts([part([0xe4]), part([0xe4]), part([0xb8]), part([0xad])]), ["‹E4›", "中"]);
  assert.deepEqual(texts([{ token: "\ufffd", logprob: -1, bytes: null, top_logprobs: [] }, token("b")]), ["\ufffd", "b"]);
  assert.deepEqual(texts([token("\ufffd")]), ["\ufffd"], "the model really said that sign");
  assert.deepEqual(texts([token("\ufeff")]), ["\ufeff"]);
  assert.deepEqual(texts([]), []);
});

test("steps go from almost certain to surprising", () => {
  assert.deepEqual([1, 0.95, 0.9, 0.7, 0.5, 0.3, 0.1, 0.05, 0.01, 0].map(stepOf), [7, 7, 6, 5, 4, 3, 2, 1, 0, 0]);
  assert.equal(stepOf(null), null);
  assert.equal(chanceOf(null), null);
  assert.equal(chanceOf(1e-9), 1, "rounding is no chance above one");
  assert.deepEqual([1, 0.99951, 0.9949, 0.996, 0.43, 0.0512, 0.0004, null].map(chanceWords),
                   ["100 %", "100 %", "99 %", "99.6 %", "43 %", "5.1 %", "< 0.1 %", "–"]);
});

test("alternatives and rank", () => {
  const top = [token("mat", -0.1), token("chair", -3)].map(({ token: text, logprob, bytes }) => ({ token: text, logprob, bytes }));
  assert.equal(rankOf(token("chair", -3, top)), 2);
  assert.deepEqual(alternatives(token("chair", -3, top)).map(({ token: text, isChosen }) => [text, isChosen]), [["mat", false], ["chair", true]]);
  assert.equal(rankOf(token("piano", -6, top)), null);
  assert.deepEqual(alternatives(token("piano", -6, top)).at(-1), { token: "piano", chance: Math.exp(-6), isChosen: true });
  const twins = [{ token: "\ufffd", logprob: -1, bytes: [0xe4] }, { token: "\ufffd", logprob: -2, bytes: [0xe5] }];
  assert.deepEqual(alternatives({ ...twins[0], top_logprobs: twins }).map(({ token: text }) => text), ["‹E4›", "‹E5›"]);
  assert.equal(rankOf({ token: "\ufffd", logprob: -2, bytes: [0xe5], top_logprobs: twins }), 2);
  assert.equal(rankOf({ token: "a", logprob: -2, bytes: null }), null);
});

test("perplexity is e to the mean surprise, over what is known", () => {
  const sum = summary([token("a", Math.log(0.5)), token("b", Math.log(0.125)), token("c", null)]);
  assert.equal(sum.count, 2);
  assert.ok(Math.abs(sum.perplexity - 4) < 1e-12 && Math.abs(sum.meanLogprob + Math.log(4)) < 1e-12);
  assert.equal(summary([]), null);
  assert.equal(summary([token("a", null), token("b", -Infinity)]), null);
});

test("whether tokens are wanted is a cookie", () => {
  assert.equal(wantsTokens(), false);
  assert.deepEqual(tokenOptions(), {});
  globalThis.document = { cookie: "a=1; studio_tokens=1; b=2" };
  assert.equal(wantsTokens(), true);
  assert.deepEqual(tokenOptions(), { logprobs: true, top_logprobs: 5 });
  assert.deepEqual(tokenOptions("/v1/completions"), { logprobs: 5 });
  document.cookie = "xstudio_tokens=1; studio_tokens=10";
  assert.equal(wantsTokens(), false);
  setWantsTokens(true);
  assert.match(document.cookie, /^studio_tokens=1; Path=\/; Max-Age=\d+; SameSite=Strict$/);
  setWantsTokens(false);
  assert.match(document.cookie, /^studio_tokens=0;/);
  delete globalThis.document;
});
