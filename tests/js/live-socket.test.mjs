import assert from "node:assert/strict";
import { test } from "node:test";
import { LiveSocket } from "../../static/js/lib/live-socket.js";

/** A clock that moves when told, and sockets that do what the test says. */
function world({ isLoggedIn } = {}) {
  const w = { time: 1_000_000, timers: new Map(), sockets: [], next: 1, hidden: false };
  const clock = {
    setTimeout: (work, ms) => (w.timers.set(w.next, { at: w.time + ms, work }), w.next++),
    clearTimeout: (id) => w.timers.delete(id),
    setInterval: (work, ms) => (w.timers.set(w.next, { at: w.time + ms, work, every: ms }), w.next++),
  };
  class FakeSocket extends EventTarget {
    constructor() {
      super();
      this.readyState = 0;
      this.sent = [];
      w.sockets.push(this);
    }

    send(text) {
      this.sent.push(JSON.parse(text));
    }

    close() {
      this.readyState = 3;
    }

    open() {
      this.readyState = 1;
      this.dispatchEvent(new Event("open"));
    }

    say(message) {
      this.dispatchEvent(Object.assign(new Event("message"), { data: JSON.stringify(message) }));
    }

    drop(code = 1006) {
      this.readyState = 3;
      this.dispatchEvent(Object.assign(new Event("close"), { code }));
    }
  }
  w.advance = (ms) => {
    const until = w.time + ms;
    for (;;) {
      const due = [...w.timers].filter(([, timer]) => timer.at <= until).sort((a, b) => a[1].at - b[1].at)[0];
      if (!due) break;
      const [id, timer] = due;
      w.time = Math.max(w.time, timer.at);
      if (timer.every) timer.at = w.time + timer.every;
      else w.timers.delete(id);
      timer.work();
    }
    w.time = until;
  };
  w.socket = new LiveSocket("ws://studio/", {
    WebSocket: FakeSocket, clock, now: () => w.time, random: () => 1, isHidden: () => w.hidden, isLoggedIn });
  Object.defineProperty(w, "last", { get: () => w.sockets.at(-1) });
  return w;
}

function followed(w, topic = "run:a") {
  const heard = [];
  w.socket.subscribe(topic, (message) => heard.push(message));
  w.last.open();
  return heard;
}

test("a subscription gets its snapshot, then events, each once", () => {
  const w = world();
  const heard = followed(w);
  assert.deepEqual(w.last.sent, [{ op: "sub", topic: "run:a" }]);
  w.last.say({ topic: "run:a", type: "snapshot", seq: 4, data: {} });
  for (const seq of [5, 6, 6, 5, 7]) w.last.say({ topic: "run:a", type: "metrics", seq, data: {} });
  assert.deepEqual(heard.map((m) => m.seq), [4, 5, 6, 7]);
});

test("after a break it goes on behind the last event, within two seconds", () => {
  const w = world();
  const heard = followed(w);
  w.last.say({ topic: "run:a", type: "snapshot", seq: 4, data: {} });
  w.last.say({ topic: "run:a", type: "metrics", seq: 5, data: {} });
  for (let tries = 0; tries < 12; tries++) {
    w.last.drop();
    const before = w.sockets.length;
    w.advance(1300);
    assert.ok(w.sockets.length > before, `try ${tries} came in time`);
  }
  w.last.open();
  assert.deepEqual(w.last.sent, [{ op: "sub", topic: "run:a", after: 5 }]);
  w.last.say({ topic: "run:a", type: "snapshot", seq: 7, data: {} });
  w.last.say({ topic: "run:a", type: "metrics", seq: 6, data: {} });
  w.last.say({ topic: "run:a", type: "metrics", seq: 7, data: {} });
  assert.deepEqual(heard.filter((m) => m.type === "metrics").map((m) => m.seq), [5, 6, 7]);
});

test("after a long absence it asks for the present instead of every event", () => {
  const w = world();
  const heard = followed(w);
  w.last.say({ topic: "run:a", type: "snapshot", seq: 4, data: {} });
  w.last.drop();
  w.time += 10 * 60_000;
  w.socket.wake();
  w.last.open();
  assert.deepEqual(w.last.sent, [{ op: "sub", topic: "run:a" }]);
  w.last.say({ topic: "run:a", type: "snapshot", seq: 9000, data: {} });
  assert.equal(heard.at(-1).gap, true);
  w.last.say({ topic: "run:a", type: "metrics", seq: 9001, data: {} });
  assert.equal(heard.at(-1).seq, 9001);
});

test("a machine that slept finds out within a second whether the connection is alive", () => {
  const w = world();
  followed(w);
  const dead = w.last;
  w.time += 60_000; // no timer ran meanwhile
  w.advance(1000);
  assert.deepEqual(dead.sent.at(-1), { op: "ping" });
  w.advance(1000);
  assert.notEqual(w.last, dead);
});

