"""What a message shows, on the pattern page: thoughts, tools, tokens, code,
formulas; and hostile text in all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.pages import axe

VIEW = {"plain": False, "model": "", "isLast": False, "isLive": False, "waiting": "Writing…", "canGoOn": False,
        "isReadOnly": False, "later": 0}
BAD_LINK = "javascript:window.pwned(1)"
BEACON = "https://evil.example/beacon"

#: in formulas, where they become MathML or stay text
MATH = [
    r"$<img src=x onerror=pwned(1)>$", r"$$<svg onload=pwned(1)>$$", r"\(<script>pwned(1)</script>\)",
    rf"$\href{{{BAD_LINK}}}{{x}}$", rf"$\url{{{BEACON}}}$", rf"\[\includegraphics{{{BEACON}.png}}\]",
    r"$\htmlClass{button}{x}$", r"$\htmlId{chat}{x}$", r"$\htmlStyle{background:url(https://evil.example/x)}{x}$",
    r"$\htmlData{opens=pattern-dialog}{x}$", r"$\text{</mtext></math><img src=x onerror=pwned(1)>}$",
    r"$\text{<style>*{background:url(https://evil.example/s)}</style>}$",
    r"$\text{<!--}-->\text{<img src onerror=pwned(1)>}$",
    r"$\mathrm{<math><mtext><table><mglyph><style><img src onerror=pwned(1)>}$",
    r"$\operatorname{</annotation><annotation-xml encoding='text/html'><img src=x onerror=pwned(1)>}$",
    r"$\def\x{\x\x}\x$", r"$\newcommand{\a}{<img src=x>}\a$", r"$\color{red;background:url(https://evil.example/c)}x$",
    r"$\colorbox{url(https://evil.example/b)}{x}$", r"$\rule{9999em}{9999em}$", r"$\kern{-9999em}x$",
    r"$\fcolorbox{red}{blue}{x}$", r"$\style{x}{y}$",
    r"$\class{x}{y}$", r"$\require{html}x$", r"$\unicode{x3c}img$", r"$\char`<script$",
    r"$x$<math><mi xlink:href='javascript:pwned(1)'>x</mi></math>", r"$\tag{<img src=x onerror=pwned(1)>}x$",
    r"$$\begin{array}{|c|}<iframe srcdoc='<script>pwned(1)</script>'>\end{array}$$",
    r'$x" onmouseover="pwned(1)$', r"$\text{&lt;img src=x onerror=pwned(1)&gt;}$",
    "\\[\n<form action=/logout><button>\n\\]",
]
#: in blocks of code, whose words become elements, and in what stands round them
CODE = [
    "```html\n<script>pwned(1)</script><img src=x onerror=pwned(1)>\n```",
    "```xml\n<![CDATA[<img src=x onerror=pwned(1)>]]>\n```",
    f"```html\n<img src={BEACON}><link rel=stylesheet href={BEACON}>\n```",
    "```js\n`${'</code></pre><img src=x onerror=pwned(1)>'}`\n```",
    f"```css\n@import url({BEACON}); p {{ background: url({BEACON}) }}\n```",
    "```python\nf'''</span><svg/onload=pwned(1)>'''\n```",
    '```py" onclick="pwned(1)\nx\n```', '```js class="button"\nx\n```',
    "```html\n<style><img src=x onerror=pwned(1)></style>",
    "```sql\n'</pre><form action=/logout><input type=submit>'\n```",
    "```bash\necho \"<math><mtext></form><form><mglyph><style></math><img src onerror=pwned(1)>\"\n```",
    "```json\n{\"a\": \"</script><script>pwned(1)</script>\"}\n```", "```cpp\nR\"(<img src=x onerror=pwned(1)>)\"\n```",
    "`<img src=x onerror=pwned(1)>`", "```hljs-keyword\nx\n```",
    "~~~html\n<noscript><p title=\"</noscript><img src=x onerror=pwned(1)>\">\n~~~",
]
#: and everywhere else
TEXT = [
    "<script>pwned(1)</script>", "<img src=x onerror=pwned(1)>",
    "<svg><animate onbegin=pwned(1) attributeName=x dur=1s>",
    f"![x]({BEACON}.png)", f"[a]({BAD_LINK})", "[a](data:text/html,<script>pwned(1)</script>)",
    f"[a][b]\n\n[b]: {BAD_LINK}",
    f"![a][b]\n\n[b]: {BEACON}", f"<{BAD_LINK}>", "<form action=/logout method=post><form><button>go</button></form>",
    "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=pwned(1)&gt;\">",
    "<svg></p><style><a id=\"</style><img src=1 onerror=pwned(1)>\">", "<details open ontoggle=pwned(1)>",
    "<base href=https://evil.example/>",
    f"<meta http-equiv=refresh content='0;url={BEACON}'>", f"<link rel=prefetch href={BEACON}>",
    f"<video poster={BEACON} src={BEACON}>",
    "<div style=\"background:url(https://evil.example/d)\">", "<template><script>pwned(1)</script></template>",
    "<a id=said name=said>clobber</a>",
]
#: what messages are made of
ELEMENTS = """
chat-message formatted-text tool-call token-view copy-button a blockquote br button code del details div em h2 h3 h4
h5 h6 hr input label li ol p pre progress span strong summary table tbody td th thead tr ul math menclose mfrac mi
mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow ms mspace msqrt mstyle msub msubsup msup mtable
mtd mtext mtr munder munderover
""".split()
#: tells of everything in the messages that should not be there
INSPECT = """(allowed) => {
  const found = [];
  for (const element of document.querySelectorAll("[data-test] *")) {
    const name = element.nodeName.toLowerCase();
    if (!allowed.includes(name)) found.push(name);
    for (const { name: key, value } of element.attributes) {
      const isOurs = element.className === "chance-card"; // it is placed through the object model
      if (/^on|^style$|^src|^srcdoc$|^action$|xlink/i.test(key) && !isOurs) found.push(`${name} ${key}`);
      if (key === "href" && !/^https:\\/\\/|^mailto:/.test(value)) found.push(`${name} ${key}=${value}`);
      if (key === "id" && !isOurs) found.push(`${name} ${key}=${value}`);
    }
  }
  if (window.wasPwned) found.push("it ran");
  return found;
}"""
#: how long the token view takes, in ms: for 2,000 tokens at once, for the longest of 100 steps, for going to a token
MEASURE = """() => {
  const alternative = (_, k) => ({ token: ` w${k}`, logprob: -k, bytes: null });
  const tokens = Array.from({ length: 2000 }, (_, place) => ({
    token: place % 30 ? ` word${place}` : "\\n", logprob: -place % 5, bytes: null,
    top_logprobs: Array.from({ length: 5 }, alternative) }));
  const timed = (work) => {
    const began = performance.now();
    work();
    document.body.offsetHeight;
    return performance.now() - began;
  };
  const view = () => document.querySelector("main").appendChild(document.createElement("token-view"));
  const [whole, growing] = [view(), view()];
  const atOnce = timed(() => whole.show(tokens));
  const steps = Array.from({ length: 100 }, (_, n) => timed(() => growing.show(tokens.slice(0, 20 * (n + 1)))));
  const chips = [...whole.querySelectorAll(".chances .chance")].filter((_, place) => place % 50 === 0);
  return { atOnce, step: Math.max(...steps), move: Math.max(...chips.map((chip) => timed(() => chip.focus()))) };
}"""


@pytest.fixture
def patterns(page: Page) -> Iterator[Page]:
    page.add_init_script("window.pwned = () => { window.wasPwned = true; };")
    page.goto("/patterns")
    expect(page.locator("chat-message").first).to_be_attached()
    yield page


def show(page: Page, message: dict, **view: object) -> Locator:
    """A message of its own above all others, as the chat would show it; shown again, it is the same element."""
    page.evaluate("""([message, view]) => {
      window.shown ??= document.querySelector("main").insertAdjacentElement("afterbegin",
      document.createElement("chat-message"));
      window.shown.dataset.test = "";
      window.shown.show(message, view);
    }""", [{"role": "assistant", "content": "", "finish_reason": "stop", **message}, {**VIEW, **view}])
    return page.locator("[data-test]")


def settle(page: Page) -> None:
    """The parts that come later are here, and have done their work."""
    page.wait_for_function("""() => [...document.querySelectorAll("[data-test] .math")].every(
      (span) => span.querySelector("math") || span.classList.contains("failed"))""")
    page.evaluate("() => new Promise((resolve) => setTimeout(resolve, 50))")


@pytest.mark.parametrize("cases", [MATH, CODE, TEXT], ids=["math", "code", "text"])
def test_hostile_text_is_text(patterns: Page, cases: list[str]) -> None:
    """As an answer, as thoughts,
    as what a tool was told and said. ``problems`` sees requests and breaches of the policy."""
    page = patterns
    for text in cases:
        show(page, {"content": text, "reasoning": text})
        settle(page)
        assert page.evaluate(INSPECT, ELEMENTS) == [], text
    show(page, {"content": "\n\n".join(cases)[:19_000]})
    settle(page)
    assert page.evaluate(INSPECT, ELEMENTS) == []
    calls = [{"id": str(place), "name": text[:60], "arguments": json.dumps({"x": text})} for place,
    text in enumerate(cases)]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": text, "is_error": place % 2 == 0}
               for place, (call, text) in enumerate(zip(calls, cases, strict=True))]
    message = show(page, {"tool_calls": calls}, results=results)
    assert page.evaluate(INSPECT, ELEMENTS) == []
    expect(message.locator("tool-call")).to_have_count(len(cases))
    tokens = [{"token": text, "logprob": -1, "bytes": None, "top_logprobs": [{"token": text + "2", "logprob": -2,
    "bytes": None}]}
              for text in cases]
    message = show(page, {"content": "x", "tokens": tokens})
    message.get_by_role("button", name="Show this answer as tokens").click()
    for place in range(len(cases)):
        message.locator(".chances .chance").nth(place).dispatch_event("focusin", {"bubbles": True})
    assert page.evaluate(INSPECT, ELEMENTS) == []
    page.mouse.move(5, 5)
    assert not page.evaluate("Boolean(window.wasPwned)")


def test_formulas_and_code(patterns: Page) -> None:
    page = patterns
    text = ("Price $5, $x^2$ and\n\n$$\\frac{a}{b}$$\n\n$\\frac{1}$\n\n"
            "```py\ndef f():\n  return 1\n```\n\n```\nplain\n```\n\n`$y$`")
    message = show(page, {"content": text})
    expect(message.locator("math")).to_have_count(2)
    expect(message.locator("math[display=block] mfrac")).to_be_visible()
    expect(message.locator(".math.failed")).to_have_text("$\\frac{1}$")
    assert "annotation" not in page.evaluate("window.shown.querySelector('math').outerHTML"), "nobody hears it twice"
    assert message.locator("math").first.get_attribute("aria-label") == "x^2"
    expect(message.locator("code .hljs-keyword")).to_have_text(["def", "return"])
    expect(message.locator("pre")).to_have_count(2)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    message.get_by_role("button", name="Copy this code").first.click()
    assert page.evaluate("navigator.clipboard.readText()") == "def f():\n  return 1"
    assert not axe(page), "\n".join(axe(page))
    page.emulate_media(color_scheme="dark")
    assert not axe(page, ["color-contrast"]), "\n".join(axe(page, ["color-contrast"]))


@pytest.mark.slow  # browser tests have ten minutes
def test_what_is_written_already_stays_while_more_comes(patterns: Page) -> None:
    """Only blocks that changed are made anew; a block of code gets its colours when it is whole."""
    page = patterns
    begun = "First.\n\n```js\nconst a = 1;\n```\n\n$x$ and\n\n```py\nimport os"
    message = show(page, {"content": begun, "finish_reason": None}, isLive=True)
    expect(message.locator("math")).to_have_count(1)
    expect(message.locator(".hljs-keyword")).to_have_text(["const"])
    expect(message.get_by_role("button", name="Copy this code")).to_have_count(1)
    page.evaluate("window.before = [...window.shown.querySelectorAll('p, .code-block, math')]")
    message = show(page, {"content": begun + "\nx = 1", "finish_reason": None}, isLive=True)
    same = "window.before.map((element) => element.isConnected)"
    assert page.evaluate(same) == [True, True, True, True, False], "the last one is another"
    expect(message.locator(".hljs-keyword")).to_have_text(["const"])
    message = show(page, {"content": begun + "\nx = 1", "finish_reason": "length"})
    expect(message.locator(".hljs-keyword")).to_have_text(["const", "import"])
    assert page.evaluate(same) == [True, True, True, True, False]
    show(page, {"content": "Other."})
    expect(message.locator(".formatted")).to_have_text("Other.")


@pytest.mark.slow  # browser tests have ten minutes
def test_without_the_later_parts_everything_can_be_read(patterns: Page, problems) -> None:
    problems.allow("Failed to load resource|ERR_FAILED|dynamically imported")
    page = patterns
    page.add_init_script("window.pwned = () => {};")
    page.route("**/dist/formulas-*.js", lambda route: route.abort())
    page.route("**/dist/code-colours-*.js", lambda route: route.abort())
    page.reload()
    message = show(page, {"content": "$x^2$\n\n```py\nimport os\n```"})
    expect(message.locator(".math")).to_have_class("math failed")
    expect(message.locator(".math")).to_have_text("$x^2$")
    expect(message.locator("pre")).to_have_text("import os")


def test_thoughts_tools_and_the_foot(patterns: Page) -> None:
    page = patterns
    message = show(page, {"reasoning": "Hm", "finish_reason": None}, isLive=True)
    expect(message.locator("summary")).to_have_text("Thinking…")
    expect(message.locator("details")).not_to_have_attribute("open", "")
    call = {"id": "a", "name": "calc", "arguments": '{"term": "57 - 44"}'}
    message = show(page, {"reasoning": "Hm, numbers", "tool_calls": [call], "finish_reason": "tool_calls"},
    isRunning=True)
    expect(message.locator("summary")).to_have_text("Thoughts")
    expect(message.get_by_role("group", name="Call of calc")).to_contain_text('term: "57 - 44"is being called…')
    long = {"id": "b", "name": "text_length", "arguments": json.dumps({"text": "word " * 100})}
    results = [{"role": "tool", "tool_call_id": "a", "name": "calc", "content": '{"error": "No."}', "is_error": True}]
    message = show(page, {"tool_calls": [call, long], "usage": {"completion_tokens": 7},
                          "speed": {"tokens_per_s": 12.4, "first_token_s": 0.31}, "finish_reason": "length"},
                          results=results)
    expect(message.get_by_role("group", name="Call of calc").locator("pre")).to_have_text("No.")
    expect(message.locator("tool-call.is-error")).to_contain_text("failed")
    expect(message.get_by_role("group", name="Call of text_length")).to_contain_text("was not run")
    expect(message.locator("details.tool-part pre")).to_be_hidden()
    expect(message.locator(".message-foot")).to_contain_text(
        "7 tokens · 12 tokens/s · first after 0.31 s · cut off at the limit")


def test_tokens(patterns: Page) -> None:
    page = patterns
    top = [{"token": " mat", "logprob": -0.1, "bytes": None}, {"token": " piano", "logprob": -4.6, "bytes": None}]
    tokens = [{"token": " piano", "logprob": -4.6, "bytes": None, "top_logprobs": top},
              {"token": "\ufffd", "logprob": -0.7, "bytes": [0xC3], "top_logprobs": []},
              {"token": "\ufffd", "logprob": 0, "bytes": [0xA9], "top_logprobs": []},
              {"token": "\n", "logprob": -0.01, "bytes": [10], "top_logprobs": []},
              {"token": "<|im_end|>", "logprob": None, "bytes": None, "top_logprobs": []}]
    message = show(page, {"content": " pianoé\n"}, isLast=True)
    toggle = message.get_by_role("button", name="Show this answer as tokens")
    toggle.click()
    expect(message).to_contain_text("Let it answer again to see its tokens.")
    assert "studio_tokens=1" in page.evaluate("document.cookie")
    message.get_by_label("Show every answer as tokens").uncheck()
    assert "studio_tokens=0" in page.evaluate("document.cookie")
    message = show(page, {"content": " pianoé\n", "tokens": tokens}, isLast=True)
    expect(message.locator(".formatted")).to_be_visible()
    expect(message.locator("token-view")).to_have_count(0)

    page.mouse.move(5, 5)  # nothing that comes is under it
    toggle.focus()
    page.keyboard.press("Enter")
    expect(toggle).to_be_focused()
    expect(toggle).to_have_attribute("aria-pressed", "true")
    expect(message.locator(".formatted")).to_be_hidden()
    options = message.get_by_role("option")
    expect(options).to_have_text(["·piano", "é", "↵", "<|im_end|>"])
    expect(message).to_contain_text("5 tokens · perplexity")
    assert options.first.get_attribute("aria-label") == "piano, 1.0 %, choice 2"
    assert [o.get_attribute("class") for o in options.all()] == ["chance chance-0", "chance chance-4",
    "chance chance-7", "chance"]
    card = message.locator(".chance-card")
    expect(card).to_be_hidden()
    options.nth(0).hover()
    expect(card.locator("li")).to_have_text(["·mat90 %", "·piano (chosen)1.0 %"])
    box, frame = card.bounding_box(), message.bounding_box()
    assert box and frame and box["x"] >= frame["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
    page.mouse.move(5, 5)
    expect(card).to_be_hidden()

    options.nth(0).click()
    page.keyboard.press("ArrowRight")
    expect(options.nth(1)).to_be_focused()
    expect(card).to_contain_text("50 %")
    assert options.nth(1).get_attribute("aria-describedby") == card.get_attribute("id")
    page.keyboard.press("End")
    expect(options.nth(3)).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(options.nth(0)).to_be_focused()
    assert not axe(page), "\n".join(axe(page))
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    expect(message.locator('.chances [tabindex="0"]')).to_have_count(1)
    page.emulate_media(color_scheme="dark")
    assert not axe(page, ["color-contrast"]), "\n".join(axe(page, ["color-contrast"]))

    message.get_by_label("Show every answer as tokens").check()
    message = show(page, {"content": " pianoé", "tokens": tokens[:2], "finish_reason": None}, isLive=True)
    expect(options).to_have_text(["·piano", "‹C3›"])
    message = show(page, {"content": " pianoé", "tokens": tokens[:3], "finish_reason": None}, isLive=True)
    expect(options).to_have_text(["·piano", "é"])
    show(page, {"content": " pianoé", "tokens": tokens[:3]})
    expect(message.locator(".formatted")).to_be_hidden()
    expect(message.locator(".formatted")).to_have_text("pianoé")  # the thread reads finished answers out from there


@pytest.mark.slow  # it looks at the clock
def test_many_tokens_hold_up_nobody(patterns: Page) -> None:
    """2,000 tokens at once, and as they come: no step of it takes longer than a blink."""
    slowest = patterns.evaluate(MEASURE)
    # measured on two busy cores: 57 ms at once, 8 ms a step, 10 ms a move
    assert slowest["atOnce"] < 1000 and slowest["step"] < 250 and slowest["move"] < 250, slowest


def test_on_a_phone(patterns: Page) -> None:
    page = patterns
    page.set_viewport_size({"width": 390, "height": 800})
    long = "$$" + "+".join(["\\frac{a}{b}"] * 60) + "$$\n\n```py\n" + "x" * 300 + "\n```"
    show(page, {"content": long, "tool_calls": [{"id": "a", "name": "n" * 100, "arguments": "x" * 300}]})
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
