import assert from "node:assert/strict";
import { test } from "node:test";
import { stagesFor, starterSource, withSource } from "../../static/js/lib/first-model.js";

const asked = { minutes: 5, preset: "tiny-cpu", share: 0.65, languages: null };

test("both stages learn of one world, whose size is the whole time's", () => {
  assert.deepEqual(starterSource("text", asked), { kind: "starter", part: "text", minutes: 5, seed: 42 });
  const [pretrain, sft] = stagesFor(asked, "a", "b");
  assert.equal(pretrain.config.max_minutes + sft.config.max_minutes, 5);
  assert.equal(pretrain.dataset_id, "a");
  assert.equal(sft.dataset_id, "b");
});

test("a world that was written before is taken, another is not", () => {
  const source = starterSource("text", asked);
  const stored = { kind: "starter", part: "text", minutes: 5.0, languages: null, seed: 42 };
  const good = { id: "x", state: "ready", source: stored };
  assert.equal(withSource([{ ...good, state: "failed" }, good], source), good);
  assert.equal(withSource([{ ...good, source: { ...stored, minutes: 1 } }], source), undefined);
  assert.equal(withSource([{ ...good, source: { ...stored, languages: ["en"] } }], source), undefined);
  assert.equal(withSource([{ ...good, source: { kind: "upload", filename: "a" } }], source), undefined);
});
