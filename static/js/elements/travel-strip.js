// <travel-strip>: the checkpoints of a way as dots on their held-out losses, above the slider, each coloured by whether it
// has answered. For the eye and the mouse; the slider says the same to everybody. Event: "travel-to" {place}.

import { svg } from "../lib/dom.js";
import { picture } from "../lib/travel.js";

const HEIGHT = 96;
const EDGE = 10;
const REACH_PX = 24;

class TravelStrip extends HTMLElement {
  connectedCallback() {
    this.svg = svg("svg", { class: "travel-strip", height: HEIGHT, "aria-hidden": "true", focusable: "false" });
    this.replaceChildren(this.svg);
    this.svg.addEventListener("click", (event) => this.#click(event));
    this.observer = new ResizeObserver(() => this.#draw());
    this.observer.observe(this);
  }

  disconnectedCallback() {
    this.observer.disconnect();
  }

  /** @param {object[]} points @param {string[]} states of each, or none yet @param {number} at the place of the reader */
  show(points, states, at) {
    const isNew = this.points !== points;
    Object.assign(this, { points, states, at });
    if (isNew) this.#draw();
    else this.#mark();
  }

  #draw() {
    const width = this.clientWidth;
    if (!this.points || !width) return;
    const { dots, lines, gaps } = picture(this.points, width, HEIGHT, EDGE);
    this.dots = dots;
    this.circles = dots.map(({ x, y }) => svg("circle", { cx: x, cy: y, r: dots.length > 40 ? 3 : 5 }));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(
      ...gaps.map((x) => svg("line", { class: "gap", x1: x, x2: x, y1: 0, y2: HEIGHT })),
      ...lines.map(({ points }) => svg("polyline", { points: points.map(({ x, y }) => `${x},${y}`).join(" ") })),
      ...this.circles);
    this.#mark();
  }

  #mark() {
    this.circles?.forEach((circle, place) => {
      circle.dataset.state = this.states[place] ?? "waiting";
      circle.classList.toggle("is-here", place === this.at);
    });
  }

  #click({ clientX }) {
    const x = clientX - this.svg.getBoundingClientRect().left;
    const far = this.dots.map((dot) => Math.abs(dot.x - x));
    const place = far.indexOf(Math.min(...far));
    if (far[place] > REACH_PX) return;
    this.dispatchEvent(new CustomEvent("travel-to", { bubbles: true, detail: { place } }));
  }
}

customElements.define("travel-strip", TravelStrip);
