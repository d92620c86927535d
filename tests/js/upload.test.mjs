import assert from "node:assert/strict";
import { test } from "node:test";

import { problemOf, Rate, send, sendingWords, strangeKind } from "../../static/js/lib/upload.js";

const file = (name, content = "x", type = "") => new File([content], name, { type });

test("files that are no text are named kindly", async () => {
  for (const [name, kind] of [["a.7z", "archive"], ["a.tgz", "archive"], ["a.zip", null], ["a.jsonl.GZ", null], ["a.docx", "document"], ["a.PDF", "document"],
                              ["a.xlsx", "table"], ["a.csv", null], ["a.tsv", null], ["a.png", "picture"], ["a.pth", "picture"],
                              ["a.jsonl", null], ["a.json", null], ["a.txt", null], ["README", null], ["a.md", null]]) {
    assert.equal(strangeKind({ name }), kind, name);
    assert.equal((await problemOf(file(name))) === null, kind === null, name);
  }
  assert.equal(strangeKind({ name: "song", type: "audio/ogg" }), "picture");
  const problem = await problemOf(file("letter.docx"));
  assert.match(problem.message, /letter\.docx is a document/);
  assert.match(problem.hint, /\.txt or \.jsonl/);
});

test("a sending says how far it is", () => {
  const rate = new Rate();
  rate.add(0, 10);
  assert.equal(sendingWords(rate, 0, 8e6), "0 B of 8 MB");
  rate.add(4e6, 12);
  assert.equal(sendingWords(rate, 4e6, 8e6), "4 MB of 8 MB · 2 MB a second · 2 s left");
  assert.equal(sendingWords(rate, 8e6, 8e6), "Sent. The studio is putting it away.");
});

test("the first bytes tell what a name hides", async () => {
  assert.match((await problemOf(file("data.txt", new Uint8Array([0x50, 0x4b, 3, 4, 9])))).message, /archive/);
  assert.match((await problemOf(file("data.jsonl", "%PDF-1.7"))).message, /document/);
  assert.match((await problemOf(file("data", "PAR1...."))).message, /table/);
  assert.equal(await problemOf(file("data.txt", "PK is a name")), null);
});

test("empty, giant and vanished files", async () => {
  assert.match((await problemOf(file("a.txt", ""))).message, /empty/);
  assert.match((await problemOf({ name: "a.txt", size: 2 ** 40, type: "" })).message, /64 GiB/);
  const gone = { name: "a.txt", size: 3, slice: () => ({ arrayBuffer: () => Promise.reject(new Error("NotFound")) }) };
  assert.match((await problemOf(gone)).message, /cannot be read/);
});

test("the rate looks at the last seconds only", () => {
  const rate = new Rate();
  assert.equal(rate.perSecond, null);
  assert.equal(rate.left(100), null);
  rate.add(0, 0);
  rate.add(10, 0.1);
  assert.equal(rate.perSecond, null); // too early to say
  for (let second = 1; second <= 20; second++) rate.add(second <= 10 ? 1000 * second : 10_000 + 10 * (second - 10), second);
  assert.ok(Math.abs(rate.perSecond - 10) < 0.01, String(rate.perSecond));
  assert.ok(Math.abs(rate.left(10_200) - 10) < 0.1);
  const stuck = new Rate();
  for (let second = 0; second < 9; second++) stuck.add(5, second);
  assert.equal(stuck.left(10), null);
});

class FakeRequest extends EventTarget {
  static made = [];
  upload = new EventTarget();
  headers = {};

  constructor() {
    super();
    FakeRequest.made.push(this);
  }

  open(method, url) {
    Object.assign(this, { method, url });
  }

  setRequestHeader(name, value) {
    this.headers[name] = value;
  }

  send(body) {
    this.body = body;
  }

  abort() {
    this.dispatchEvent(new Event("abort"));
  }

  answer(status, body) {
    Object.assign(this, { status, responseText: typeof body === "string" ? body : JSON.stringify(body) });
    this.dispatchEvent(new Event("load"));
  }
}

function start(options = {}) {
  const upload = send(file("a.jsonl", "{}"), { name: "mine", layout: "text", empty: "" },
                      { key: "k1", Request: FakeRequest, ...options });
  return { upload, request: FakeRequest.made.at(-1) };
}

test("an upload is one multipart request with its key", async () => {
  const told = [];
  const { upload, request } = start({ onProgress: (...values) => told.push(values) });
  assert.deepEqual([request.method, request.url, request.headers["Idempotency-Key"]], ["POST", "/api/v1/datasets", "k1"]);
  assert.deepEqual([...request.body.keys()], ["name", "layout", "file"]);
  assert.equal(request.body.get("file").name, "a.jsonl");
  request.upload.dispatchEvent(Object.assign(new Event("progress"), { loaded: 5, total: 10, lengthComputable: true }));
  request.upload.dispatchEvent(Object.assign(new Event("progress"), { loaded: 6, total: 0, lengthComputable: false }));
  assert.deepEqual(told, [[5, 10], [6, 2]]);
  request.answer(201, { id: "d1" });
  assert.deepEqual(await upload.done, { id: "d1" });
});

test("a refusal is its sentence, whatever its body is", async () => {
  const refused = start();
  refused.request.answer(422, { error: { message: "The name is too long.", field: "name", hint: "Shorten it." } });
  await assert.rejects(refused.upload.done, { message: "The name is too long.", field: "name", hint: "Shorten it.", status: 422 });
  const proxy = start();
  proxy.request.answer(502, "<html>Bad gateway</html>");
  await assert.rejects(proxy.upload.done, { status: 502, message: /status 502/ });
});

test("a lost connection and a change of mind are told apart", async () => {
  const lost = start();
  lost.request.dispatchEvent(new Event("error"));
  await assert.rejects(lost.upload.done, { status: 0, message: /broke off/ });
  const cancelled = start();
  cancelled.upload.cancel();
  await assert.rejects(cancelled.upload.done, { name: "AbortError" });
});
