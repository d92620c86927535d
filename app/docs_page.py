"""The OpenAPI description turned into what a template can show: operations by tag, their fields, a command to try.

Texts become pieces (plain, code, the name of a schema) that the template escapes one by one: nothing here makes HTML.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from app.auth.guard import is_public
from app.i18n import gettext as _

#: ``code`` as docstrings write it, or `code` as OpenAPI does
_CODE = re.compile(r"``(.+?)``|`([^`]+)`", re.DOTALL)
#: nested objects are unfolded this deep
_DEPTH = 3
_NOT_SHOWN = ("HTTPValidationError", "ValidationError")
_TALK = {"model": "CHECKPOINT_ID", "stream": True}
#: bodies whose routes read them by themselves, or whose schema requires nothing
_EXAMPLES: dict[str, Any] = {
    "/v1/chat/completions": _TALK | {"messages": [{"role": "user", "content": "Who are you?"}]},
    "/v1/completions": _TALK | {"prompt": "Once upon a time"},
    "/api/v1/login": {"name": "NAME", "password": "PASSWORD"}}


@dataclass(frozen=True)
class Piece:
    """A stretch of text; ``kind`` is text, code or schema (the name of one that the page describes)."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class FieldRow:
    name: str
    kind: list[Piece]
    required: bool
    help: list[Piece]
    place: str = ""
    default: str | None = None
    limits: str = ""


@dataclass(frozen=True)
class Body:
    media_type: str
    fields: list[FieldRow]
    example: Any


@dataclass(frozen=True)
class Answer:
    status: str
    kind: list[Piece]

    @property
    def is_error(self) -> bool:
        return self.status >= "4"


@dataclass
class Operation:
    method: str
    path: str
    summary: str
    paragraphs: list[list[Piece]]
    parameters: list[FieldRow] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    is_file: bool = False
    takes_key: bool = False

    @property
    def anchor(self) -> str:
        return f"{self.method}{self.path}".lower().replace("/", "-").replace("{", "").replace("}", "")

    def curl(self, base_url: str) -> str:
        """A command that sends the request; ``$TOKEN`` and what stands in braces in the path are the reader's."""
        query = "&".join(f"{p.name}={p.name.upper()}" for p in self.parameters if p.required and p.place == "query")
        path = re.sub(r"\{(\w+)\}", lambda found: f"${found[1].upper()}", self.path)
        words = ["curl", *(["-OJ"] if self.is_file else []), *([] if self.method == "GET" else ["-X", self.method]),
                 f'"{base_url}{path}{"?" if query else ""}{query}"']
        lines = [" ".join(words)]
        if not is_public(self.method, self.path):
            lines.append('-H "Authorization: Bearer $TOKEN"')
        body = self.bodies[0] if self.bodies else None
        if body is not None and body.media_type == "multipart/form-data":
            lines += [f"-F {row.name}=@{row.name}" for row in body.fields if row.required]
        elif body is not None:
            lines.append('-H "Content-Type: application/json"')
            lines.append(f"-d {shlex.quote(json.dumps(body.example, ensure_ascii=False))}")
        return " \\\n  ".join(lines)


@dataclass(frozen=True)
class Schema:
    name: str
    paragraphs: list[list[Piece]]
    fields: list[FieldRow]


def inline(text: str) -> list[Piece]:
    """Text with what stands between backticks as code."""
    found, at = [], 0
    for match in _CODE.finditer(text):
        found += [Piece(text[at:match.start()]), Piece(match[1] or match[2], "code")]
        at = match.end()
    return [piece for piece in (*found, Piece(text[at:])) if piece.text]


def paragraphs(text: str) -> list[list[Piece]]:
    """Paragraphs are apart by an empty line, as in docstrings and Markdown."""
    return [inline(" ".join(part.split())) for part in re.split(r"\n\s*\n", text) if part.strip()]


def sections(api: dict[str, Any], order: tuple[str, ...] = ()) -> dict[str, list[Operation]]:
    """Every operation of the API by tag: those of ``order`` first, the others as the routes come."""
    found: dict[str, list[Operation]] = {tag: [] for tag in order}
    for path, methods in api["paths"].items():
        for method, said in methods.items():
            tag = (said.get("tags") or ["other"])[0]
            found.setdefault(tag, []).append(_operation(api, method.upper(), path, said))
    return {tag: operations for tag, operations in found.items() if operations}


def schemas(api: dict[str, Any]) -> list[Schema]:
    """What the answers and bodies are made of, by name."""
    return [Schema(name, paragraphs(said.get("description", "")), _fields(api, said, depth=1))
            for name, said in sorted(api["components"]["schemas"].items()) if _is_shown(name)]


def _is_shown(name: str) -> bool:
    return name not in _NOT_SHOWN and not name.startswith("Page_")


