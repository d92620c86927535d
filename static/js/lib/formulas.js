// Formulas as MathML. A part of its own, because KaTeX is larger than a page: it comes with the first formula.

import katex from "katex";

const MOST_TEX = 2000;
const MOST_BRACES = 40; // within each other
const MOST_MARKUP = 200_000;
// A few lines of macros can stand for more text than a page can hold; what links, loads or styles has no place here.
const REFUSED = new RegExp("\\\\(?:@|(?:[gex]?def|let|futurelet|global|long|newcommand|renewcommand|providecommand|href|url|"
                           + "includegraphics|html(?:Class|Id|Style|Data))(?![A-Za-z]))");
const HARMLESS = ["unicodeTextInMathMode", "mathVsTextUnits", "newLineInDisplayMode", "unknownSymbol"]; // habits of TeX
const OPTIONS = {
  output: "mathml", throwOnError: true, trust: false, maxExpand: 200, maxSize: 20,
  strict: (code) => (HARMLESS.includes(code) ? "ignore" : "error"),
};

/** MathML as text, still to be purified; null where this is no formula, or too much of one. */
export function mathml(tex, isDisplay) {
  if (tex.length > MOST_TEX || REFUSED.test(tex) || nesting(tex) > MOST_BRACES) return null;
  try {
    const made = katex.renderToString(tex, { ...OPTIONS, displayMode: isDisplay });
    // Even a document that nobody sees may not have style attributes. KaTeX writes quotation marks in text as entities.
    return made.length > MOST_MARKUP ? null : made.replace(/ style ?="[^"]*"/g, "");
  } catch {
    return null;
  }
}

function nesting(tex) {
  let depth = 0;
  let most = 0;
  for (const character of tex) {
    if (character === "{") most = Math.max(most, (depth += 1));
    else if (character === "}") depth -= 1;
  }
  return most;
}
