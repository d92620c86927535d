// Numbers, times and sizes for people.

import { language, t } from "./i18n.js";

const whole = new Intl.NumberFormat(language, { maximumFractionDigits: 0 });
const SCALES = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const SIZES = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]];
export const NOTHING = "–";

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** 1234567 -> "1,234,567" */
export function integer(value) {
  return isNumber(value) ? whole.format(value) : NOTHING;
}

/** 1234567 -> "1.23M" */
export function compact(value) {
  if (!isNumber(value)) return NOTHING;
  for (const [limit, letter] of SCALES) {
    if (Math.abs(value) >= limit) return `${trimmed(value / limit)}${letter}`;
  }
  return Number.isInteger(value) ? String(value) : trimmed(value);
}

function trimmed(value) {
  return String(Number(value.toPrecision(3)));
}

/** A loss: four significant digits, "not finite" where there is none. */
export function loss(value) {
  if (value === null || value === undefined) return NOTHING;
  return isNumber(value) ? value.toPrecision(4) : t("not finite");
}

/** Any number of a curve in few characters. */
export function short(value) {
  if (!isNumber(value)) return NOTHING;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

/** A share as a percentage: 0.1234 -> "12.3 %" */
export function percent(value) {
  return isNumber(value) ? `${trimmed(value * 100)} %` : NOTHING;
}

/** Bytes in powers of ten. */
export function bytes(value) {
  if (!isNumber(value)) return NOTHING;
  for (const [limit, unit] of SIZES) if (value >= limit) return `${trimmed(value / limit)} ${unit}`;
  return `${Math.round(value)} B`;
}

/** Seconds as "1 h 05 min", "3 min 20 s" or "12 s". */
export function duration(seconds) {
  if (!isNumber(seconds)) return NOTHING;
  const all = Math.max(0, Math.round(seconds));
  const days = Math.floor(all / 86400);
  const hours = Math.floor((all % 86400) / 3600);
  const minutes = Math.floor((all % 3600) / 60);
  const two = (n) => String(n).padStart(2, "0");
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${two(minutes)} min`;
  return minutes ? `${minutes} min ${two(all % 60)} s` : `${all} s`;
}

/** A time of the API in local time: the hour for today, else the date too. */
export function time(text, now = new Date()) {
  if (!text) return NOTHING;
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return NOTHING;
  const today = at.toDateString() === now.toDateString();
  const clock = { hour: "2-digit", minute: "2-digit" };
  const options = today ? clock : { ...clock, day: "numeric", month: "short" };
  if (at.getFullYear() !== now.getFullYear()) options.year = "numeric";
  return new Intl.DateTimeFormat(language, options).format(at);
}

/** "3 minutes ago" */
export function ago(text, now = Date.now()) {
  if (!text) return NOTHING;
  const seconds = (new Date(text).getTime() - now) / 1000;
  const relative = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (Math.abs(seconds) >= length) return relative.format(Math.round(seconds / length), unit);
  }
  return relative.format(Math.round(seconds), "second");
}
