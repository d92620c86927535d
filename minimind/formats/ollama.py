"""An ollama ``Modelfile`` for a GGUF file: the chat template in Go's words, where to stop, how to sample.

The template is not translated line by line: a few conversations are rendered with it, and what stands before and behind
each message becomes the Go template. Where those texts do not explain each other, the template is of another build, and
the Modelfile leaves it out: ollama then takes the one in the file, if it knows it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from minimind.chat_format import render
from minimind.errors import DataError
from minimind.tokenizer import Tokenizer

#: as the studio's chat begins (app.core.inference.Sampling)
TEMPERATURE, TOP_P = 0.7, 0.92
#: ollama reserves memory for the whole context
MOST_CONTEXT = 8192
S, U, V, A, R, T = (f"probe-{letter}-text" for letter in "suvart")
_TOOLS = [{"type": "function", "function": {"name": f"probe_{i}"}} for i in (1, 2)]
_FIRST, _SECOND = (json.dumps(tool) for tool in _TOOLS)


class _Strange(Exception):
    """The template does not build a conversation of separate turns."""


def modelfile(file_name: str, tokenizer: Tokenizer, context: int) -> str:
    """``file_name``: of the GGUF file beside it. ``context``: tokens that the model can look at."""
    lines = [f"FROM ./{file_name}"]
    template = go_template(tokenizer)
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    stops = dict.fromkeys((tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token))
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines += [f"PARAMETER temperature {TEMPERATURE}", f"PARAMETER top_p {TOP_P}", "PARAMETER top_k 0",
              "PARAMETER min_p 0", "PARAMETER repeat_penalty 1", f"PARAMETER num_ctx {min(context, MOST_CONTEXT)}"]
    return "\n".join(lines) + "\n"


def go_template(tokenizer: Tokenizer) -> str | None:
    """The chat template for ollama; None where it cannot be told."""
    try:
        turns = _turns(tokenizer)
        tools = _tools(tokenizer, turns)
    except (_Strange, DataError):
        return None
    ends, follows = ("", "") if tools is None else _around_results(tools)
    template = f'{_system(turns, tools)}{{{{ $before := "" }}}}{{{{ range $i, $_ := .Messages }}}}{follows}'
    template += f'{{{{ if eq .Role "user" }}}}{turns.user[0]}{{{{ .Content }}}}{turns.user[1]}'
    template += f'{{{{ else if eq .Role "assistant" }}}}{_assistant(turns, tools)}'
    if tools is not None:
        template += '{{ else if eq .Role "tool" }}{{ .Content }}'
    thinks = turns.prompt if turns.thinking_prompt is None else (
        f"{{{{ if and .IsThinkSet .Think }}}}{turns.thinking_prompt}{{{{ else }}}}{turns.prompt}{{{{ end }}}}")
    template += f"{{{{ end }}}}{{{{ $before = .Role }}}}{{{{ end }}}}{ends}{thinks}"
    return None if '"""' in template or any(text.count("{{") for text in turns.texts) else template


@dataclass(frozen=True)
class _Turns:
    """What stands before and behind the text of each role."""

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]  # a turn without reasoning
    thinking: tuple[str, str] | None  # before and behind its reasoning, where a turn shows it
    prompt: str  # before an answer
    thinking_prompt: str | None
    no_system: str  # what stands there where nobody says anything of the kind

    @property
    def texts(self) -> tuple[str, ...]:
        return (*self.system, *self.user, *self.assistant, *(self.thinking or ()), self.prompt,
                self.thinking_prompt or "", self.no_system)


@dataclass(frozen=True)
class _Tools:
    """``before`` the first tool, ``between`` two, ``behind`` the last; ``gap`` between a system text and the first;
    ``call`` before the name, before the arguments, behind them; ``next_call`` between two calls. ``result`` before and
    behind what a tool has said, ``next_result`` between two of them."""

    before: str
    between: str
    behind: str
    gap: str
    call: tuple[str, str, str]
    next_call: str
    after_text: str
    result: tuple[str, str]
    next_result: str


