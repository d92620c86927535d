"""The OpenAPI description turned into what a template can show: operations by tag, fields of each body."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class FieldRow:
    name: str
    kind: str
    required: bool
    help: str


@dataclass
class Operation:
    method: str
    path: str
    summary: str
    help: str
    parameters: list[FieldRow] = field(default_factory=list)
    body: list[FieldRow] = field(default_factory=list)
    answers: list[tuple[str, str]] = field(default_factory=list)  # status, what comes back

    @property
    def anchor(self) -> str:
        return f"{self.method}{self.path}".lower().replace("/", "-").replace("{", "").replace("}", "")


def sections(schema: dict[str, Any]) -> dict[str, list[Operation]]:
    """Every operation of the API, by tag in the order of the routes."""
    found: dict[str, list[Operation]] = {}
    for path, methods in schema["paths"].items():
        for method, said in methods.items():
            tag = (said.get("tags") or ["other"])[0]
            found.setdefault(tag, []).append(_operation(schema, method.upper(), path, said))
    return found


def _operation(schema: dict, method: str, path: str, said: dict) -> Operation:
    operation = Operation(method, path, said.get("summary", ""), said.get("description", ""))
    for parameter in said.get("parameters", []):
        operation.parameters.append(FieldRow(parameter["name"], kind_of(parameter.get("schema", {})),
                                             parameter.get("required", False), parameter.get("description", "")))
    for content in said.get("requestBody", {}).get("content", {}).values():
        operation.body += _fields(schema, content.get("schema", {}))
    for status, answer in said.get("responses", {}).items():
        content = next(iter(answer.get("content", {}).values()), {})
        operation.answers.append((status, kind_of(content.get("schema", {})) or answer.get("description", "")))
    return operation


def _fields(schema: dict, body: dict) -> list[FieldRow]:
    """The fields of an object, its reference followed (once; nested objects are named, not unfolded)."""
    for option in body.get("anyOf", []):
        if "$ref" in option:
            body = option
    if "$ref" in body:
        body = schema["components"]["schemas"][body["$ref"].rsplit("/", 1)[-1]]
    required = body.get("required", [])
    return [FieldRow(name, kind_of(said), name in required, said.get("description", ""))
            for name, said in body.get("properties", {}).items()]


def kind_of(said: dict) -> str:
    """One or two words for a JSON Schema."""
    if "$ref" in said:
        return said["$ref"].rsplit("/", 1)[-1]
    if "enum" in said:
        return " | ".join(str(v) for v in said["enum"])
    if "const" in said:
        return str(said["const"])
    if "anyOf" in said:
        return " | ".join(dict.fromkeys(kind_of(option) for option in said["anyOf"]))
    if said.get("type") == "array":
        return f"list of {kind_of(said.get('items', {})) or 'values'}"
    return str(said.get("type", ""))
