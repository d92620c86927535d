// What a model says as formatted text. Its words are hostile: HTML in them is shown, never run; nothing is loaded from
// anywhere. Two walls: toHtml() writes only harmless tags, DOMPurify lets only these through.

import DOMPurify from "dompurify";
import { Marked } from "marked";

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
              "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "a"];

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
    code: ({ text }) => `<pre><code>${escape(text)}</code></pre>\n`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    tablecell({ tokens, header }) {
      const tag = header ? "th" : "td";
      return `<${tag}>${this.parser.parseInline(tokens)}</${tag}>\n`;
    },
  },
});

/** HTML of harmless tags only; null where the text is too much or too twisted to format. */
export function toHtml(text) {
  if (text.length > MOST_CHARACTERS || TOO_BLANK.test(text) || TOO_NESTED.test(text)) return null;
  if ((text.match(/[*_~]/g)?.length ?? 0) > MOST_MARKS) return null;
  try {
    return marked.parse(text);
  } catch {
    return null; // nested deeper than the parser can follow
  }
}

let purifier = null;

function purify(html) {
  if (purifier === null) {
    purifier = DOMPurify(window);
    purifier.addHook("afterSanitizeAttributes", (node) => {
      if (node.nodeName === "A") {
        if (safeLink(node.getAttribute("href")) === null) node.removeAttribute("href");
        node.setAttribute("target", "_blank");
        node.setAttribute("rel", "noopener noreferrer nofollow");
      }
      if (["PRE", "TABLE"].includes(node.nodeName)) node.setAttribute("tabindex", "0"); // they scroll, so keys reach them
    });
  }
  return purifier.sanitize(html, {
    ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ["href", "start"], ADD_URI_SAFE_ATTR: ["start"], ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false, ALLOWED_URI_REGEXP: SAFE_LINK, RETURN_DOM_FRAGMENT: true,
  });
}

/** @returns {DocumentFragment} `text` formatted */
export function markdown(text) {
  const html = toHtml(text);
  if (html !== null) return purify(html);
  const fragment = document.createDocumentFragment();
  const plain = document.createElement("p");
  plain.className = "as-is";
  plain.textContent = text;
  fragment.append(plain);
  return fragment;
}
