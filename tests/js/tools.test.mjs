import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { runTools, STARTER_TOOLS, toolList, toolWords } from "../../static/js/lib/tools.js";

const real = globalThis.fetch;
afterEach(() => {
  globalThis.fetch = real;
});

/** The studio's answers to POST /api/v1/tools/run, by tool; a function may throw. */
function studio(answers) {
  const seen = [];
  globalThis.fetch = async (path, { method, body, signal }) => {
    signal?.throwIfAborted();
    seen.push({ path, method, body: body && JSON.parse(body) });
    if (path === "/api/v1/tools") return answers.list();
    return answers[JSON.parse(body).name]();
  };
  return seen;
}

const call = (id, name, text = "{}") => ({ id, name, arguments: text });

test("calls are run and answered in their order", async () => {
  const seen = studio({
    slow: async () => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      return Response.json({ name: "slow", content: "13", is_error: false });
    },
    bad: async () => Response.json({ name: "bad", content: '{"error": "No."}', is_error: true }),
  });
  assert.deepEqual(await runTools([call("a", "slow", '{"term": "57 - 44"}'), call("b", "bad", "")]), [
    { role: "tool", tool_call_id: "a", name: "slow", content: "13", is_error: false },
    { role: "tool", tool_call_id: "b", name: "bad", content: '{"error": "No."}', is_error: true }]);
  assert.deepEqual(seen[0], { path: "/api/v1/tools/run", method: "POST", body: { name: "slow", arguments: '{"term": "57 - 44"}' } });
  assert.equal(seen[1].body.arguments, "{}");
});

test("a call that cannot be run is answered too; being stopped is not", async () => {
  studio({
    refused: async () => Response.json({ error: { message: "Not a call." } }, { status: 422 }),
    away: async () => {
      throw new TypeError("Failed to fetch");
    },
  });
  const [refused, away] = await runTools([call("a", "refused"), call("b", "away")]);
  assert.deepEqual([refused.is_error, JSON.parse(refused.content)], [true, { error: "Not a call." }]);
  assert.deepEqual([away.is_error, JSON.parse(away.content)], [true, { error: "The studio does not answer." }]);
  await assert.rejects(runTools([call("a", "refused")], AbortSignal.abort()), { name: "AbortError" });
  assert.deepEqual(await runTools([]), []);
});

test("a model that calls without end is told so", async () => {
  const seen = studio({ x: async () => Response.json({ content: "1", is_error: false }) });
  const answers = await runTools(Array.from({ length: 20 }, (_, place) => call(`c${place}`, "x")));
  assert.equal(answers.length, 20);
  assert.equal(seen.length, 16);
  assert.deepEqual(answers.map(({ is_error: is }) => is), [...Array(16).fill(false), ...Array(4).fill(true)]);
});

test("the list is asked for once, and again where that failed", async () => {
  let isAway = true;
  const seen = studio({ list: async () => (isAway ? Response.json({}, { status: 503 }) : Response.json({ items: [{ type: "function" }] })) });
  await assert.rejects(toolList());
  isAway = false;
  assert.deepEqual(await toolList(), [{ type: "function" }]);
  await toolList();
  assert.equal(seen.length, 2);
});

test("every tool is told about in words", () => {
  for (const name of [...STARTER_TOOLS, "calculate_math", "unit_converter", "get_current_time", "random_number", "text_length", "count_text"]) {
    assert.match(toolWords(name), /\.$/);
  }
  assert.equal(toolWords("somebody_elses"), null);
});
