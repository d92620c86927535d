"""Answers of a given form: before each token, which ones can still lead to it.

A grammar is followed byte by byte over the vocabulary's tokens by llguidance (github.com/guidance-ai/llguidance), which
also makes grammars of JSON schemas. JSON comes without free whitespace, so that an untrained model cannot write blanks
for ever; calls of tools come as the chat templates write them.
"""

from __future__ import annotations

import json
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimind.sampling import GenerationError
from minimind.tokenizer import Tokenizer

#: characters of a schema (or of all tools), and levels of it
MAX_SCHEMA_CHARS, MAX_DEPTH = 65_536, 64
#: llguidance has no limit for ``multipleOf``: 999,999 takes it 10 s and 580 MB, a least common multiple of two far more
MAX_MULTIPLE, MAX_MULTIPLES = 1000, 50
COMPACT = {"item_separator": ",", "key_separator": ":", "whitespace_flexible": False}
#: as ``tojson`` of a chat template
SPACED = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
#: what a grammar may cost: far more than real schemas need
LIMITS = {"max_items_in_row": 2000, "initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000,
          "step_max_items": 20_000, "max_lexer_states": 20_000, "max_grammar_size": 100_000,
          "precompute_large_lexemes": False, "verbose_errors": False}
CALL_OPENS, CALL_CLOSES = "<tool_call>", "</tool_call>"


class ConstraintError(GenerationError):
    """A schema or a tool of which no grammar can be made; or a grammar that led nowhere."""


class Grammar:
    """A compiled constraint for one vocabulary. Make a ``matcher`` for each answer."""

    def __init__(self, words: Any, source: str, vocab_size: int, field: str):
        self._words, self._source, self._vocab_size, self._field = words, source, vocab_size, field

    @classmethod
    def compile(cls, tokenizer: Tokenizer, vocab_size: int, constraint: dict[str, Any]) -> Grammar:
        """``constraint``: ``kind`` (json_object, json_schema with ``schema``, or tools with ``tools`` and ``parallel``,
        as ``app.core.inference.Constraint``); ``vocab_size``: of the logits. Raises ``ConstraintError``.

        Of JSON Schema llguidance knows nearly everything; what it does not is refused by name.
        """
        library = _library()
        field = "tools" if constraint["kind"] == "tools" else "response_format"
        if constraint["kind"] == "tools":
            source = _lark_of_tools(tokenizer, constraint["tools"], constraint.get("parallel", False))
        else:
            schema = {"type": "object"} if constraint["kind"] == "json_object" else constraint.get("schema")
            text = json.dumps(_checked(schema, field))
            try:
                source = library.LLMatcher.grammar_from_json_schema(text, overrides=COMPACT)
            except ValueError as error:
                raise ConstraintError(f"No answer can be held to this: {_one_line(str(error))}.", field=field,
                                      hint="Use a simpler schema.") from None
        words = _words_of(tokenizer, vocab_size)
        problem = library.LLMatcher.validate_grammar(source, words, limits=_limits())
        if problem and not problem.startswith("WARNING"):
            raise ConstraintError(f"No answer can be held to this: {_one_line(problem)}.", field=field,
                                  hint="Use a simpler schema.")
        made = cls(words, source, vocab_size, field)
        made.matcher().mask()  # some say only now that they lead nowhere
        return made

    def matcher(self) -> Matcher:
        return Matcher(_library().LLMatcher(self._words, self._source, log_level=0, limits=_limits()),
                       self._vocab_size, self._field)


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, state: Any, vocab_size: int, field: str):
        self._state, self._vocab_size, self._field = state, vocab_size, field

    def mask(self) -> Tensor:
        """[V] bool: the tokens that may come next; the end token where the text may end. Raises ``ConstraintError``
        where the grammar became too large on the way."""
        bits = np.frombuffer(self._state.compute_bitmask(), dtype=np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool))

    def accept(self, token_id: int) -> None:
        """Go on behind ``token_id``, one of those that the mask allowed."""
        if not self._state.is_stopped():
            self._state.consume_token(token_id)
            self._check()

    @property
    def is_finished(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._state.is_stopped())

    def _check(self) -> None:
        if self._state.is_error():
            raise ConstraintError(f"The answer cannot be held to its form any longer: "
                                  f"{_one_line(self._state.get_error())}.", field=self._field,
                                  hint="Use a simpler schema.")


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConstraintError("Answers of a given form need the package llguidance, which is not installed.",
                              field="response_format", hint="pip install llguidance") from None
    return llguidance


def _limits() -> Any:
    return _library().LLParserLimits(**LIMITS)


def _one_line(problem: str) -> str:
    return " ".join(problem.split())[:300].rstrip(".")