def _cut(text: str, *marks: str) -> list[str]:
    """``text`` at each of the marks, which stand in it once and in this order."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise _Strange
        pieces.append(before)
    return [*pieces, text]


def _without(text: str, start: str = "", end: str = "") -> str:
    if not (text.startswith(start) and text.endswith(end) and len(text) >= len(start) + len(end)):
        raise _Strange
    return text[len(start):len(text) - len(end)]


def _turns(tokenizer: Tokenizer) -> _Turns:
    user, answer = {"role": "user", "content": U}, {"role": "assistant", "content": A}
    alone = render(tokenizer, [user])
    lead, user_end = _cut(alone, U)
    _, between, answer_end = _cut(render(tokenizer, [user, answer]), U, A)
    _, _, again, _ = _cut(render(tokenizer, [user, answer, {"role": "user", "content": V}]), U, A, V)
    user_start = _without(again, start=answer_end)
    system_start, behind, _ = _cut(render(tokenizer, [{"role": "system", "content": S}, user]), S, U)
    assistant = (_without(between, start=user_end), answer_end)
    thinking = None
    thought = render(tokenizer, [user, {**answer, "reasoning_content": R}])
    if R in thought:
        _, before, close, _ = _cut(thought, U, R, A)
        thinking = (_without(before, start=user_end), close)
    prompt, open_prompt = (_without(render(tokenizer, [user], add_generation_prompt=True, open_thinking=opened), alone)
                           for opened in (False, True))
    return _Turns((system_start, _without(behind, end=user_start)), (user_start, user_end), assistant, thinking, prompt,
                  open_prompt if open_prompt != prompt else None, _without(lead, end=user_start))


def _tools(tokenizer: Tokenizer, turns: _Turns) -> _Tools | None:
    """None where the template has no place for tools."""
    user = {"role": "user", "content": U}
    shown = render(tokenizer, [user], tools=_TOOLS)
    if _FIRST not in shown:
        return None
    before, between, behind, _ = _cut(shown, _FIRST, _SECOND, U)
    _, gap, *_ = _cut(render(tokenizer, [{"role": "system", "content": S}, user], tools=_TOOLS), S, _FIRST, U)
    calls = [{"name": "probe_1", "arguments": {"a": 1}}, {"name": "probe_2", "arguments": {"b": 2}}]
    said = render(tokenizer, [user, {"role": "assistant", "content": A, "tool_calls": calls}])
    _, _, start, middle, next_call, middle_again, end = _cut(said, U, A, '"probe_1"', '{"a": 1}', '"probe_2"',
                                                            '{"b": 2}')
    silent = render(tokenizer, [user, {"role": "assistant", "content": "", "tool_calls": calls[:1]}])
    _, first, _ = _cut(silent, U, '"probe_1"')
    call_start = _without(first, start=turns.user[1] + turns.assistant[0])
    call_end = _without(end, end=turns.assistant[1])
    if middle != middle_again:
        raise _Strange
    results = render(tokenizer, [user, {"role": "tool", "content": T}, {"role": "tool", "content": V}])
    _, result_start, next_result, result_end = _cut(results, U, T, V)
    return _Tools(before, between, _without(behind, end=turns.user[0]), gap, (call_start, middle, call_end),
                  _without(_without(next_call, start=call_end), end=call_start), _without(start, end=call_start),
                  (_without(result_start, start=turns.user[1]), result_end), next_result)


def _around_results(tools: _Tools) -> tuple[str, str]:
    """What closes the last result behind all messages, and what stands before each message: results in a row may share
    a turn, so that only what follows says how one ends."""
    start, end = tools.result
    closes = f'{{{{ if eq $before "tool" }}}}{end}{{{{ end }}}}'
    return closes, (f'{{{{ if eq $before "tool" }}}}{{{{ if eq .Role "tool" }}}}{tools.next_result}{{{{ else }}}}{end}'
                    f'{{{{ end }}}}{{{{ else if eq .Role "tool" }}}}{start}{{{{ end }}}}')


def _system(turns: _Turns, tools: _Tools | None) -> str:
    system = f"{turns.system[0]}{{{{ .System }}}}{turns.system[1]}"
    otherwise = f"{{{{ else }}}}{turns.no_system}" if turns.no_system else ""
    if tools is None:
        return f"{{{{ if .System }}}}{system}{otherwise}{{{{ end }}}}"
    listed = (f"{{{{ range $i, $_ := .Tools }}}}{{{{ if $i }}}}{tools.between}{{{{ end }}}}{{{{ . }}}}{{{{ end }}}}"
              f"{tools.behind}")
    both = f"{{{{ if .System }}}}{turns.system[0]}{{{{ .System }}}}{tools.gap}{{{{ else }}}}{tools.before}{{{{ end }}}}"
    return (f"{{{{ if .Tools }}}}{both}{listed}{{{{ else if .System }}}}{system}{otherwise}{{{{ end }}}}")


def _assistant(turns: _Turns, tools: _Tools | None) -> str:
    start = turns.assistant[0] if turns.thinking is None else (
        f"{{{{ if .Thinking }}}}{turns.thinking[0]}{{{{ .Thinking }}}}{turns.thinking[1]}{{{{ else }}}}"
        f"{turns.assistant[0]}{{{{ end }}}}")
    calls = ""
    if tools is not None:
        calls = (f"{{{{ if and .Content .ToolCalls }}}}{tools.after_text}{{{{ end }}}}"
                 f"{{{{ range $j, $_ := .ToolCalls }}}}{{{{ if $j }}}}{tools.next_call}{{{{ end }}}}{tools.call[0]}"
                 f'"{{{{ .Function.Name }}}}"{tools.call[1]}{{{{ .Function.Arguments }}}}{tools.call[2]}{{{{ end }}}}')
    return f"{start}{{{{ .Content }}}}{calls}{turns.assistant[1]}"
