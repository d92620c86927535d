// Says when what the page shows may be old. Silent while all is well and during a hiccup that nobody would notice.

import { liveSocket } from "../lib/live-socket.js";
import { setText } from "../lib/dom.js";
import { t } from "../lib/i18n.js";

const HICCUP_MS = 700;

class ConnectionBanner extends HTMLElement {
  connectedCallback() {
    this.stop = liveSocket().onState((state) => this.#show(state));
  }

  disconnectedCallback() {
    this.stop?.();
    clearTimeout(this.timer);
  }

  #show(state) {
    clearTimeout(this.timer);
    if (state === "refused") {
      this.replaceChildren(t("You are not logged in any more."), " ");
      const link = document.createElement("a");
      link.href = "/login";
      link.textContent = t("Log in");
      link.className = "banner-link";
      this.append(link);
      this.hidden = false;
    } else if (state === "offline") {
      this.timer = setTimeout(() => {
        setText(this, t("The studio does not answer. Reconnecting; what you see may be old."));
        this.hidden = false;
      }, HICCUP_MS);
    } else {
      this.hidden = true;
    }
  }
}

customElements.define("connection-banner", ConnectionBanner);
