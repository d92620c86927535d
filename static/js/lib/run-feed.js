// Everything live about one run, for all elements of a page that show it: one subscription, one copy of the curves.

import { get } from "./api.js";
import { Curve } from "./curves.js";
import { throttled } from "./dom.js";
import { liveSocket } from "./live-socket.js";

const POINTS = 2000;
const DRAW_EVERY_MS = 100;
//: points that came live before the server is asked again to thin them out
const MOST_LIVE_POINTS = 2000;
const RELOAD_EVERY_MS = 3000;
const TRY_AGAIN_MS = 1500;
const NOT_NUMBERS = new Set(["attempt", "t", "step", "tokens"]);
//: axes on which an event says by itself where it belongs
const LIVE_AXES = new Set(["step", "tokens"]);

/**
 * Events: "curves" (the numbers changed), "load" (whether a request is under way), "failed" (detail: the error),
 * "sample", "log", "checkpoint", "state" (something of that kind happened), "restart" (look at everything again).
 */
export class RunFeed extends EventTarget {
  constructor(id) {
    super();
    this.id = id;
    this.axis = "step";
    this.smoothing = 0;
    this.range = null;
    this.curves = new Map();
    this.users = 0;
    this.isLoaded = false;
    this.drawSoon = throttled(() => this.#tell("curves"), DRAW_EVERY_MS);
    this.shown = null; // {axis, range, smoothing} of the curves that are there
  }

  start() {
    if (this.users++ === 0) this.stop = liveSocket().subscribe(`run:${this.id}`, (message) => this.#hear(message));
  }

  end() {
    if (--this.users > 0) return;
    this.stop?.();
    this.controller?.abort();
    clearTimeout(this.timer);
    clearTimeout(this.reloading);
    feeds.delete(this.id);
  }

  /** Show the curves another way: `axis` step, tokens, time or flops; `range` [from, to] or null; `smoothing` 0 to 1. */
  show({ axis = this.axis, range = this.range, smoothing = this.smoothing }) {
    Object.assign(this, { axis, range, smoothing });
    return this.load();
  }

  /** Ask for the curves; what comes live meanwhile is added behind them. */
  async load() {
    this.controller?.abort();
    clearTimeout(this.timer);
    const controller = (this.controller = new AbortController());
    const asked = { axis: this.axis, range: this.range, smoothing: this.smoothing };
    const began = performance.now();
    this.waiting = [];
    this.#tell("load");
    const query = new URLSearchParams({ x: this.axis, points: String(POINTS) });
    if (this.smoothing > 0) query.set("smooth", String(this.smoothing));
    if (this.range) {
      query.set("from", String(this.range[0]));
      query.set("to", String(this.range[1]));
    }
    try {
      const answer = await get(`/runs/${this.id}/metrics?${query}`, { signal: controller.signal });
      if (this.controller !== controller) return;
      this.controller = null;
      this.curves = new Map(Object.entries(answer.series).map(([key, series]) => [key, Curve.of(series, asked.smoothing)]));
      this.shown = asked;
      this.loadedInMs = performance.now() - began;
      this.liveCount = 0;
      this.isLoaded = true;
      const waiting = this.waiting;
      this.waiting = null;
      for (const data of waiting) this.#append(data);
      this.#tell("load");
      this.#tell("curves");
    } catch (error) {
      if (error.name === "AbortError" || this.controller !== controller) return;
      this.controller = null;
      this.waiting = null;
      this.#tell("load");
      this.#tell("failed", error);
      const isRefused = error.status >= 400 && error.status < 500; // the same would be refused again
      if (!isRefused) this.timer = setTimeout(() => this.users > 0 && this.load(), TRY_AGAIN_MS);
    }
  }

  get isLoading() {
    return this.controller != null;
  }

  #hear(message) {
    const { type, data } = message;
    if (type === "snapshot") {
      this.run = data;
      if (!this.isLoaded || message.gap) {
        this.load();
        this.#tell("restart");
      }
      this.#tell("state", data);
    } else if (type === "metrics" || type === "eval") {
      if (this.waiting) this.waiting.push(data);
      else this.#append(data);
    } else if (type === "rewind" || type === "reset") {
      this.load();
      this.#tell("restart");
    } else {
      if (type === "state" && data.state) this.run = { ...this.run, state: data.state, desired: data.desired };
      this.#tell(type, data);
    }
    if (type !== "snapshot") this.#tell("any");
  }

  #append(data) {
    const { axis, range, smoothing } = this.shown ?? {};
    if (axis !== this.axis) return; // the curves of the wanted axis are on their way, with this point in them
    if (!LIVE_AXES.has(axis)) {
      this.#reloadSometime();
      return;
    }
    const x = data[axis];
    if (range && x > range[1]) return;
    let isNew = false;
    for (const [key, value] of Object.entries(data)) {
      if (NOT_NUMBERS.has(key) || (value !== null && typeof value !== "number")) continue;
      if (!this.curves.has(key)) this.curves.set(key, new Curve(smoothing));
      if (range && x < range[0]) this.curves.get(key).skip(value);
      else isNew = this.curves.get(key).append(x, value) || isNew;
    }
    if (!isNew) return;
    if (++this.liveCount > MOST_LIVE_POINTS) this.load();
    else this.drawSoon();
  }

  /** On an axis that only the server knows; seldom, since it reads the whole run for it, and only for a reader. */
  #reloadSometime() {
    if (this.reloading) return;
    this.reloading = setTimeout(() => {
      this.reloading = null;
      if (this.users === 0) return;
      if (document.hidden) this.#reloadSometime();
      else this.load();
    }, Math.max(RELOAD_EVERY_MS, 10 * (this.loadedInMs ?? 0)));
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

const feeds = new Map();

/** The page's one feed of this run. Call `start` before use and `end` after. */
export function runFeed(id) {
  if (!feeds.has(id)) feeds.set(id, new RunFeed(id));
  return feeds.get(id);
}

/** Base of elements with an attribute `run`: `follow(feed)` is called with the feed of each run that it names. */
export class RunElement extends HTMLElement {
  static observedAttributes = ["run"];

  connectedCallback() {
    this.#begin();
  }

  disconnectedCallback() {
    this.#end();
  }

  attributeChangedCallback(name, before, after) {
    if (before === after || !this.isConnected) return;
    this.#end();
    this.#begin();
  }

  /** Listen to an event of the present feed. */
  on(type, work) {
    this.feed.addEventListener(type, work, { signal: this.listening.signal });
  }

  #begin() {
    const id = this.getAttribute("run");
    if (!id || this.feed) return;
    this.feed = runFeed(id);
    this.listening = new AbortController();
    this.follow(this.feed);
    this.feed.start();
  }

  #end() {
    this.listening?.abort();
    this.feed?.end();
    this.feed = null;
  }
}