def _checked(schema: Any, field: str, name: str = "The schema") -> dict[str, Any]:
    """``schema`` without what speaks to llguidance itself. Raises ``ConstraintError`` for what is no schema, is very
    large or would cost too much."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ConstraintError(f"{name} is not a JSON object.", field=field, hint='Send {"type": "object", ...}.')
    if _depth(schema) > MAX_DEPTH:
        raise ConstraintError(f"{name} is nested more than {MAX_DEPTH} levels deep.", field=field,
                              hint="Use a simpler schema.")
    try:
        size = len(json.dumps(schema, allow_nan=False, ensure_ascii=False).encode())
    except ValueError:
        raise ConstraintError(f"{name} holds a number that is not finite, or half of a surrogate pair.", field=field,
                              hint="Send plain JSON.") from None
    if size > MAX_SCHEMA_CHARS:
        raise ConstraintError(f"{name} has more than {MAX_SCHEMA_CHARS:,} bytes.", field=field,
                              hint="Use a smaller schema.")
    _check_multiples(schema, field, name)
    return {key: value for key, value in schema.items() if key != "x-guidance"}


def _check_multiples(schema: dict[str, Any], field: str, name: str) -> None:
    found: list[Any] = []
    level: list[tuple[Any, bool]] = [(schema, False)]  # and whether several schemas hold there at once
    while level:
        following = []
        for one, is_joined in level:
            if isinstance(one, dict):
                if "multipleOf" in one and type(one["multipleOf"]) in (int, float):
                    found.append(one["multipleOf"])
                    if is_joined or "allOf" in one or "$ref" in one:
                        raise ConstraintError(f"{name} has multipleOf in allOf or beside $ref.", field=field,
                                              hint="Leave multipleOf out.")
                following += [(value, is_joined or key == "allOf") for key, value in one.items()]
            elif isinstance(one, list):
                following += [(value, is_joined) for value in one]
        level = following
    if len(found) > MAX_MULTIPLES or any(_coefficient(value) > MAX_MULTIPLE for value in found):
        raise ConstraintError(f"{name} has a multipleOf with more than three digits, or more than {MAX_MULTIPLES} of "
                              "them.", field=field, hint="Leave multipleOf out.")


def _coefficient(value: float) -> int:
    """The digits of a number without its power of ten: 15 of 1.5, 150 and 0.0015."""
    digits = repr(abs(value)).partition("e")[0].replace(".", "").strip("0")
    return int(digits or 0)


def _depth(value: Any) -> int:
    """Levels of lists and objects, ``MAX_DEPTH`` + 1 for more than that."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [item for one in level if isinstance(one, (dict, list))
                 for item in (one.values() if isinstance(one, dict) else one)]
        depth += 1
    return depth


def _lark_of_tools(tokenizer: Tokenizer, tools: list[dict[str, Any]], parallel: bool) -> str:
    """A grammar of calls: ``<tool_call>\\n{"name": NAME, "arguments": {...}}\\n</tool_call>``."""
    opens, closes = (_tag(tokenizer, tag) for tag in (CALL_OPENS, CALL_CLOSES))
    if not tools:
        raise ConstraintError("A call is demanded, and there are no tools.", field="tools", hint="Send at least one.")
    rules = []
    for number, tool in enumerate(tools):
        called = tool.get("function") or tool
        if not isinstance(called, dict) or not isinstance(called.get("name"), str):
            raise ConstraintError(f"Tool {number + 1} has no name.", field="tools")
        try:
            called["name"].encode()
        except UnicodeEncodeError:
            raise ConstraintError(f"The name of tool {number + 1} holds half of a surrogate pair.",
                                  field="tools") from None
        schema = called.get("parameters") or {"type": "object"}
        schema = {**_checked(schema, "tools", f"parameters of the tool {called['name']}"), "x-guidance": SPACED}
        head = json.dumps(f'{{"name": {json.dumps(called["name"], ensure_ascii=False)}, "arguments": ',
                          ensure_ascii=False)
        rules.append(f'call_{number}: {head} arguments_{number} "}}"\narguments_{number}: %json {json.dumps(schema)}')
    if sum(map(len, rules)) > MAX_SCHEMA_CHARS:
        raise ConstraintError(f"The tools have more than {MAX_SCHEMA_CHARS:,} characters.", field="tools",
                              hint="Send fewer or smaller ones.")
    some = " | ".join(f"call_{number}" for number in range(len(tools)))
    start = 'start: call ("\\n" call)*' if parallel else "start: call"
    return "\n".join([start, f'call: {opens} "\\n" ({some}) "\\n" {closes}', *rules])


def _tag(tokenizer: Tokenizer, text: str) -> str:
    """A tag in Lark: its one token where it has one, else its characters."""
    ids = tokenizer.encode(text)
    return f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(text)


class _Words:
    """A vocabulary as llguidance wants it. Added tokens count as special: no text of JSON holds one."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i, False) for i in range(min(tokenizer.vocab_size, vocab_size))]
        self.special_token_ids = sorted(i for i in tokenizer.added_ids if i < len(self.tokens))
        self._encode = tokenizer.text_encoder()  # not the tokenizer itself, which this would keep in memory

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


_KNOWN: weakref.WeakKeyDictionary[Tokenizer, dict[int, Any]] = weakref.WeakKeyDictionary()


def _words_of(tokenizer: Tokenizer, vocab_size: int) -> Any:
    """llguidance's trie of the vocabulary, made once."""
    known = _KNOWN.setdefault(tokenizer, {})
    if vocab_size not in known:
        library = _library()
        words = library.TokenizerWrapper(_Words(tokenizer, vocab_size))
        known[vocab_size] = library.LLTokenizer(words, n_vocab=vocab_size, eos_token=tokenizer.eos_id)
    return known[vocab_size]