def _operation(api: dict, method: str, path: str, said: dict) -> Operation:
    operation = Operation(method, path, said.get("summary", ""), paragraphs(said.get("description", "")))
    for parameter in said.get("parameters", []):
        schema = parameter.get("schema", {})
        if parameter["name"] == "Idempotency-Key":  # described once, for all
            operation.takes_key = True
            continue
        if parameter["in"] == "path" and not parameter.get("description"):  # the path says as much
            continue
        operation.parameters.append(FieldRow(
            parameter["name"], kind_of(api, schema), parameter.get("required", False),
            inline(parameter.get("description", "")), parameter["in"], _default(schema), _limits(schema)))
    for media_type, content in said.get("requestBody", {}).get("content", {}).items():
        schema = content.get("schema", {})
        example = _EXAMPLES.get(path) or _example(api, schema)
        fields = _fields(api, schema)
        if method == "PATCH" and not example:
            example = {fields[0].name: "…"}
        operation.bodies.append(Body(media_type, fields, example))
    if path in _EXAMPLES and not operation.bodies:
        operation.bodies.append(Body("application/json", [], _EXAMPLES[path]))
    for status, answer in said.get("responses", {}).items():
        media_types = answer.get("content", {})
        kind = kind_of(api, next(iter(media_types.values()), {}).get("schema", {})) if media_types else []
        operation.is_file = operation.is_file or "application/x-tar" in media_types
        if status < "4":
            operation.answers.append(Answer(status, kind or [Piece(answer.get("description", ""))]))
    return operation


def _followed(api: dict, said: dict) -> dict:
    """What a reference means, or the one option besides null."""
    for _step in range(10):
        options = [o for o in said.get("anyOf", said.get("allOf", [])) if o.get("type") != "null"]
        if "$ref" in said:
            said = api["components"]["schemas"][_name(said)]
        elif len(options) == 1 or any("$ref" in option for option in options):
            said = next((o for o in options if "$ref" in o), options[0])
        else:
            break
    return said


def _name(said: dict) -> str:
    return said["$ref"].rsplit("/", 1)[-1]


def _fields(api: dict, said: dict, prefix: str = "", depth: int = _DEPTH) -> list[FieldRow]:
    """The fields of an object; those of an object inside it follow as ``outer.inner``, named schemas excepted."""
    said = _followed(api, said)
    required = said.get("required", [])
    rows = []
    for name, inner in said.get("properties", {}).items():
        rows.append(FieldRow(prefix + name, kind_of(api, inner), name in required,
                             inline(inner.get("description", "")), default=_default(inner), limits=_limits(inner)))
        if depth > 1 and "$ref" not in str(inner) and inner.get("properties"):
            rows += _fields(api, inner, f"{prefix}{name}.", depth - 1)
    return rows


def kind_of(api: dict, said: dict) -> list[Piece]:
    """A few words for a JSON Schema."""
    if "$ref" in said:
        return _kind_of_reference(api, _name(said))
    if "enum" in said:
        return [Piece(" | ".join(json.dumps(v, ensure_ascii=False) for v in said["enum"]))]
    if "const" in said:
        return [Piece(json.dumps(said["const"], ensure_ascii=False))]
    options = said.get("anyOf") or said.get("oneOf") or said.get("allOf")
    if options:
        kinds = list(dict.fromkeys(tuple(kind_of(api, option)) for option in options))
        return [piece for place, kind in enumerate(kinds)
                for piece in ((Piece(" | "),) if place else ()) + (kind or (Piece("any"),))]
    if said.get("type") == "array":
        return [Piece("list of "), *(kind_of(api, said.get("items", {})) or [Piece("values")])]
    if said.get("format") == "binary":
        return [Piece("file")]
    kind = said.get("type", "any" if said else "")
    return [Piece(" | ".join(kind) if isinstance(kind, list) else kind)] if kind else []


def _kind_of_reference(api: dict, name: str) -> list[Piece]:
    if name.startswith("Page_"):
        items = api["components"]["schemas"][name]["properties"]["items"].get("items", {})
        return [Piece("page of "), *(kind_of(api, items) or [Piece("objects")])]
    return [Piece(name, "schema" if _is_shown(name) else "text")]


def _default(said: dict) -> str | None:
    return json.dumps(said["default"], ensure_ascii=False) if said.get("default") is not None else None


def _limits(said: dict) -> str:
    texts = (("minimum", "≥ {}"), ("exclusiveMinimum", "> {}"), ("maximum", "≤ {}"), ("exclusiveMaximum", "< {}"),
             ("minLength", _("{} characters or more")), ("maxLength", _("{} characters at most")),
             ("minItems", _("{} items or more")), ("maxItems", _("{} items at most")))
    # 1 character or more is what "required" says already; bounds of 64-bit numbers are no news
    return ", ".join(text.format(f"{option[key]:,.15g}") for option in (said, *said.get("anyOf", []))
                     for key, text in texts if key in option and (key, option[key]) != ("minLength", 1)
                     and option[key] < 2**60)


def _example(api: dict, said: dict) -> Any:
    """The smallest value that shows what is meant: required fields, and those that have an example of their own."""
    if said.get("examples"):
        return said["examples"][0]
    if said.get("default") is not None:
        return said["default"]
    if "const" in said or "enum" in said:
        return said.get("const", next(iter(said.get("enum", [])), None))
    said = _followed(api, said)
    if said.get("properties"):
        return {name: _example(api, inner) for name, inner in said["properties"].items()
                if name in said.get("required", []) or inner.get("examples")}
    if "anyOf" in said:
        return _example(api, said["anyOf"][0])
    if said.get("type") == "array":
        return [_example(api, said.get("items", {}))]
    return {"integer": 1, "number": 1.0, "boolean": False, "object": {}}.get(said.get("type", ""), "…")
