// <formatted-text>: markdown with coloured code and formulas. A growing text is shown again and again: what stays the same
// in it stays in the page, with its selection and the place to which it was scrolled.

import "./copy-button.js";
import { h } from "../lib/dom.js";
import { t } from "../lib/i18n.js";
import { blockNodes, toBlocks } from "../lib/markdown.js";
import { texOf } from "../lib/math-marks.js";
import { codeFragment, mathElement } from "../lib/purify.js";

// names of languages, which are the same in all of ours
const LANGUAGES = { python: "Python", javascript: "JavaScript", json: "JSON", bash: "Shell", xml: "HTML/XML", css: "CSS", sql: "SQL",
                    cpp: "C/C++" };

class FormattedText extends HTMLElement {
  #blocks = []; // {html, nodes} as they stand here
  #text = null;

  /** @param {boolean} isLive more will come: its last block of code may still be open */
  show(text, isLive = false) {
    if (this.#text === text && this.#isLive === isLive) return;
    const wasLive = this.#isLive;
    this.#text = text;
    this.#isLive = isLive;
    const pieces = toBlocks(text);
    if (pieces === null) {
      this.#blocks = [];
      this.replaceChildren(h("p.as-is", {}, text));
      return;
    }
    if (!this.#blocks.length) this.replaceChildren();
    const same = this.#same(pieces, wasLive !== isLive);
    for (const { nodes } of this.#blocks.splice(same)) for (const node of nodes) node.remove();
    for (const html of pieces.slice(same)) this.#blocks.push({ html, nodes: this.#add(html) });
  }

  #isLive = false;

  /** How many blocks can stay: those before the first that is another one. */
  #same(pieces, isTurn) {
    const place = pieces.findIndex((html, at) => (
      html !== this.#blocks[at]?.html || (isTurn && html.includes("unfinished"))));
    return Math.min(place < 0 ? pieces.length : place, this.#blocks.length);
  }

  #add(html) {
    const fragment = blockNodes(html);
    for (const code of fragment.querySelectorAll("pre > code")) dressCode(code, this.#isLive);
    for (const span of fragment.querySelectorAll("span.math")) dressFormula(span);
    const nodes = [...fragment.childNodes].filter((node) => node.nodeType !== Node.TEXT_NODE || node.data.trim());
    this.append(...nodes);
    return nodes;
  }
}

/** Colours once the block is whole, and a button that copies it. */
function dressCode(code, isLive) {
  const isWhole = !isLive || !code.classList.contains("unfinished");
  const language = /language-([a-z]+)/.exec(code.className)?.[1];
  code.removeAttribute("class");
  const pre = code.parentNode;
  const box = h("div.code-block");
  pre.replaceWith(box);
  box.append(h("div.code-head", {}, h("span.small.muted", {}, LANGUAGES[language] ?? ""),
    isWhole && h("copy-button", { "data-text": code.textContent },
      h("button.button.quiet.tiny", { type: "button", "aria-label": t("Copy this code") }, t("Copy")))), pre);
  if (language && isWhole) colour(code, language);
}

async function colour(code, language) {
  const { highlighted } = await import("../lib/code-colours.js").catch(notLoaded);
  const html = highlighted?.(code.textContent, language);
  if (html) code.replaceChildren(codeFragment(html));
}

/** The text of a formula becomes MathML; what is none stays text. */
async function dressFormula(span) {
  const { mathml } = await import("../lib/formulas.js").catch(notLoaded);
  const tex = texOf(span.textContent);
  const isDisplay = span.classList.contains("display");
  const markup = mathml?.(tex, isDisplay);
  const math = markup && mathElement(markup);
  if (!math) {
    span.classList.add("failed");
    return;
  }
  math.setAttribute("aria-label", tex);
  if (isDisplay) span.setAttribute("tabindex", "0"); // it scrolls where it is wider than the page
  span.replaceChildren(math);
}

/** The connection is away: everything can be read as it is. */
const notLoaded = () => ({});

customElements.define("formatted-text", FormattedText);
