// Tokens and texts as a reader can tell them apart: whitespace and invisible characters get a sign.

import { integer } from "./format.js";
import { t, tn } from "./i18n.js";

const SIGNS = new Map([[" ", "·"], ["\n", "↵"], ["\t", "→"], ["\r", "␍"]]);
// other spaces, controls, zero widths, and those that turn the direction of a text around
const HIDDEN = /[ \n\t\r]|[\p{Zs}\p{Zl}\p{Zp}\p{Cc}\p{Cf}\p{Co}]/u;

/** `text` cut into `{ text, isSign, breaks }`: signs stand for what cannot be seen, `breaks` where a line ends. */
export function pieces(text) {
  const found = [];
  for (const character of text) {
    if (!HIDDEN.test(character)) {
      const last = found.at(-1);
      if (last && !last.isSign) last.text += character;
      else found.push({ text: character, isSign: false, breaks: false });
      continue;
    }
    const sign = SIGNS.get(character) ?? `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    found.push({ text: sign, isSign: true, breaks: character === "\n" });
  }
  return found;
}

/** One token in words, for a tip and for those who hear it. */
export function describe(token) {
  const grade = token.is_target ? t("graded") : t("read only");
  const parts = [t("id %(id)s", { id: token.id }), token.is_special ? t("control token") : null, grade,
                 token.is_partial ? t("part of a character") : null];
  return parts.filter(Boolean).join(" · ");
}

/** How a token's text is spoken: a space alone would be silence. */
export function spoken(token) {
  const shown = token.text.trim();
  if (shown) return shown;
  if (token.text.includes("\n")) return t("new line");
  if (token.text) return t("space");
  return token.is_partial ? t("part of a character") : t("nothing");
}

/** Tokens of preview rows in all and those that count for the loss, both sides of a pair included. */
export function counted(rows) {
  let tokens = 0;
  let targets = 0;
  for (const row of rows) {
    for (const side of [row.tokens ?? [], row.rejected_tokens ?? []]) {
      tokens += side.length;
      for (const token of side) targets += token.is_target ? 1 : 0;
    }
  }
  return { tokens, targets };
}

/** The sentence for `counted`. */
export function countedWords({ tokens, targets }, isCut) {
  if (!tokens) return "";
  const share = `${Math.round((100 * targets) / tokens)} %`;
  const said = tn("On this page: %(num)s token, %(targets)s graded (%(share)s).",
                  "On this page: %(num)s tokens, %(targets)s graded (%(share)s).", tokens,
                  { targets: integer(targets), share });
  return isCut ? [said, t("Long rows are shown in part.")].join(" ") : said;
}

/** How many tokens a conversation has and how many of them are graded, as a sentence. */
export function countWords(tokens, targets) {
  return tn("%(num)s token, %(targets)s graded (%(share)s).", "%(num)s tokens, %(targets)s graded (%(share)s).", tokens,
            { targets: integer(targets), share: `${Math.round((100 * targets) / Math.max(1, tokens))} %` });
}

const STEPS = [1, 2, 5];

/**
 * Bars of a histogram of whole numbers: `{ from, to, count }` (`to` not included), at most `most` bars of a round
 * width. Long tails are gathered in the last bar, whose `to` is null, so that one giant does not flatten the rest.
 */
export function histogram(values, most = 20) {
  if (!values.length) return [];
  const sorted = [...values].sort((a, b) => a - b);
  const usual = sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.98))];
  const span = usual + 1;
  let width = 1;
  for (let power = 1; width * most < span; power *= 10) {
    width = STEPS.map((step) => step * power).find((step) => step * most >= span) ?? width;
  }
  const bars = Array.from({ length: Math.ceil(span / width) }, (_, place) => (
    { from: place * width, to: (place + 1) * width, count: 0 }));
  for (const value of values) bars[Math.min(bars.length - 1, Math.floor(value / width))].count += 1;
  if (sorted.at(-1) >= bars.at(-1).to) bars.at(-1).to = null;
  return bars;
}

/** The value in the middle. */
export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
