// A part of a page that the server renders and renders again when it changed: <live-fragment live topics="runs system"
// part="rows">. The server stays the one place that knows how a run looks; what is new is morphed into what is shown.

import { localTimes, throttled } from "../lib/dom.js";
import { liveSocket } from "../lib/live-socket.js";
import { morph } from "../lib/morph.js";

const AT_MOST_EVERY_MS = 1000;
const TRY_AGAIN_MS = 1500;
//: news that a reader waits for: shown at once
const URGENT = new Set(["snapshot", "state", "run", "checkpoint", "reset"]);

class LiveFragment extends HTMLElement {
  connectedCallback() {
    this.soon = throttled(() => this.refresh(), AT_MOST_EVERY_MS);
    if (!this.hasAttribute("live")) return;
    this.looked = () => !document.hidden && this.isStale && this.refresh();
    document.addEventListener("visibilitychange", this.looked);
    this.stops = this.getAttribute("topics").split(" ").map((topic) =>
      liveSocket().subscribe(topic, (message) => {
        if (URGENT.has(message.type)) this.refresh();
        else this.soon();
      }));
  }

  disconnectedCallback() {
    for (const stop of this.stops ?? []) stop();
    document.removeEventListener("visibilitychange", this.looked);
    clearTimeout(this.timer);
    this.controller?.abort();
  }

  /** Ask the server for this part as it is now. One request at a time; what comes meanwhile makes one more. */
  async refresh() {
    this.isStale = document.hidden;
    if (this.isStale) return; // nobody looks: once is enough when somebody does
    if (this.controller) {
      this.again = true;
      return;
    }
    clearTimeout(this.timer);
    this.controller = new AbortController();
    let failed = false;
    try {
      const url = new URL(location.href);
      url.searchParams.set("part", this.getAttribute("part") ?? "rows");
      url.hash = "";
      const response = await fetch(url, { signal: this.controller.signal, headers: { Accept: "text/html" } });
      if (response.ok) this.#show(await response.text());
      else if (response.status === 404) this.#gone();
      else failed = response.status >= 500;
    } catch (error) {
      if (error.name === "AbortError") return;
      failed = true;
    } finally {
      this.controller = null;
    }
    if (failed) this.timer = setTimeout(() => this.isConnected && this.refresh(), TRY_AGAIN_MS);
    else if (this.again) {
      this.again = false;
      this.soon();
    }
  }

  #show(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html").querySelector("[data-fragment]");
    const shown = this.querySelector("[data-fragment]");
    if (!fresh || !shown) return;
    localTimes(fresh);
    morph(shown, fresh);
    this.dispatchEvent(new CustomEvent("fragment", { bubbles: true }));
  }

  /** What this page is about was deleted, perhaps in another tab. */
  #gone() {
    for (const stop of this.stops ?? []) stop();
    this.stops = [];
    location.reload();
  }
}

customElements.define("live-fragment", LiveFragment);
