import assert from "node:assert/strict";
import { test } from "node:test";
import { bodyOf, minutesOf } from "../../static/js/lib/recipe-form.js";

test("what is left empty is the recipe's own choice", () => {
  assert.deepEqual(bodyOf({ recipe: "tools", minutes: "", language: "", preset: "" }, "Tools"), { recipe: "tools", name: "Tools" });
  assert.deepEqual(bodyOf({ recipe: "tools", minutes: "7.5", language: "pt", preset: "small-cpu" }, "x"),
    { recipe: "tools", name: "x", minutes: 7.5, languages: ["pt"], preset: "small-cpu" });
});

test("a stage gets its share of the time", () => {
  assert.equal(minutesOf(0.55, 6), 3.3);
  assert.equal(minutesOf(0.15, 0.5), 0.1);
});
