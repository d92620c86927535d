// How likely each token of an answer was: steps of colour, ranks, the alternatives, and one number for the whole answer.

const YEAR_S = 365 * 86400;
/** Lowest probability of each step, the surest first; `step` 7 is the surest. */
const STEPS = [0.95, 0.8, 0.6, 0.4, 0.2, 0.08, 0.02];
export const STEP_COUNT = STEPS.length + 1;
const REPLACEMENT = "\ufffd";
const MOST_BYTES = 4; // of a character in UTF-8

/** A choice of the reader's that lasts: the only places for such are cookies. */
function keep(cookie, value) {
  document.cookie = `${cookie}=${value}; Path=/; Max-Age=${YEAR_S}; SameSite=Strict`;
}

/** Whether answers shall come with their tokens: then a request has `logprobs: true, top_logprobs: ALTERNATIVES`. */
export const wantsTokens = () => /(?:^|; )studio_tokens=1(?:;|$)/.test(globalThis.document?.cookie ?? "");
export const ALTERNATIVES = 5;

export function setWantsTokens(is) {
  keep("studio_tokens", is ? "1" : "0");
}

/** What a request needs so that its answer comes with tokens; nothing where nobody asked for them. */
export function tokenOptions(path = "/v1/chat/completions") {
  if (!wantsTokens()) return {};
  return path.includes("chat") ? { logprobs: true, top_logprobs: ALTERNATIVES } : { logprobs: ALTERNATIVES };
}

/** Probability of a natural logarithm; null where it is not known. */
export const chanceOf = (logprob) => (typeof logprob === "number" ? Math.min(1, Math.exp(logprob)) : null);

/** 0 (nobody would have thought so) to 7 (almost certain); null where it is not known. */
export function stepOf(chance) {
  if (chance === null) return null;
  const place = STEPS.findIndex((lowest) => chance >= lowest);
  return place < 0 ? 0 : STEPS.length - place;
}

/** "43 %", "0.2 %", "< 0.1 %": as exact as it says something. */
export function chanceWords(chance) {
  if (chance === null) return "–";
  const percent = chance * 100;
  if (percent < 0.1) return "< 0.1 %";
  const isNearAnEnd = percent < 9.95 || (percent >= 99.5 && percent < 99.95);
  return `${isNearAnEnd ? percent.toFixed(1) : Math.round(percent)} %`;
}

/** What a token is called: its text, or its bytes where they are only a part of a character. */
export function nameOf({ token, bytes }) {
  if (!bytes?.length || !/^\ufffd+$/.test(token) || decoded([{ bytes }]) !== null) return token;
  return `‹${bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ")}›`;
}

/**
 * Tokens as they can be read: [{text, tokens, chance}]. One that holds a part of a character only says something together
 * with those that hold the rest; `chance` is then that of all of them in a row.
 */
export function readable(tokens) {
  const groups = [];
  for (let at = 0; at < tokens.length;) {
    const count = partsAt(tokens, at);
    const own = tokens.slice(at, at + count);
    const isKnown = own.every((token) => typeof token.logprob === "number");
    const logprob = isKnown ? own.reduce((sum, token) => sum + token.logprob, 0) : null;
    groups.push({ text: count === 1 ? nameOf(own[0]) : decoded(own), tokens: own, chance: chanceOf(logprob) });
    at += count;
  }
  return groups;
}

/** How many tokens from `at` on make whole characters; 1 where they never do. */
function partsAt(tokens, at) {
  if (!tokens[at].token.includes(REPLACEMENT) || !tokens[at].bytes) return 1;
  for (let count = 1; count <= MOST_BYTES && at + count <= tokens.length; count += 1) {
    const own = tokens.slice(at, at + count);
    if (own.some(({ bytes }) => !bytes)) return 1;
    if (decoded(own) !== null) return count;
  }
  return 1;
}

/** The text of the bytes of all these tokens, null where it is not whole. */
function decoded(tokens) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(tokens.flatMap(({ bytes }) => bytes)));
  } catch {
    return null;
  }
}

/**
 * What else could have stood there, the likeliest first: [{token, chance, isChosen}]. A token that was drawn from further
 * down the list stands at its end.
 */
export function alternatives(token) {
  const top = (token.top_logprobs ?? []).map((other) => ({
    token: nameOf(other), chance: chanceOf(other.logprob), isChosen: isSameToken(other, token) }));
  if (!top.some(({ isChosen }) => isChosen)) top.push({ token: nameOf(token), chance: chanceOf(token.logprob), isChosen: true });
  return top;
}

const isSameToken = (a, b) => (a.bytes && b.bytes ? String(a.bytes) === String(b.bytes) : a.token === b.token);

/** Place among the likeliest, 1 for the first; null for one further down, or where no others are known. */
export function rankOf(token) {
  const place = (token.top_logprobs ?? []).findIndex((other) => isSameToken(other, token));
  return place < 0 ? null : place + 1;
}

/** {count, meanLogprob, perplexity} over the tokens with a known probability; null where there is none. */
export function summary(tokens) {
  const known = tokens.filter(({ logprob }) => typeof logprob === "number" && Number.isFinite(logprob));
  if (!known.length) return null;
  const meanLogprob = known.reduce((sum, { logprob }) => sum + logprob, 0) / known.length;
  return { count: known.length, meanLogprob, perplexity: Math.exp(-meanLogprob) };
}
