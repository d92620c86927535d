import assert from "node:assert/strict";
import { test } from "node:test";

import { columnsOf, encodingName, fromChoice, layoutName, mappingOf, partName, sayChoice, toChoice } from "../../static/js/lib/data-layouts.js";

test("layouts have names and columns", () => {
  assert.equal(layoutName("alpaca"), "Alpaca: instructions with answers");
  assert.equal(layoutName("something new"), "something new");
  assert.equal(partName("tools"), "dialogues with tool calls");
  assert.deepEqual(columnsOf("pairs").filter((column) => column.isNeeded).map((column) => column.key), ["question", "answer"]);
  assert.deepEqual(columnsOf("conversations"), []);
  assert.equal(encodingName("gb18030"), "GB18030 (GBK)");
  assert.equal(encodingName("big5"), "BIG5");
});

test("several columns are one choice", () => {
  const choice = toChoice(["Body", "Question"]);
  assert.equal(sayChoice(choice), "Body + Question");
  assert.deepEqual(fromChoice(choice), ["Body", "Question"]);
  assert.deepEqual([toChoice(undefined), fromChoice(""), fromChoice("ask")], ["", null, "ask"]);
});

test("a mapping is what was understood and what was changed", () => {
  const understood = { layout: "pairs", question: "title", answer: "answer", system: "system", encoding: "gbk" };
  assert.deepEqual(mappingOf(understood, { question: "ask", system: "" }, { "{{name}}": "Mini", "{{author}}": "" }),
                   { layout: "pairs", question: "ask", answer: "answer", encoding: "gbk", replace: { "{{name}}": "Mini" } });
  assert.deepEqual(mappingOf({ layout: "text", replace: { a: "b" } }, {}, {}), { layout: "text" });
});
