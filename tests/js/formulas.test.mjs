import assert from "node:assert/strict";
import { test } from "node:test";
import { highlighted } from "../../static/js/lib/code-colours.js";
import { mathml } from "../../static/js/lib/formulas.js";

test("formulas become MathML without style", () => {
  assert.match(mathml("\\frac{a}{b}", true), /<math [^>]*display="block"><semantics><mrow><mfrac><mi>a<\/mi><mi>b<\/mi><\/mfrac>/);
  for (const tex of ["x", "\\boxed{x}", "\\color{red}x", "\\colorbox{red}{x}", "\\fcolorbox{red}{blue}{x}", "\\begin{align}a&=b\\\\c&=d\\end{align}", "\\rule{1em}{900em}", "\\cancel{x}", "\\Huge x",
                     "\\longrightarrow", "\\text{a style=\"x\" b}", "面积 = \\pi r^2", "\\left\\lvert x\\right\\rvert"]) {
    const made = mathml(tex, true);
    assert.ok(made, tex);
    assert.doesNotMatch(made, /<[^>]* style/, tex);
  }
});

test("what is no formula, loads, links, or stands for too much is none", () => {
  for (const tex of ["\\frac{1}", "x^", "}", "\\unknown", "\\href{javascript:alert(1)}{x}", "\\href{https://evil.example}{x}", "\\url{https://evil.example}",
                     "\\includegraphics{https://evil.example/x.png}", "\\htmlClass{button}{x}", "\\htmlId{x}{y}", "\\htmlStyle{color:red}{x}", "\\htmlData{a=b}{x}",
                     "\\def\\a{x}\\a", "\\gdef\\a{x}", "\\edef\\a{x}", "\\let\\a=b", "\\newcommand{\\a}{x}", "\\renewcommand{\\frac}{x}", "\\@ifnextchar x{y}{z}",
                     "x".repeat(2001), "{".repeat(41) + "}".repeat(41)]) {
    assert.equal(mathml(tex, true), null, tex.slice(0, 40));
  }
});

test("text in a formula is text", () => {
  for (const tex of ["<img src=x onerror=alert(1)>", "\\text{</mtext><script>alert(1)</script>}", "\\text{<style>@import 'x'</style>}", "\\operatorname{</annotation>}"]) {
    const made = mathml(tex, false);
    if (made !== null) assert.doesNotMatch(made, /<(?:img|script|style)/, tex);
  }
});

test("code is coloured by its language, and stays text", () => {
  assert.match(highlighted("def f(x):\n  return '<b>'", "python"), /<span class="hljs-keyword">def<\/span>[^]*&lt;b&gt;/);
  for (const [language, code] of [["javascript", "const a = `${1}`;"], ["json", '{"a": 1}'], ["bash", "echo $HOME"], ["xml", "<p onclick='x'>&amp;</p>"], ["css", "a { color: red }"],
                                  ["sql", "SELECT 1"], ["cpp", "int main() { return 0; }"]]) {
    const html = highlighted(code, language);
    assert.deepEqual([...html.matchAll(/<(?!\/?span)/g)], [], language);
    assert.match(html, /class="hljs-/, language);
  }
  for (const [code, language] of [["x", "brainf"], ["x", "__proto__"], ["x", "constructor"], ["x".repeat(10_001), "python"], ["x".repeat(2001), "json"]]) {
    assert.equal(highlighted(code, language), null);
  }
});

test("nothing hangs", () => {
  const began = performance.now();
  for (const tex of ["\\frac{a}{b}".repeat(180), "a\\\\".repeat(600), "\\substack{a\\\\b}".repeat(130), "\\bigl(".repeat(330), "\\sqrt{".repeat(39) + "}".repeat(39)]) mathml(tex, true);
  for (const [unit, language] of [["`${\n", "javascript"], ["x=>(\n", "javascript"], ["/a\n", "javascript"], ["<a b=\n", "xml"], ["a{b:\n", "css"], ["'\n", "sql"], ["int f(\n", "cpp"], ["$((\n", "bash"],
                                  ['f"{\n', "python"]]) highlighted(unit.repeat(Math.floor(9900 / unit.length)), language);
  assert.ok(performance.now() - began < 5000, `${performance.now() - began} ms`);
});
