import assert from "node:assert/strict";
import { test } from "node:test";
import { safeLink, toBlocks, toHtml } from "../../static/js/lib/markdown.js";

const ALLOWED = new Set(["p", "br", "hr", "strong", "em", "del", "code", "pre", "blockquote", "ul", "ol", "li", "h3", "h4", "h5",
                         "h6", "table", "thead", "tbody", "tr", "th", "td", "a", "span"]);

/** Every tag that a browser would find; an unescaped < anywhere else fails too. */
function tags(html) {
  assert.ok(!/<(?!\/?[a-z])/i.test(html), html);
  return [...html.matchAll(/<\/?([a-z][^\s/>]*)([^>]*)>/gi)].map(([, name, attributes]) => ({ name: name.toLowerCase(), attributes }));
}

function assertHarmless(text) {
  const html = toHtml(text);
  for (const { name, attributes } of tags(html)) {
    assert.ok(ALLOWED.has(name), `${name} in ${html}`);
    assert.match(attributes, /^(?: href="(?:https?:\/\/|mailto:)[^"<>]*"| start="\d+"| class="[a-z -]*")? ?\/?$/, html);
  }
  return html;
}

test("what people write in markdown is formatted", () => {
  assert.equal(toHtml("Hi **you**, _me_ and `x < 1`").trim(), "<p>Hi <strong>you</strong>, <em>me</em> and <code>x &lt; 1</code></p>");
  assert.equal(toHtml("one\ntwo").trim(), "<p>one<br>two</p>");
  assert.match(assertHarmless("# Title\n\n- a\n- b\n\n3. c\n\n> q\n\n---\n\n~~no~~"), /<h3>Title<\/h3>[^]*<ul>[^]*<ol start="3">[^]*<blockquote>[^]*<hr>[^]*<del>/);
  assert.match(assertHarmless("|a|b|\n|-|:-:|\n|**1**|2|"), /<table>[^]*<th>a<\/th>[^]*<td><strong>1<\/strong><\/td>/);
  assert.match(assertHarmless("```js\nif (a < b && c) {}\n```"), /<pre><code class="language-javascript">if \(a &lt; b &amp;&amp; c\) \{\}<\/code><\/pre>/);
  assert.match(assertHarmless("- [x] done\n- [ ] open"), /☑ [^]*☐ /);
  assert.equal(toHtml("AT&amp;T &lt;b&gt; & &copy; 5 > 3").trim(), "<p>AT&amp;T &lt;b&gt; &amp; &copy; 5 &gt; 3</p>");
});

test("links lead only to the web or to mail", () => {
  assert.equal(toHtml("[a](https://example.org/?x=1&y=2)").trim(),
    '<p><a href="https://example.org/?x=1&amp;y=2">a</a></p>');
  assert.match(assertHarmless("see https://example.org. and me@example.org"), /href="https:\/\/example.org\/"[^]*href="mailto:me@example.org"/);
  for (const bad of ["javascript:alert(1)", " JaVaScRiPt:alert(1)", "java\tscript:alert(1)", "data:text/html,x", "vbscript:x",
                     "file:///etc/passwd", "/logout", "//evil.example", "blob:https://x", "#top", "", "http:evil", "https://",
                     "\u0001javascript:alert(1)", "&#106;avascript:alert(1)"]) {
    assert.equal(safeLink(bad), null, bad);
    assert.ok(!assertHarmless(`[a](<${bad}>)`).includes("<a"), bad);
  }
  assert.equal(safeLink("HTTPS://example.org"), "https://example.org/");
  assert.ok(!assertHarmless('[a](https://x.example/"onclick="alert(1) "t")').includes('"onclick'));
});

test("HTML is shown, not used", () => {
  assert.equal(toHtml("<b>bold</b>").trim(), "<p>&lt;b&gt;bold&lt;/b&gt;</p>");
  for (const text of ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!-- x --><svg/onload=alert(1)>",
                      "<pre><img src=x onerror=alert(1)></pre>", "a <code>*x* <b>", "<style>p{}</style>", "<a href='javascript:x'>y</a>",
                      "<script>`<img src=x>`</script>", "x <script> <b onclick=1>*a*</b> </script> y", "<![CDATA[<b>]]>", "<?php <b> ?>",
                      "| <img src=x> | b |\n|-|-|\n| <b> | <svg> |", "# <img src=x>", "- <iframe src=x>", "[<img src=x>](https://a.example)"]) {
    assertHarmless(text);
  }
});

test("images are named, never loaded", () => {
  assert.equal(toHtml('![a <b> cat](https://evil.example/p.png "t")').trim(),
    '<p><a href="https://evil.example/p.png">a &lt;b&gt; cat</a></p>');
  assert.equal(toHtml("![x](data:image/png;base64,AAAA)").trim(), "<p>x</p>");
  assertHarmless('![x" onerror="alert(1)](y)');
  assertHarmless("[![x](https://a.example/i.png)](javascript:alert(1))");
});

