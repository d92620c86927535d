import assert from "node:assert/strict";
import { test } from "node:test";
import * as format from "../../static/js/lib/format.js";

test("numbers for people", () => {
  assert.equal(format.integer(1234567), "1,234,567");
  assert.equal(format.compact(926784), "927k");
  assert.equal(format.compact(1.5e9), "1.5G");
  assert.equal(format.compact(7), "7");
  assert.equal(format.bytes(11_500_000), "11.5 MB");
  assert.equal(format.percent(0.1234), "12.3 %");
  assert.equal(format.loss(0.49987), "0.4999");
  assert.equal(format.loss(NaN), "not finite");
  assert.equal(format.short(0.00001234), "1.23e-5");
});

test("what is not known is a dash, never NaN", () => {
  for (const write of Object.values(format).filter((f) => typeof f === "function" && f !== format.loss)) {
    for (const value of [null, undefined]) assert.equal(write(value), "–");
  }
});

test("durations", () => {
  assert.equal(format.duration(12), "12 s");
  assert.equal(format.duration(200), "3 min 20 s");
  assert.equal(format.duration(3900), "1 h 05 min");
  assert.equal(format.duration(200_000), "2 d 7 h");
});

test("times", () => {
  const now = new Date("2026-05-03T12:00:00Z");
  assert.match(format.time("2026-05-03T11:59:00Z", now), /59/);
  assert.match(format.time("2024-05-03T11:59:00Z", now), /2024/);
  assert.equal(format.ago("2026-05-03T11:57:00Z", now.getTime()), "3 minutes ago");
});
