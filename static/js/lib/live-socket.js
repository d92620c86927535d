// One websocket for all live parts of a page. Topics with a dense `seq` (run:ID, pipeline:ID) go on exactly behind the
// last event that was seen, whatever happened in between; the others send their latest value.

const FIRST_WAIT_MS = 150;
const LONGEST_WAIT_MS = 1200; // somebody looks at the page: it must tell the truth within two seconds
const LONGEST_HIDDEN_WAIT_MS = 15_000;
const PONG_WITHIN_MS = 800;
const CONNECT_WITHIN_MS = 5000;
const ASK_AGAIN_MS = 1000;
const QUIET_MS = 30_000; // after so much silence a sign of life is asked for, to know until when all was heard
const LOOK_EVERY_MS = 1000;
const SLEPT_MS = 4000; // a timer of a second that comes this late: the machine was asleep
const REPLAY_AT_MOST_MS = 120_000; // after a longer absence a fresh look is quicker than every event
const REFUSED = 4401;

/**
 * States: "connecting" (at first), "live", "offline" (was live or could not connect; tries again by itself) and
 * "refused" (not logged in any more).
 */
export class LiveSocket {
  constructor(url, { WebSocket = globalThis.WebSocket, clock = globalThis, now = () => Date.now(), random = Math.random,
                     isHidden = () => globalThis.document?.hidden ?? false, isLoggedIn = async () => true } = {}) {
    this.url = url;
    this.state = "connecting";
    this.environment = { WebSocket, clock, now, random, isHidden, isLoggedIn };
    this.topics = new Map(); // topic -> { last: seq | null, listeners: Set }
    this.stateListeners = new Set();
    this.failures = 0;
    this.lostAt = null;
    this.lastTick = now();
    clock.setInterval?.(() => this.#tick(), LOOK_EVERY_MS);
  }

  /**
   * Follow a topic. `listener(message)` gets what the server sends: `snapshot` first, then events; after an absence
   * that is too long to replay, a `snapshot` with `gap: true`. Returns a function that ends it.
   */
  subscribe(topic, listener, { after = null } = {}) {
    let entry = this.topics.get(topic);
    if (entry) {
      // the server tells a topic once per connection: begin it anew, so that this listener has its snapshot too
      entry.listeners.add(listener);
      entry.last = null;
    } else {
      entry = { last: after, listeners: new Set([listener]) };
      this.topics.set(topic, entry);
    }
    if (this.state === "live") this.#ask(topic);
    else if (!this.socket && !this.timer) this.#connect();
    return () => {
      entry.listeners.delete(listener);
      if (entry.listeners.size === 0 && this.topics.get(topic) === entry) {
        this.topics.delete(topic);
        this.#send({ op: "unsub", topic });
      }
    };
  }

  /** `listener(state)` is called now and at each change. */
  onState(listener) {
    this.stateListeners.add(listener);
    listener(this.state);
    return () => this.stateListeners.delete(listener);
  }

  /** The page is looked at again, the machine woke up or the network came back: find out at once what is true. */
  wake() {
    if (this.state === "refused") {
      this.#lookForLogin();
      return;
    }
    if (this.state !== "live") {
      this.failures = 0;
      if (this.timer || !this.socket) this.#connect();
      return;
    }
    const { clock } = this.environment;
    this.#send({ op: "ping" });
    clock.clearTimeout(this.pongTimer);
    this.pongTimer = clock.setTimeout(() => this.#lose(this.socket), PONG_WITHIN_MS);
  }

  #tick() {
    const { now } = this.environment;
    const late = now() - this.lastTick;
    this.lastTick = now();
    if (late > SLEPT_MS) this.wake();
    else if (this.state === "live" && now() - this.heardAt > QUIET_MS) this.#send({ op: "ping" });
  }

  #connect() {
    const { WebSocket, clock } = this.environment;
    clock.clearTimeout(this.timer);
    this.timer = null;
    const socket = (this.socket = new WebSocket(this.url));
    const tooLong = clock.setTimeout(() => this.#lose(socket), CONNECT_WITHIN_MS);
    socket.addEventListener("open", () => {
      clock.clearTimeout(tooLong);
      if (this.socket !== socket) return;
      const { now } = this.environment;
      this.failures = 0;
      this.heardAt = now();
      this.#become("live");
      const away = this.lostAt === null ? 0 : now() - this.lostAt;
      this.lostAt = null;
      for (const [topic, entry] of this.topics) {
        if (away > REPLAY_AT_MOST_MS && entry.last !== null) {
          entry.last = null;
          entry.gap = true;
        }
        this.#ask(topic);
      }
    });
    socket.addEventListener("message", (event) => {
      if (this.socket === socket) this.#hear(JSON.parse(event.data));
    });
    socket.addEventListener("close", (event) => {
      clock.clearTimeout(tooLong);
      if (this.socket === socket) this.#lose(socket, event.code);
    });
    socket.addEventListener("error", () => {}); // "close" follows and says all there is
  }

  #lose(socket, code = 0) {
    const { clock, now, random, isHidden } = this.environment;
    if (this.socket !== socket) return;
    this.socket = null;
    clock.clearTimeout(this.pongTimer);
    socket?.close?.();
    if (code === REFUSED) {
      this.#become("refused");
      return;
    }
    this.lostAt ??= this.heardAt ?? now(); // a machine that slept notices late
    this.#become("offline");
    const longest = isHidden() ? LONGEST_HIDDEN_WAIT_MS : LONGEST_WAIT_MS;
    const wait = Math.min(longest, FIRST_WAIT_MS * 2 ** this.failures++);
    this.timer = clock.setTimeout(() => this.#connect(), wait * (0.5 + random() / 2));
    if (this.failures > 1) this.#checkLogin(); // a refused handshake looks like a server that is away
  }

  /** Somebody may have logged in again in another tab. */
  async #lookForLogin() {
    if ((await this.environment.isLoggedIn()) && this.state === "refused" && !this.socket) this.#connect();
  }

