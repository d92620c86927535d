// The second wall behind everything that becomes elements out of text: only these tags and attributes get through.

import DOMPurify from "dompurify";

const MATH_TAGS = ["math", "semantics", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mstyle",
                   "mpadded", "mphantom", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mmultiscripts",
                   "mprescripts", "mtable", "mtr", "mtd", "menclose"];
const MATH_ATTRIBUTES = ["display", "mathvariant", "stretchy", "fence", "separator", "lspace", "rspace", "minsize", "maxsize",
                         "symmetric", "accent", "accentunder", "movablelimits", "linethickness", "columnalign", "columnspacing",
                         "rowspacing", "columnlines", "rowlines", "width", "height", "depth", "voffset", "scriptlevel",
                         "displaystyle", "largeop", "notation"];
const CODE_CLASS = /^hljs-[a-z-]+(?: [a-z]+_)*$/;
const NOTHING_ELSE = { ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false, RETURN_DOM_FRAGMENT: true };

/** A purifier that is made when it is first used (modules are also read where there is no window). */
export function purifier(options, hooks = {}) {
  let made = null;
  return (html) => {
    if (made === null) {
      made = DOMPurify(window);
      for (const [name, hook] of Object.entries(hooks)) made.addHook(name, hook);
    }
    return made.sanitize(html, { ...NOTHING_ELSE, ...options });
  };
}

const mathFragment = purifier({ ALLOWED_TAGS: MATH_TAGS, ALLOWED_ATTR: MATH_ATTRIBUTES, FORBID_CONTENTS: ["annotation"] });

/** The <math> in what KaTeX wrote, without the TeX that it keeps beside it; null where there is none. */
export function mathElement(markup) {
  const math = mathFragment(markup).querySelector("math");
  for (const outer of math?.querySelectorAll("semantics") ?? []) outer.replaceWith(...outer.children);
  return math;
}

/** @returns {DocumentFragment} the coloured words of code */
export const codeFragment = purifier({ ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"] }, {
  uponSanitizeAttribute: (node, attribute) => {
    if (!CODE_CLASS.test(attribute.attrValue)) attribute.keepAttr = false;
  },
});