test("what is too much or too deep is not formatted, and nothing hangs", () => {
  assert.equal(toHtml("a".repeat(20_001)), null);
  for (const text of [`a${" ".repeat(19_000)}b`, `a${"\t".repeat(19_000)}`, "> ".repeat(9000), ">".repeat(50), `so\n${"1. ".repeat(60)}`,
                      "- > ".repeat(25), "+ 12) ".repeat(25)]) {
    const began = performance.now();
    assert.equal(toHtml(text), null, text.slice(0, 20));
    assert.ok(performance.now() - began < 100, text.slice(0, 20));
  }
  assert.match(assertHarmless("> ".repeat(5) + "deep\n\n- a\n  - b"), /deep[^]*<li>b/);
  assert.equal(toHtml("*a_".repeat(15_000)), null);
  const began = performance.now();
  for (const text of [">".repeat(20_000), "[".repeat(20_000), "*a_".repeat(500), "`".repeat(20_000), "- ".repeat(10_000),
                      "![".repeat(10_000), "<a ".repeat(6500), "|".repeat(20_000), "[a](".repeat(5000), `${"a".repeat(19_999)}@`,
                      `- a\n${"b\n".repeat(9900)}`, "- a\n".repeat(5000), `${"> ".repeat(49)}a\n`.repeat(200),
                      `a${" ".repeat(999)}`.repeat(20)]) {
    const html = toHtml(text);
    if (html !== null) tags(html);
  }
  assert.ok(performance.now() - began < 15_000, `${performance.now() - began} ms`);
});

test("code says its language where it is one of ours, and whether it has ended", () => {
  const classOf = (text) => /<code(?: class="([^"]*)")?>/.exec(assertHarmless(text))[1] ?? "";
  assert.equal(classOf("```py\nx\n```"), "language-python");
  assert.equal(classOf("~~~C++\nx\n~~~~\n"), "language-cpp");
  assert.equal(classOf("```py\nx"), "language-python unfinished");
  assert.equal(classOf("```\nx"), "unfinished");
  assert.equal(classOf("```py\nx\n``"), "language-python unfinished");
  assert.equal(classOf("```brainf\nx\n```"), "");
  assert.equal(classOf("    indented"), "");
  for (const bad of ['py" onclick="alert(1)', "button primary", "__proto__", "constructor", "python unfinished x"]) {
    assert.match(classOf(`\`\`\`${bad}\nx\n\`\`\``), /^(?:language-python)?$/, bad);
  }
});

const formulas = (text) => [...assertHarmless(text).matchAll(/<span class="math( display)?">([^<]*)<\/span>/g)].map(
  ([, display, tex]) => (display ? `D ${tex}` : tex));

test("formulas are found, and stay text", () => {
  assert.deepEqual(formulas("Let $x^2$ be \\(a_1 * b_1 * c\\), or \\[e = mc^2\\] and $$z$$."),
                   ["$x^2$", "\\(a_1 * b_1 * c\\)", "D \\[e = mc^2\\]", "D $$z$$"]);
  assert.deepEqual(formulas("$$\na\n= *b*\n$$\nafter\n\\[\n- c\n\\]"), ["D $$\na\n= *b*\n$$", "D \\[\n- c\n\\]"]);
  assert.deepEqual(formulas("- item $a$\n\n| $b$ | c |\n|-|-|\n| d | $e$ |\n\n> **$f$** and ($g$), $h$-th"), ["$a$", "$b$", "$e$", "$f$", "$g$", "$h$"]);
  assert.deepEqual(formulas("$\\$5$ and $1$ and $3{,}5\\ \\text{km}$"), ["$\\$5$", "$1$", "$3{,}5\\ \\text{km}$"]);
});

test("prices, variables and halves are no formulas", () => {
  for (const text of ["It costs $5 and $10.", "$5-$10", "US$5 or A$6", "from $1,000 to $2,000", "$HOME/$USER", "$HOME and $PATH", "$ x$", "$x $",
                      "$5 or maybe 6$", "`$x$`", "```\n$$x$$\n```", "\\$x\\$", "$$$$", "$$", "$a\nb$", "$$a", "\\(a", "\\[a\n\nb\\]", "a$b$c", "$x$5",
                      "\\( \\)", `$${"x".repeat(2001)}$`]) {
    assert.deepEqual(formulas(text), [], text.slice(0, 40));
  }
});

test("HTML in formulas is text", () => {
  for (const text of ["$<img src=x onerror=alert(1)>$", "\\(</span><script>alert(1)</script>\\)", '$$" onmouseover="alert(1)$$', "$$\n<svg onload=alert(1)>\n$$",
                      "$\\href{javascript:alert(1)}{x}$", "\\[<math><mi xlink:href='javascript:alert(1)'>\\]", "$&lt;b&gt;$"]) {
    assert.equal(formulas(text).length, 1, text);
  }
});

test("the pieces together are the whole, and those before the end do not change while it grows", () => {
  const text = "# T\n\none *two*\n\n- a\n- b\n\n```py\nx = 1\n```\n\n$$\na+b\n$$\n\n| a |\n|-|\n| b |\n\nlast";
  assert.equal(toBlocks(text).length, 7);
  let before = [];
  for (let end = 1; end <= text.length; end += 1) {
    const blocks = toBlocks(text.slice(0, end));
    assert.equal(toHtml(text.slice(0, end)), blocks.join(""));
    const settled = before.slice(0, -1);
    assert.deepEqual(blocks.slice(0, settled.length), settled, text.slice(0, end));
    before = blocks;
  }
});

test("many marks of formulas are not formatted, and nothing hangs", () => {
  const began = performance.now();
  assert.equal(toHtml("$a$ ".repeat(400)), null);
  for (const text of ["\\[".repeat(590), `${"\\[x\n".repeat(590)}`, `$$${"a".repeat(19_000)}`, `${"$a".repeat(590)}`, `${"$a b ".repeat(590)}`,
                      `$${"\\".repeat(19_000)}`, `${"\n$$".repeat(590)}`, `${"\\(a".repeat(590)}${" ".repeat(900)}`]) {
    const html = toHtml(text);
    if (html !== null) tags(html);
  }
  assert.ok(performance.now() - began < 5000, `${performance.now() - began} ms`);
});
