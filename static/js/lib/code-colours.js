// The words of code by what they are. A part of its own: it comes with the first block of code.

import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import cpp from "highlight.js/lib/languages/cpp";
import css from "highlight.js/lib/languages/css";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import python from "highlight.js/lib/languages/python";
import sql from "highlight.js/lib/languages/sql";
import xml from "highlight.js/lib/languages/xml";

const LANGUAGES = { bash, cpp, css, javascript, json, python, sql, xml };
const MOST_CODE = 10_000; // characters; more stays as it is
const MOST_LINE = 2000; // of minified code, over which some patterns would take long

for (const [name, language] of Object.entries(LANGUAGES)) hljs.registerLanguage(name, language);

/** HTML in which only <span class="hljs-..."> stand, still to be purified; null where the code stays as it is. */
export function highlighted(code, language) {
  if (!Object.hasOwn(LANGUAGES, language) || code.length > MOST_CODE) return null;
  if (code.split("\n").some((line) => line.length > MOST_LINE)) return null;
  return hljs.highlight(code, { language, ignoreIllegals: true }).value;
}