  async #checkLogin() {
    if (await this.environment.isLoggedIn()) return;
    this.environment.clock.clearTimeout(this.timer);
    this.timer = null;
    this.#become("refused");
  }

  #ask(topic) {
    const entry = this.topics.get(topic);
    this.#send(entry.last === null ? { op: "sub", topic } : { op: "sub", topic, after: entry.last });
  }

  #send(message) {
    if (this.socket?.readyState === 1) this.socket.send(JSON.stringify(message));
  }

  #hear(message) {
    this.heardAt = this.environment.now();
    this.environment.clock.clearTimeout(this.pongTimer);
    const entry = this.topics.get(message.topic);
    if (!entry) return;
    if (message.type === "snapshot") {
      if (entry.gap) message.gap = true;
      entry.gap = false;
      if (entry.last === null) entry.last = message.seq;
    } else if (message.type === "reset") {
      entry.last = 0;
    } else if (message.type === "error" && message.seq === undefined) { // a complaint, not an event of a run
      if (message.data?.code === "UNAVAILABLE") {
        this.environment.clock.setTimeout(() => this.topics.has(message.topic) && this.#ask(message.topic), ASK_AGAIN_MS);
      }
    } else {
      if (entry.last !== null && message.seq <= entry.last && isDense(message.topic)) return; // told already
      entry.last = message.seq;
    }
    for (const listener of [...entry.listeners]) listener(message);
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    for (const listener of this.stateListeners) listener(state);
  }
}

/** Events of these topics are numbered without a gap; of the others only the latest value counts. */
function isDense(topic) {
  return topic.startsWith("run:") || topic.startsWith("pipeline:");
}

/** False only where the server says so; a server that does not answer knows nothing of it. */
async function isLoggedIn() {
  try {
    return (await fetch("/api/v1/me", { credentials: "same-origin" })).status !== 401;
  } catch {
    return true;
  }
}

let shared = null;

/** The page's one socket. */
export function liveSocket() {
  if (shared === null) {
    const url = new URL("/api/v1/live", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    shared = new LiveSocket(url.href, { isLoggedIn });
    document.addEventListener("visibilitychange", () => document.hidden || shared.wake());
    window.addEventListener("online", () => shared.wake());
    window.addEventListener("pageshow", () => shared.wake());
    window.addEventListener("focus", () => shared.wake());
  }
  return shared;
}
