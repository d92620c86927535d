// Texts of scripts in the page's language. English stands in the source; the page carries the rest in a meta element.

const catalogue = (() => {
  const content = globalThis.document?.querySelector('meta[name="studio-messages"]')?.content;
  return content ? JSON.parse(content) : {};
})();

export const language = globalThis.document?.documentElement.lang || "en";
const plurals = new Intl.PluralRules(language);
// languages whose catalogues have other forms than "one" and "many"
const FORMS = { zh: () => 0 };

function fill(text, values) {
  return values ? text.replace(/%\((\w+)\)s/g, (all, name) => (name in values ? String(values[name]) : all)) : text;
}

/** The text in the page's language, with `%(name)s` replaced. */
export function t(text, values) {
  return fill(typeof catalogue[text] === "string" ? catalogue[text] : text, values);
}

/** The form of a text that fits a count, which is `%(num)s` in it. */
export function tn(one, many, count, values) {
  const forms = catalogue[one];
  const filled = { num: formatCount(count), ...values };
  if (Array.isArray(forms)) {
    const rule = FORMS[language.slice(0, 2)] ?? ((n) => (n === 1 ? 0 : 1));
    return fill(forms[Math.min(rule(count), forms.length - 1)], filled);
  }
  return fill(plurals.select(count) === "one" && count === 1 ? one : many, filled);
}

function formatCount(count) {
  return new Intl.NumberFormat(language).format(count);
}