test("a connection that answers is kept", () => {
  const w = world();
  followed(w);
  const alive = w.last;
  w.socket.wake();
  alive.say({ topic: null, type: "pong", data: {} });
  w.advance(5000);
  assert.equal(w.last, alive);
  assert.equal(w.socket.state, "live");
});

test("a handshake that hangs is given up", () => {
  const w = world();
  w.socket.subscribe("runs", () => {});
  const hanging = w.last;
  w.advance(6000);
  assert.notEqual(w.last, hanging);
});

test("a hidden page asks seldom and at once when it is looked at", () => {
  const w = world();
  followed(w);
  w.hidden = true;
  for (let tries = 0; tries < 10; tries++) {
    w.last.drop();
    w.advance(20_000);
  }
  w.last.drop();
  const before = w.sockets.length;
  w.advance(3000);
  assert.equal(w.sockets.length, before);
  w.hidden = false;
  w.socket.wake();
  assert.equal(w.sockets.length, before + 1);
});

test("a reset begins anew", () => {
  const w = world();
  const heard = followed(w);
  w.last.say({ topic: "run:a", type: "snapshot", seq: 40, data: {} });
  w.last.say({ topic: "run:a", type: "reset", seq: 0, data: {} });
  w.last.say({ topic: "run:a", type: "snapshot", seq: 2, data: {} });
  w.last.say({ topic: "run:a", type: "metrics", seq: 1, data: {} });
  assert.deepEqual(heard.map((m) => [m.type, m.seq]), [["snapshot", 40], ["reset", 0], ["snapshot", 2], ["metrics", 1]]);
});

test("two listeners of one topic share it; the last to leave ends it", () => {
  const w = world();
  const first = followed(w);
  const second = [];
  const leave = w.socket.subscribe("run:a", (message) => second.push(message));
  w.last.say({ topic: "run:a", type: "snapshot", seq: 3, data: {} });
  w.last.say({ topic: "run:a", type: "metrics", seq: 4, data: {} });
  assert.equal(first.length, 2);
  assert.equal(second.length, 2);
  leave();
  assert.ok(!w.last.sent.some((m) => m.op === "unsub"));
});

test("values without dense numbers are always told", () => {
  const w = world();
  const heard = followed(w, "runs");
  w.last.say({ topic: "runs", type: "snapshot", seq: 7, data: {} });
  w.last.say({ topic: "runs", type: "update", seq: 1, data: {} }); // another web process counts anew
  assert.equal(heard.length, 2);
});

test("a topic that cannot be read now is asked for again", () => {
  const w = world();
  followed(w);
  w.last.say({ topic: "run:a", type: "error", data: { code: "UNAVAILABLE", message: "" } });
  w.advance(1500);
  assert.equal(w.last.sent.filter((m) => m.op === "sub").length, 2);
});

test("after a night asleep it asks for the present, however late the loss is noticed", () => {
  const w = world();
  followed(w);
  w.last.say({ topic: "run:a", type: "snapshot", seq: 100, data: {} });
  w.time += 8 * 3_600_000;
  w.advance(1000); // asks for a sign of life
  w.advance(1000); // none came
  w.advance(1500);
  w.last.open();
  assert.deepEqual(w.last.sent, [{ op: "sub", topic: "run:a" }]);
});

test("a quiet connection is asked for a sign of life now and then, so that it is known until when all was heard", () => {
  const w = world();
  followed(w);
  w.last.say({ topic: "run:a", type: "snapshot", seq: 1, data: {} });
  w.advance(31_500);
  assert.deepEqual(w.last.sent.at(-1), { op: "ping" });
  assert.equal(w.socket.state, "live");
});

test("whoever logs in again in another tab is let in again", async () => {
  let inside = false;
  const w = world({ isLoggedIn: async () => inside });
  followed(w);
  w.last.drop(4401);
  w.socket.wake();
  await Promise.resolve();
  const before = w.sockets.length;
  inside = true;
  w.socket.wake();
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(w.sockets.length, before + 1);
});

test("who is logged out is told so, and nothing is tried any more", async () => {
  const w = world();
  followed(w);
  w.last.drop(4401);
  assert.equal(w.socket.state, "refused");
  const count = w.sockets.length;
  w.advance(60_000);
  assert.equal(w.sockets.length, count);

  const refused = world({ isLoggedIn: async () => false }); // a refused handshake has no code of its own
  followed(refused);
  refused.last.drop();
  refused.advance(2000);
  refused.last.drop();
  await Promise.resolve();
  await Promise.resolve();
  assert.equal(refused.socket.state, "refused");
});
