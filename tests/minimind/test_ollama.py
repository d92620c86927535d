"""ollama's Modelfile: its template writes conversations as ours does, and it stops where ours stops."""

from __future__ import annotations

import itertools

import pytest

from minimind.chat_format import render
from minimind.formats.ollama import MOST_CONTEXT, go_template, modelfile
from minimind.tokenizer import Tokenizer
from tests.minimind.go_template import execute

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},
         {"type": "function", "function": {"name": "look", "parameters": {}}}]
CALL = {"name": "add", "arguments": {"a": 1, "b": [2]}}
#: MiniMind 3's: an empty think block in every turn without reasoning
THINKING = """\
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
        {{- message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}{{- '' if open_thinking else '\\n</think>\\n\\n' }}
{%- endif %}"""


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train(["The lamp in the harbour is green."] * 5, 320)


def conversation(turns: str) -> list[dict]:
    """``s`` system, ``u`` user, ``a`` answer, ``r`` answer with reasoning, ``c`` a call, ``C`` text and two calls,
    ``t`` what a tool said."""
    made = {"s": {"role": "system", "content": "Be brief."}, "u": {"role": "user", "content": "Who?\nAnd \"why\"?"},
            "a": {"role": "assistant", "content": "Ana."},
            "r": {"role": "assistant", "content": "Ana.", "reasoning_content": "Who was it?"},
            "c": {"role": "assistant", "content": "", "tool_calls": [CALL]},
            "C": {"role": "assistant", "content": "I count.", "tool_calls": [CALL, {"name": "look", "arguments": {}}]},
            "t": {"role": "tool", "content": "3"}}
    return [made[letter] for letter in turns]


def as_ollama(messages: list[dict], tools: list[dict] | None, thinks: bool) -> dict:
    """What ollama gives its template."""
    return {"System": "\n\n".join(m["content"] for m in messages if m["role"] == "system"), "Tools": tools,
            "Think": thinks, "IsThinkSet": thinks, "Messages": [
                {"Role": m["role"], "Content": m["content"], "Thinking": m.get("reasoning_content", ""),
                 "ToolCalls": [{"Function": {"Name": call["name"], "Arguments": call["arguments"]}}
                               for call in m.get("tool_calls", ())]} for m in messages]}


@pytest.mark.parametrize("turns", ["u", "su", "uau", "suauau", "uru", "suru", "ucu", "suctau", "uCttau", "uctau",
                                   "uCtt", "uctut"])
def test_the_template_writes_what_ours_writes(turns: str, words: Tokenizer) -> None:
    template = go_template(words)
    for tools, thinks in itertools.product((None, TOOLS[:1], TOOLS), (False, True)):
        messages = conversation(turns)
        ours = render(words, messages, tools=tools, add_generation_prompt=True, open_thinking=thinks)
        assert execute(template, as_ollama(messages, tools, thinks)) == ours, (tools, thinks)


def with_template(words: Tokenizer, template: str, tmp_path) -> Tokenizer:
    words.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    return Tokenizer.load(tmp_path)


@pytest.mark.parametrize("turns", ["u", "su", "uau", "surau"])
def test_a_template_with_an_empty_think_block(turns: str, words: Tokenizer, tmp_path) -> None:
    other = with_template(words, THINKING, tmp_path)
    for thinks in (False, True):
        messages = conversation(turns)
        ours = render(other, messages, add_generation_prompt=True, open_thinking=thinks)
        assert execute(go_template(other), as_ollama(messages, None, thinks)) == ours


@pytest.mark.parametrize("template", [
    "{% for m in messages %}{{ m.content | upper }}{% endfor %}",  # the text is changed
    "{% for m in messages | reverse %}{{ m.role }}: {{ m.content }}\n{% endfor %}",  # its place too
    "{% for m in messages %}{{ '{{ .System }}' }}{{ m.content }}\n{% endfor %}",  # Go would take it for its own
    "{% for m in messages %}\"\"\"{{ m.role }}: {{ m.content }}\n{% endfor %}",  # the end of a Modelfile's text
    "{{ 1 / 0 }}"])
def test_a_template_of_another_build_is_left_out(template: str, words: Tokenizer, tmp_path) -> None:
    other = with_template(words, template, tmp_path)
    assert go_template(other) is None
    assert "TEMPLATE" not in modelfile("m.gguf", other, 512) and "FROM ./m.gguf" in modelfile("m.gguf", other, 512)


def test_the_file_stops_samples_and_reserves_as_the_studio_does(words: Tokenizer) -> None:
    lines = modelfile("my-model.gguf", words, 512).splitlines()
    assert lines[0] == "FROM ./my-model.gguf"
    said = [line.split(" ", 2)[1:] for line in lines if line.startswith("PARAMETER ")]
    assert [value for name, value in said if name == "stop"] == ['"<|im_end|>"', '"<|im_start|>"', '"<|endoftext|>"']
    assert dict(said) | {"stop": ""} == {"stop": "", "temperature": "0.7", "top_p": "0.92", "top_k": "0", "min_p": "0",
                                         "repeat_penalty": "1", "num_ctx": "512"}
    assert f"PARAMETER num_ctx {MOST_CONTEXT}" in modelfile("m.gguf", words, 1 << 20)
