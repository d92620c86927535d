"""A mapping says what detection cannot know: the layout of a file, and which of its columns means what.

::

    {"layout": "pairs", "question": "ask", "answer": "answer"}
    {"layout": "pairs", "question": ["title", "ask"], "answer": "answer"}      (joined by a new line)
    {"layout": "dialogue", "messages": "dialog", "role": "speaker", "content": "text", "user": "usr",
     "assistant": "sys"}
    {"layout": "text", "text": "body"}
    {"replace": {"{{name}}": "MiniMind"}}                                      (the layout is found out)

Every key but ``layout`` is optional; what is left out is looked for among the usual names.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from minimind.data.foreign.encodings import ENCODINGS
from minimind.data.foreign.tables import DELIMITERS
from minimind.data.rows import kind_of
from minimind.errors import ConfigError

#: by layout: the layout that training reads, and the columns it can name (needed ones first, marked)
LAYOUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "alpaca": ("conversations", ("instruction!", "output!", "input", "system", "history")),
    "sharegpt": ("conversations", ("messages!", "role", "content", "system", "tools")),
    "openai": ("conversations", ("messages!", "role", "content", "system", "tools")),
    "dialogue": ("conversations", ("messages!", "role", "content", "system")),
    "pairs": ("conversations", ("question!", "answer!", "system", "history")),
    "self_instruct": ("conversations", ("instruction!", "instances!")),
    "preference": ("dpo", ("question", "messages", "chosen!", "rejected!", "system", "tools", "role", "content")),
    "kto": ("dpo", ("label!", "question", "answer", "messages", "system", "tools", "role", "content")),
    "kto_good": ("conversations", ("label!", "question", "answer", "messages", "system", "tools", "role", "content")),
    "text": ("text", ("text!",)),
    "lines": ("text", ()),
    "txt": ("txt", ()),
    "conversations": ("conversations", ()),
    "dpo": ("dpo", ()),
    "questions": ("questions", ()),
}
#: layouts whose rows are what training reads, so that nothing is converted
CANONICAL = ("text", "conversations", "dpo", "txt", "questions")
#: columns that may be several, whose texts are joined
JOINED = ("text", "question", "instruction", "input")
#: words that a role column may hold, by the role that is meant
SPEAKERS = ("user", "assistant", "system_role", "tool")
MAX_REPLACED = 20


def columns_of(layout: str) -> tuple[str, ...]:
    return tuple(name.rstrip("!") for name in LAYOUTS[layout][1])


def needed_of(layout: str) -> tuple[str, ...]:
    return tuple(name[:-1] for name in LAYOUTS[layout][1] if name.endswith("!"))


def checked(mapping: Any, field: str = "mapping") -> dict[str, Any]:
    """``mapping`` without what is null. Raises ``ConfigError`` with every problem it has, each at ``field.KEY``."""
    problems: list[dict] = []

    def wrong(key: str, message: str, hint: str) -> None:
        problems.append({"field": f"{field}.{key}" if key else field, "message": message, "hint": hint})

    if not isinstance(mapping, dict):
        wrong("", f"The mapping is {kind_of(mapping)}, not an object.", 'Write it like {"layout": "pairs", ...}.')
        raise ConfigError(problems)
    layout = mapping.get("layout")
    if layout in (None, "auto"):
        layout = None
    elif not isinstance(layout, str) or layout not in LAYOUTS:
        wrong("layout", f"There is no layout {str(layout)[:40]!r}.", f"Layouts are auto, {', '.join(LAYOUTS)}.")
        layout = None
    general = {"layout", "encoding", "delimiter", "header", "replace"}
    columns = set(columns_of(layout)) if layout else {c for name in LAYOUTS for c in columns_of(name)}
    speakers = set(SPEAKERS) if not layout or "role" in columns else set()
    for key, value in mapping.items():
        if key in columns:
            is_list = isinstance(value, list) and key in JOINED and value and all(isinstance(v, str) for v in value)
            if not (value is None or isinstance(value, str) or is_list):
                wrong(key, f"{key} is {kind_of(value)}, not the name of a column.",
                      "Give a name" + (", or a list of names." if key in JOINED else "."))
        elif key in speakers:
            if not (value is None or isinstance(value, str)):
                wrong(key, f"{key} is {kind_of(value)}, not the word that stands for this role.", "Give a word.")
        elif key not in general:
            near = get_close_matches(str(key), general | columns | speakers, 1)
            wrong(str(key)[:40], f"The layout {layout} has no column {str(key)[:40]!r}." if layout
                  else f"A mapping has no key {str(key)[:40]!r}.",
                  f"Did you mean {near[0]}?" if near
                  else f"Known here: {', '.join(sorted(general | columns | speakers))}.")
    _check_general(mapping, wrong)
    if problems:
        raise ConfigError(problems)
    kept = {k: v for k, v in mapping.items() if v is not None and k != "layout"}
    return {"layout": layout, **kept} if layout else kept


def _check_general(mapping: dict, wrong: Any) -> None:
    encoding, delimiter, replace = (mapping.get(key) for key in ("encoding", "delimiter", "replace"))
    if encoding is not None and encoding not in ENCODINGS:
        wrong("encoding", f"There is no encoding {str(encoding)[:40]!r} here.", f"Known are {', '.join(ENCODINGS)}.")
    if delimiter is not None and delimiter not in DELIMITERS:
        wrong("delimiter", "The delimiter is none that tables have.", "Give one of , ; | or a tab (\\t).")
    if mapping.get("header") is not None and not isinstance(mapping["header"], bool):
        wrong("header", "header is neither true nor false.", "Say whether the first row holds the columns' names.")
    if replace is None:
        return
    if not isinstance(replace, dict) or not all(isinstance(v, str) for v in replace.values()):
        wrong("replace", "replace is not an object of texts.", 'Write it like {"{{name}}": "MiniMind"}.')
    elif not all(replace) or len(replace) > MAX_REPLACED:
        wrong("replace", f"replace has an empty word, or more than {MAX_REPLACED} of them.", "Replace less.")
