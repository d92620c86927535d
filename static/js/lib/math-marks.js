// Where formulas stand in markdown: $$...$$, \[...\], \(...\), and $...$ where it is no price. They stay text here, in a
// <span class="math">; lib/formulas.js makes MathML of that text.

const MOST_TEX = 2000; // characters; more is shown as it is
const INLINE = [/^\\\(([^\n]+?)\\\)/, /^\\\[((?:(?!\n[ \t]*\n)[^])+?)\\\]/, /^\$\$((?:(?!\n[ \t]*\n)[^$])+?)\$\$/];
const BLOCK = [/^ {0,3}\\\[((?:(?!\n[ \t]*\n)[^])+?)\\\][ \t]*(?:\n|$)/, /^ {0,3}\$\$((?:(?!\n[ \t]*\n)[^$])+?)\$\$[ \t]*(?:\n|$)/];
// nothing that a price, a shell variable or half a sentence would be: tight at both ends, no letter or digit outside
const DOLLARS = /^\$(?![\s$])((?:\\.|[^\\$\n])+?)(?<!\s)\$(?![\p{L}\p{N}$])/u;
const WORD_END = /[\p{L}\p{N}$\\]$/u;
const AMOUNT_AND_WORDS = /^\d[\d.,]*(?:\s|$).*?(?<![\\\p{L}])\p{L}{2,}/u; // "$5 or maybe 6$"

/** The formula that `text` begins with: {raw, tex, isDisplay}, or null. `before` is what stands in front of it. */
export function formulaAt(text, before = "") {
  for (const [place, pattern] of INLINE.entries()) {
    const found = pattern.exec(text);
    if (found && isTex(found[1])) return { raw: found[0], tex: found[1], isDisplay: place > 0 };
  }
  const found = DOLLARS.exec(text);
  if (!found || WORD_END.test(before) || AMOUNT_AND_WORDS.test(found[1]) || !isTex(found[1])) return null;
  return { raw: found[0], tex: found[1], isDisplay: false };
}

const isTex = (text) => text.trim() !== "" && text.length <= MOST_TEX;

/** The text of a <span class="math"> without the marks round it. */
export function texOf(text) {
  return /^(?:\\[([]|\$\$?)([^]*?)(?:\\[)\]]|\$\$?)\s*$/.exec(text.trim())?.[1] ?? "";
}

/** Extensions of marked. `render(raw, isDisplay)` writes the span. */
export function mathExtensions(render) {
  const blockStart = (source) => { // of a line: where the source begins may be the middle of one
    const place = source.search(/\n {0,3}(?:\$\$|\\\[)/);
    return place < 0 ? undefined : place + 1;
  };
  return [
    { name: "formulaBlock", level: "block", start: blockStart,
      tokenizer(source) {
        const found = BLOCK.map((pattern) => pattern.exec(source)).find((match) => match && isTex(match[1]));
        return found && { type: "formulaBlock", raw: found[0] };
      },
      renderer: ({ raw }) => `<p>${render(raw.trim(), true)}</p>\n` },
    { name: "formula", level: "inline", start: (source) => /\$|\\[([]/.exec(source)?.index,
      tokenizer(source, tokens) {
        const found = /^[$\\]/.test(source) && formulaAt(source, tokens.at(-1)?.raw ?? "");
        return found ? { type: "formula", raw: found.raw, isDisplay: found.isDisplay } : undefined;
      },
      renderer: ({ raw, isDisplay }) => render(raw, isDisplay) },
  ];
}
