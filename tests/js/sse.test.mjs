import assert from "node:assert/strict";
import { test } from "node:test";
import { addCallPieces, chunks, completion, sseEvents, SseParser, tokensOf } from "../../static/js/lib/sse.js";

const bytes = (text) => new TextEncoder().encode(text);

/** A stream of these pieces; `how` ends it: "close", "error", or "open" (it never ends). */
function streamOf(pieces, how = "close", seen = {}) {
  const queue = [...pieces];
  return new ReadableStream({
    pull(controller) {
      if (queue.length) controller.enqueue(queue.shift());
      else if (how === "close") controller.close();
      else if (how === "error") controller.error(new TypeError("network error"));
      else return new Promise(() => {});
    },
    cancel() {
      seen.cancelled = true;
    },
  }, { highWaterMark: 0 });
}

async function all(iterable) {
  const found = [];
  for await (const item of iterable) found.push(item);
  return found;
}

const data = (parser, ...pieces) => pieces.flatMap((piece) => parser.push(bytes(piece))).map((event) => event.data);

test("fields, comments and line ends are read as the standard says", () => {
  assert.deepEqual(data(new SseParser(), ": hello\n\ndata: a\ndata:b\n\ndata\n\nnothing: x\n\n"), ["a\nb", ""]);
  assert.deepEqual(data(new SseParser(), "data: a\r\n\r\ndata: b\r\rdata: c\n\ndata:  d\n\ndata: cut off"), ["a", "b", "c", " d"]);
  const parser = new SseParser();
  assert.deepEqual(parser.push(bytes("id: 7\nevent: note\ndata: x\n\ndata: y\n\nid: a\0b\ndata: z\n\n")),
    [{ event: "note", data: "x", id: "7" }, { event: "message", data: "y", id: "7" }, { event: "message", data: "z", id: "7" }]);
  assert.deepEqual(data(new SseParser(), "\ufeffdata: after a byte order mark\n\n"), ["after a byte order mark"]);
});

test("a CRLF that is cut in two is one line end", () => {
  assert.deepEqual(data(new SseParser(), "data: a\r", "\ndata: b\r", "\n\r", "\n"), ["a\nb"]);
});

test("wherever the stream is cut, even inside a character, the events are the same", async () => {
  const text = ': ping\r\n\r\ndata: {"a":"é🦊 中文"}\n\nevent: x\ndata: 1\ndata: 2\r\n\r\ndata: [DONE]\n\n';
  const raw = bytes(text);
  const whole = new SseParser().push(raw);
  assert.equal(whole.length, 3);
  for (let size = 1; size < raw.length; size += 1) {
    const pieces = [];
    for (let at = 0; at < raw.length; at += size) pieces.push(raw.slice(at, at + size));
    assert.deepEqual(await all(sseEvents(streamOf(pieces))), whole, `pieces of ${size}`);
  }
});

test("leaving the loop ends the stream", async () => {
  const seen = {};
  for await (const event of sseEvents(streamOf([bytes("data: 1\n\ndata: 2\n\n")], "open", seen))) {
    assert.equal(event.data, "1");
    break;
  }
  assert.ok(seen.cancelled);
});

test("[DONE] ends the chunks, though the stream stays open", async () => {
  const seen = {};
  const stream = streamOf([bytes('data: {"n":1}\n\ndata: {"n":2}\n\ndata: [DONE]\n\ndata: {"n":3}\n\n')], "open", seen);
  assert.deepEqual(await all(chunks(stream)), [{ n: 1 }, { n: 2 }]);
  assert.ok(seen.cancelled);
});

test("an error in the stream, one without end, and one that is no JSON are errors", async () => {
  const error = bytes('data: {"n":1}\n\ndata: {"error":{"message":"Restarted.","code":"server_unavailable"}}\n\n');
  await assert.rejects(all(chunks(streamOf([error], "open"))), { message: "Restarted.", code: "server_unavailable" });
  const found = [];
  await assert.rejects(async () => {
    for await (const chunk of chunks(streamOf([bytes('data: {"n":1}\n\n')]))) found.push(chunk);
  }, { code: "BROKEN_OFF", status: 0 });
  assert.deepEqual(found, [{ n: 1 }]);
  await assert.rejects(all(chunks(streamOf([bytes("data: {}\n\n")], "error"))), { code: "BROKEN_OFF" });
  await assert.rejects(all(chunks(streamOf([bytes("data: {oops\n\n")], "open"))), { code: "BROKEN_OFF" });
});

const answer = (lines, init) => async (path, options) => {
  answer.asked = { path, ...options, body: JSON.parse(options.body) };
  return new Response(lines.map((line) => `data: ${line}\n\n`).join(""), init);
};

test("a chat answer comes as parts", async () => {
  const fetch = answer([
    '{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}',
    '{"choices":[{"delta":{"content":"Hi"},"finish_reason":null}]}',
    '{"choices":[{"delta":{},"finish_reason":"stop"}]}',
    '{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}', "[DONE]"]);
  assert.deepEqual(await all(completion("/v1/chat/completions", { model: "m", messages: [] }, { fetch })), [
    { open: true }, { text: "Hi" }, { finish_reason: "stop" },
    { usage: { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 } }]);
  assert.deepEqual(answer.asked.body, { model: "m", messages: [], stream: true, stream_options: { include_usage: true } });
  assert.equal(answer.asked.credentials, "same-origin");
});

