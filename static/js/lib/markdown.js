// What a model says as formatted text. Its words are hostile: HTML in them is shown, never run; nothing is loaded from
// anywhere. Two walls: toBlocks() writes only harmless tags, DOMPurify lets only these through.

import { Marked } from "marked";
import { mathExtensions } from "./math-marks.js";
import { purifier } from "./purify.js";

const SAFE_LINK = /^(?:https?:\/\/|mailto:)/i;
// More is shown as it is: formatting would hold up the page. The time for emphasis grows with the square of its marks,
// that for blanks and for quotes and lists within each other with their number, and a model that has lost its way may
// write nothing else.
const MOST_CHARACTERS = 20_000;
const MOST_MARKS = 1500;
const TOO_BLANK = /[ \t]{1000}/;
const TOO_NESTED = /^(?:[ \t]*(?:>|(?:[-+*]|\d{1,9}[.)])[ \t])){50}/m;
const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const TAGS = ["p", "br", "hr", "strong", "em", "del", "code", "pre", "blockquote", "ul", "ol", "li", "h3", "h4",
              "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "a", "span"];
// what a class may say: the language of a code block that lib/code-colours.js knows, and formulas
const CLASSES = /^(?:language-[a-z]+(?: unfinished)?|unfinished|math(?: display)?)$/;
const MOST_FORMULAS = 300;
const LANGUAGES = {
  python: "python py python3", javascript: "javascript js jsx ts typescript mjs node", json: "json jsonl json5",
  bash: "bash sh shell zsh console", xml: "html xml svg xhtml", css: "css scss", sql: "sql sqlite postgresql mysql",
  cpp: "cpp c c++ cc h hpp cuda",
};
const LANGUAGE_OF = new Map(Object.entries(LANGUAGES).flatMap(([name, words]) => words.split(" ").map((word) => [word, name])));
const CLOSED_FENCE = /\n {0,3}(?:`{3,}|~{3,})[ \t]*\n*$/;

const ENTITY_OR_SPECIAL = /&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});|[&<>"']/gi;

const escape = (text) => String(text ?? "").replace(/[&<>"']/g, (character) => ESCAPES[character]);

/** The address where it is one that a reader may be sent to, else null. Browsers skip control characters in it. */
export function safeLink(href) {
  const address = String(href ?? "").replace(/[\u0000-\u0020\u007f-\u009f\u200b-\u200f\u2028-\u202f\ufeff]/g, "");
  if (!SAFE_LINK.test(address)) return null;
  try {
    return new URL(address).href;
  } catch {
    return null;
  }
}

function link(href, inner) {
  const address = safeLink(href);
  if (address === null) return inner;
  return `<a href="${escape(address)}">${inner}</a>`;
}

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escape(text),
    // also where the parser believes to be inside a <script> or <pre>, whose text it would not escape
    text(token) {
      if (token.tokens) return this.parser.parseInline(token.tokens);
      return token.text.replace(ENTITY_OR_SPECIAL, (found) => (found.length > 1 ? found : ESCAPES[found]));
    },
    link({ href, tokens }) {
      return link(href, this.parser.parseInline(tokens));
    },
    // never fetched: what it shows is named, and whoever wants it follows the link
    image: ({ href, text }) => link(href, escape(text || href)),
    heading({ tokens, depth }) { // the page's h1 and the turns' h2 stand above
      const level = Math.min(depth + 2, 6);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
    code({ text, lang, raw, codeBlockStyle }) {
      const language = LANGUAGE_OF.get(/^[\w+]*/.exec(lang ?? "")[0].toLowerCase());
      const isOpen = codeBlockStyle !== "indented" && !CLOSED_FENCE.test(raw);
      const classes = [language && `language-${language}`, isOpen && "unfinished"].filter(Boolean).join(" ");
      return `<pre><code${classes ? ` class="${classes}"` : ""}>${escape(text)}</code></pre>\n`;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    tablecell({ tokens, header }) {
      const tag = header ? "th" : "td";
      return `<${tag}>${this.parser.parseInline(tokens)}</${tag}>\n`;
    },
  },
});

marked.use({
  extensions: mathExtensions((raw, isDisplay) => `<span class="math${isDisplay ? " display" : ""}">${escape(raw)}</span>`),
});

/**
 * HTML of harmless tags only, a piece for each block of the text; null where the text is too much or too twisted to
 * format. While a text grows its earlier blocks stay the same, so that what was made of them can stay too.
 */
export function toBlocks(text) {
  if (text.length > MOST_CHARACTERS || TOO_BLANK.test(text) || TOO_NESTED.test(text)) return null;
  if ((text.match(/[*_~]/g)?.length ?? 0) > MOST_MARKS) return null;
  if ((text.match(/\$|\\[([]/g)?.length ?? 0) > 2 * MOST_FORMULAS) return null;
  try {
    const groups = [];
    for (const token of marked.lexer(text)) {
      const last = groups.at(-1);
      if (last && token.type === "text" && last.at(-1).type === "text") last.push(token); // one paragraph of them all
      else groups.push([token]);
    }
    return groups.map((tokens) => marked.parser(tokens)).filter((html) => html.trim());
  } catch {
    return null; // nested deeper than the parser can follow
  }
}

/** The whole text as HTML, or null. */
export const toHtml = (text) => toBlocks(text)?.join("") ?? null;

/** @returns {DocumentFragment} what a piece of toBlocks() stands for */
export const blockNodes = purifier({
  ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ["href", "start", "class"], ADD_URI_SAFE_ATTR: ["start"], ALLOWED_URI_REGEXP: SAFE_LINK,
}, {
  uponSanitizeAttribute: (node, attribute) => {
    if (attribute.attrName === "class" && !CLASSES.test(attribute.attrValue)) attribute.keepAttr = false;
  },
  afterSanitizeAttributes: (node) => {
    if (node.nodeName === "A") {
      if (safeLink(node.getAttribute("href")) === null) node.removeAttribute("href");
      node.setAttribute("target", "_blank");
      node.setAttribute("rel", "noopener noreferrer nofollow");
    }
    if (["PRE", "TABLE"].includes(node.nodeName)) node.setAttribute("tabindex", "0"); // they scroll, so keys reach them
  },
});
