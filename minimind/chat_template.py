"""Our chat template, and running anybody's template without trusting it.

A template comes with a tokenizer, so it is a program from outside. It runs in Jinja's immutable sandbox (no
attribute of Python's machinery, no change of our objects) and, since a sandbox alone does not stop
``{% for %}`` in ``{% for %}`` or a string that doubles itself, with a budget of loop rounds, calls and processor
time and a bound on the size of every value it builds. A list counts with everything in it: one text of 8 MB put into
it a thousand times costs nothing until somebody prints it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, MappingView, Sized
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from minimind.errors import DataError

MAX_TEMPLATE_CHARS = 65_536
MAX_VALUE_CHARS = 8 << 20  # of one text that the template builds
MAX_TOTAL_CHARS = 128 << 20  # of all of them in one rendering
MAX_OPERATIONS = 500_000  # loop rounds, calls and outputs of one rendering
MAX_SECONDS = 5.0  # of the thread's processor time, so that a machine that sleeps refuses nothing
ENTRY_CHARS = 10  # what an entry of a list or dict counts for

# The format is MiniMind 3's: turns between <|im_start|>ROLE and <|im_end|>, reasoning in <think>, calls in
# <tool_call>, results in <tool_response> inside a user turn. Two things differ on purpose. Nothing explains how a
# tool is called: a model learns that from the calls it sees, and the explanation would be a third of a tiny model's
# window. And an assistant turn without reasoning has no empty think block, which would cost six tokens a turn. So the
# prompt for an answer ends with "<|im_start|>assistant\n", exactly as the turns it was trained on begin; the prompt
# for an answer with reasoning adds "<think>\n", exactly as the turns with reasoning do.
DEFAULT_TEMPLATE = """\
{%- set offset = 0 %}
{%- if tools or messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {%- set offset = 1 %}
        {{- messages[0].content }}
        {{- '\\n\\n' if tools and messages[0].content }}
    {%- endif %}
    {%- if tools %}
        {{- '# Tools\\n<tools>\\n' }}
        {%- for tool in tools %}
            {{- tool | tojson }}{{ '\\n' }}
        {%- endfor %}
        {{- '</tools>' }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages[offset:] %}
    {%- set content = message.content or '' %}
    {%- if message.role == 'assistant' %}
        {%- set reasoning = message.reasoning_content or '' %}
        {%- if not reasoning and '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1] %}
        {%- endif %}
        {%- set reasoning = reasoning.strip('\\n') %}
        {%- set content = content.lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if reasoning %}
            {{- '<think>\\n' + reasoning + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '\\n' if content or not loop.first }}
            {{- '<tool_call>\\n{"name": ' + (call.name | tojson) + ', "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {{- '<think>\\n' if open_thinking is defined and open_thinking is true }}
{%- endif %}
"""

#: methods of text that cannot make a long value out of a short one
SAFE_METHODS = frozenset({
    "split", "rsplit", "splitlines", "strip", "lstrip", "rstrip", "startswith", "endswith", "lower", "upper", "title",
    "capitalize", "find", "rfind", "index", "count", "isdigit", "isspace", "removeprefix", "removesuffix", "get",
    "items", "keys", "values",
})
#: likewise, filters
SAFE_FILTERS = frozenset({
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select", "selectattr",
    "sort", "string", "title", "trim", "unique", "upper",
})
#: those that make a text of whatever they are given
TEXT_FILTERS = frozenset({"capitalize", "e", "escape", "lower", "safe", "string", "title", "trim", "upper"})


class TemplateLimit(TemplateError):
    """The template wants more than it may have."""


def _weight(value: Any) -> int:
    """Characters of ``value`` and of everything in it, as often as it is in it; raises ``TemplateLimit`` beyond
    the bound of one value."""
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, dict):
            total += ENTRY_CHARS * len(item)
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | MappingView):
            total += ENTRY_CHARS * len(item)
            waiting += item if total <= MAX_VALUE_CHARS else []
        elif isinstance(item, Namespace):
            total += ENTRY_CHARS
            waiting.append(item._Namespace__attrs)
        if total > MAX_VALUE_CHARS:
            raise TemplateLimit("it builds a text that is too long")
    return total


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """JSON as Hugging Face's templates expect it, with the options of theirs: no HTML escapes, letters as they are
    (also where ``ensure_ascii`` asks for escapes: what people write is hidden behind marks that must come through)."""
    if separators is not None and (len(separators) != 2 or sum(map(len, separators)) > 8):
        raise TemplateLimit("it separates the parts of JSON by long texts")
    return json.dumps(value, ensure_ascii=False, indent=None if indent is None else min(int(indent), 8),
                      separators=separators, sort_keys=bool(sort_keys))


def _raise(message: str) -> None:
    raise TemplateError(message)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with a budget for each rendering, kept per thread."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self._spent = threading.local()
        self.filters = {name: self._charged(f, as_text=name in TEXT_FILTERS) for name, f in self.filters.items()
                        if name in SAFE_FILTERS}
        self.filters |= {"tojson": self._charged(_tojson, as_text=True), "join": self.joined, "replace": self.replaced,
                         "_rounds": self.rounds, "_sized": self.sized, "_built": self.built}
        self.tests = {name: self._charged(test) for name, test in self.tests.items()}
        self.globals = {name: g for name, g in self.globals.items() if name in ("range", "namespace", "dict")}
        self.globals["raise_exception"] = _raise

    def reset(self) -> None:
        self._spent.operations = self._spent.chars = 0
        self._spent.until = time.thread_time() + MAX_SECONDS

    def spend(self, chars: int = 0) -> None:
        """Pay for one operation that makes a value of ``chars`` characters (or list entries)."""
        self._spent.operations += 1
        self._spent.chars += chars
        if self._spent.operations > MAX_OPERATIONS or time.thread_time() > self._spent.until:
            raise TemplateLimit("it runs in circles")
        if chars > MAX_VALUE_CHARS or self._spent.chars > MAX_TOTAL_CHARS:
            raise TemplateLimit("it builds a text that is too long")

    def rounds(self, iterable: Iterable) -> Iterator:
        for item in iterable:
            self.spend()
            yield item

    def sized(self, value: Any) -> Any:
        """``value``, which is put out as text: of a list that is the text of everything in it."""
        self.spend(_weight(value))
        return value

    def built(self, value: Any) -> Any:
        """``value``, which is new: a list or dict is bounded with all that is in it and paid for by its entries."""
        if isinstance(value, list | tuple | dict):
            _weight(value)
            self.spend(ENTRY_CHARS * len(value))
        else:
            self.spend(len(value) if isinstance(value, str) else 0)
        return value

    def _charged(self, function: Callable, *, as_text: bool = False) -> Callable:
        """``function``, paying for the size of what it is given: no safe filter returns more than that, but for
        lists, which are bounded like every new one."""
        @wraps(function)  # keeps Jinja's marks (which of its contexts the filter wants)
        def filter_(*values: Any, **options: Any) -> Any:
            if as_text:
                self.spend(sum(_weight(v) for v in values))
            else:
                self.spend(sum(len(v) for v in values if isinstance(v, str | list | tuple | dict)))
            result = function(*values, **options)
            return self.built(result) if isinstance(result, list | tuple | dict) else result
        return filter_

    def joined(self, parts: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
        if attribute is not None:
            parts = (part.get(attribute, "") for part in parts)
        texts = []
        for part in parts:
            self.spend(_weight(part) + len(separator))
            texts.append(str(part))
        self.spend(sum(map(len, texts)))
        return separator.join(texts)

    def replaced(self, text: str, old: str, new: str, count: int = -1) -> str:
        self.spend(_weight([text, old, new]))
        text, old, new = str(text), str(old), str(new)
        self.spend(len(text) + text.count(old) * len(new))
        return text.replace(old, new, count)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Jinja's parser, then the price tags: on loop rounds, on what is put out, on slices, on ``a ~ b``."""
        tree = super()._parse(source, name, filename)
        for parent in list(tree.find_all(nodes.Node)):
            if isinstance(parent, nodes.For):
                parent.iter = _filtered(parent.iter, "_rounds")
            if isinstance(parent, nodes.Output):
                parent.nodes = [_filtered(_as_expression(n), "_sized") for n in parent.nodes]
            for field, value in list(parent.iter_fields()):
                if isinstance(value, list):
                    value[:] = [_bounded(v) for v in value]
                else:
                    setattr(parent, field, _bounded(value))
        tree.set_environment(self)
        return tree

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str | bytes | dict | list | tuple | int):
            if obj.__name__ == "replace":
                return self.replaced(owner, *args, **kwargs)
            if obj.__name__ == "join":
                return self.joined(*args, separator=owner)
            if obj.__name__ not in SAFE_METHODS:
                raise TemplateLimit(f"it calls .{obj.__name__}(), which chat templates do not need")
        if getattr(obj, "__name__", "") in ("format", "format_map"):  # Jinja wraps these: they have no __self__
            raise TemplateLimit("it calls .format(), which chat templates do not need")
        self.spend(len(owner) if isinstance(owner, Sized) else 0)
        result = super().call(context, obj, *args, **kwargs)
        return self.built(result) if isinstance(result, list | tuple | dict) else result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(v) for v in (left, right) if isinstance(v, str | bytes | list | tuple)]
        numbers = [abs(v) for v in (left, right) if isinstance(v, int | float)]
        if operator == "**" or (operator == "%" and sizes) or max(numbers, default=0) > 1e15:
            raise TemplateLimit(f"it uses the operator {operator} in a way that chat templates do not need")
        self.spend(sum(sizes) if operator == "+" else sum(sizes) * int(max(numbers, default=0)))
        result = super().call_binop(context, operator, left, right)
        return self.built(result) if isinstance(result, list | tuple) else result


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _as_expression(node: nodes.Expr) -> nodes.Expr:
    return nodes.Const(node.data, lineno=node.lineno) if isinstance(node, nodes.TemplateData) else node


def _bounded(node: Any) -> Any:
    """The node with a bound, where it is one that copies, collects or compares values without a call."""
    if isinstance(node, nodes.Concat):
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "join")
    collects = isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load")
    slices = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    if collects or slices or isinstance(node, nodes.Compare):
        return _filtered(node, "_built")
    return node


@lru_cache(maxsize=16)
def _compiled(source: str) -> tuple[_Environment, Template]:
    environment = _Environment()
    return environment, environment.from_string(source)


def render_template(source: str, **values: Any) -> str:
    """The text that ``source`` makes of ``values``.

    Raises ``DataError`` in one sentence for whatever a template can do wrong.
    """
    try:
        environment, template = _compiled(source)
        environment.reset()
        return template.render(**values)
    except Exception as error:  # a template is a program: it can raise anything
        reason = "it calls itself without end" if isinstance(error, RecursionError) else str(error).rstrip(".")
        raise DataError(
            f"The chat template cannot render this conversation: {reason or type(error).__name__}.",
            field="chat_template", hint="Check the tokenizer's chat_template and the messages.") from error