test("a continued text comes as parts too", async () => {
  const fetch = answer(['{"choices":[{"text":" and then","finish_reason":null}]}',
                        '{"choices":[{"text":"","finish_reason":"length"}]}', "[DONE]"]);
  assert.deepEqual(await all(completion("/v1/completions", {}, { fetch })),
    [{ open: true }, { text: " and then" }, { finish_reason: "length" }]);
});

test("refusals say why, and when to try again", async () => {
  const busy = async () => Response.json({ error: { message: "16 wait.", code: "server_busy" } },
    { status: 429, headers: { "Retry-After": "2" } });
  await assert.rejects(all(completion("/v1/x", {}, { fetch: busy })), { message: "16 wait.", status: 429, retryAfter: 2 });
  const proxy = async () => new Response("<h1>Bad gateway</h1>", { status: 502 });
  await assert.rejects(all(completion("/v1/x", {}, { fetch: proxy })), { status: 502, retryAfter: null });
  const away = async () => {
    throw new TypeError("Failed to fetch");
  };
  await assert.rejects(all(completion("/v1/x", {}, { fetch: away })), { status: 0, message: "The studio does not answer." });
  const stopped = async () => {
    throw new DOMException("stopped", "AbortError");
  };
  await assert.rejects(all(completion("/v1/x", {}, { fetch: stopped })), { name: "AbortError" });
});

test("thoughts, calls, tokens and times are parts of their own", async () => {
  const token = { token: "Hi", logprob: -0.5, bytes: [72, 105], top_logprobs: [] };
  const fetch = answer([
    '{"choices":[{"delta":{"reasoning_content":"Hm"}}]}',
    `{"choices":[{"delta":{"content":"Hi"},"logprobs":{"content":[${JSON.stringify(token)}]}}]}`,
    '{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"calc","arguments":""}}]}}]}',
    '{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\\"term\\":"}}]}}]}',
    '{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}},{"index":1,"id":"c2","function":{"name":"clock","arguments":"{}"}}]}}]}',
    '{"choices":[{"delta":{},"logprobs":{"content":[]},"finish_reason":"tool_calls"}]}',
    '{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2},"timings":{"queue_s":0,"tokens_per_s":12.5,"first_token_s":0.2}}', "[DONE]"]);
  const parts = await all(completion("/v1/chat/completions", {}, { fetch }));
  assert.deepEqual(parts, [
    { open: true }, { reasoning: "Hm" }, { text: "Hi" }, { tokens: [token] },
    { tool_calls: [{ index: 0, id: "c1", name: "calc" }] }, { tool_calls: [{ index: 0, arguments: '{"term":' }] },
    { tool_calls: [{ index: 0, arguments: "1}" }, { index: 1, id: "c2", name: "clock", arguments: "{}" }] },
    { finish_reason: "tool_calls" }, { usage: { prompt_tokens: 3, completion_tokens: 2 } },
    { timings: { queue_s: 0, tokens_per_s: 12.5, first_token_s: 0.2 } }]);
  const calls = [];
  for (const part of parts) addCallPieces(calls, part.tool_calls ?? []);
  assert.deepEqual(calls, [{ id: "c1", name: "calc", arguments: '{"term":1}' }, { id: "c2", name: "clock", arguments: "{}" }]);
});

test("pieces of calls that cannot be are left out", () => {
  const calls = addCallPieces([], [{ index: 5, name: "x" }, { index: -1, name: "x" }, { index: "length", name: "x" }, { index: 0, arguments: "{}" }]);
  assert.deepEqual(calls, [{ id: "call_0", name: "", arguments: "{}" }]);
});

test("the tokens of a continued text have the same shape", async () => {
  const logprobs = { tokens: [" and", "?", "bytes:\\xc3\\xa9\\xe4"], token_logprobs: [-0.1, null, -3], text_offset: [0, 4, 5],
                     top_logprobs: [{ " or": -2.5, " and": -0.1 }, null, { "bytes:\\xe4": -1 }] };
  const fetch = answer([JSON.stringify({ choices: [{ text: " and?", logprobs }] }), "[DONE]"]);
  const plain = (token, logprob) => ({ token, logprob, bytes: [...bytes(token)] });
  assert.deepEqual((await all(completion("/v1/completions", {}, { fetch }))).slice(1), [{ text: " and?" }, { tokens: [
    { ...plain(" and", -0.1), top_logprobs: [plain(" and", -0.1), plain(" or", -2.5)] }, { ...plain("?", null), top_logprobs: [] },
    { token: "\ufffd", logprob: -3, bytes: [0xc3, 0xa9, 0xe4], top_logprobs: [{ token: "\ufffd", logprob: -1, bytes: [0xe4] }] }] }]);
  for (const nothing of [undefined, {}, { logprobs: null }, { logprobs: { content: null } }, { logprobs: {} }]) assert.deepEqual(tokensOf(nothing), []);
});
