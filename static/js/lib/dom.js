// Small helpers for building light-DOM elements. Text goes in as text nodes only: whatever it says, it never runs.

import { ago, time } from "./format.js";

/** `h("a.button", {href}, "text", child)`: an element with classes, attributes (null leaves one out) and children. */
export function h(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Set text only where it changed: a live region then speaks only when there is news. */
export function setText(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

/** JSON that the server wrote into a data attribute. */
export function dataOf(element, name) {
  const text = element.dataset[name];
  return text ? JSON.parse(text) : null;
}

/** Whether a key belongs to an input method: an Enter that picks a word is not meant for us. Safari says so only by its code. */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** Put every <time> that the server wrote into the reader's own time; data-ago says how long ago. */
export function localTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const text = element.getAttribute("datetime");
    element.title = new Date(text).toLocaleString();
    setText(element, "ago" in element.dataset ? ago(text) : time(text));
  }
}

/** Do `work` when Back brings this page again as it was left: with buttons that wait for an answer that came long ago. */
export function onReturn(work) {
  window.addEventListener("pageshow", (event) => event.persisted && work());
}

/** A button that waits for an answer, or that can be pressed. */
export function setBusy(button, is) {
  button.disabled = is;
  if (is) button.setAttribute("aria-busy", "true");
  else button.removeAttribute("aria-busy");
}

/** A function that runs at most once per `interval` ms, the last call always. */
export function throttled(work, interval) {
  let timer = null;
  let last = -Infinity;
  return (...values) => {
    clearTimeout(timer);
    const wait = Math.max(0, last + interval - performance.now());
    timer = setTimeout(() => {
      last = performance.now();
      work(...values);
    }, wait);
  };
}

/** A function that runs once nobody has called it for `delay` ms. */
export function debounced(work, delay) {
  let timer = null;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), delay);
  };
}

/** Save text or a Blob as a file of the reader. */
export function saveAs(name, content, type = "text/plain;charset=utf-8") {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
