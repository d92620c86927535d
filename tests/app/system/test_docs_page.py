"""The page about the API: everything is on it, and whatever a description says stays text."""

from __future__ import annotations

import json
import shlex

import pytest

from app.docs_page import FieldRow, Piece, inline, kind_of, paragraphs, schemas, sections
from tests.app.conftest import Api
from tests.app.test_pages import HOSTILE, assert_clean, read


def test_the_api_documents_itself(api: Api) -> None:
    html = api.browser().get("/api/docs").text
    schema = api.get("/openapi.json").json()
    page = assert_clean(html)
    text = "".join(page.text)
    for path, methods in schema["paths"].items():
        for method, said in methods.items():
            assert f"{method.upper()} {path}" in text
            assert said.get("tags") and (said.get("description") or said.get("summary")), path
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")} <= anchors
    runs = schema["paths"]["/api/v1/runs"]["post"]
    assert "RunCreate" in str(runs["requestBody"]) and "Idempotency-Key" in str(runs["parameters"])
    assert 'curl -X POST "http://127.0.0.1:8000/api/v1/runs"' in text and "Authorization: Bearer $TOKEN" in text
    for word in ("run:ID", "pipeline:ID", "snapshot", "reset", "1013", "Idempotency-Key", "next_cursor", "problems",
                 'base_url="http://127.0.0.1:8000/v1"', "reasoning_content", "json_schema"):
        assert word in text, word
    assert "`" not in text, "a backtick that did not become code"
    assert "/api/v1/openapi.json" in [a.get("href") for _, a in page.tags]


def test_commands_can_be_run_as_they_stand(api: Api) -> None:
    """Each is one shell command whose body is JSON; the first one of all really starts a run."""
    schema = api.get("/openapi.json").json()
    for operations in sections(schema).values():
        for operation in operations:
            words = shlex.split(operation.curl("http://127.0.0.1:8000").replace("\\\n", ""))
            assert words[0] == "curl" and any(w.startswith("http://127.0.0.1:8000/") for w in words)
            if "-d" in words:
                json.loads(words[words.index("-d") + 1])
    post = next(o for o in sections(schema)["runs"] if (o.method, o.path) == ("POST", "/api/v1/runs"))
    assert api.post("/runs", post.bodies[0].example).status_code == 201
    examples = {f"{o.method} {o.path}": o.bodies[0].example for os in sections(schema).values() for o in os if o.bodies}
    assert api.post("/datasets", examples["POST /api/v1/datasets"]).status_code == 201


def test_backticks_become_code() -> None:
    assert inline("Send ``state`` or `stage`.") == [
        Piece("Send "), Piece("state", "code"), Piece(" or "), Piece("stage", "code"), Piece(".")]
    assert inline("one ` alone") == [Piece("one ` alone")]
    assert inline("") == []
    assert paragraphs("One\nline.\n\n  Two. ") == [[Piece("One line.")], [Piece("Two.")]]


@pytest.mark.parametrize(("said", "words"), [
    ({"type": "string"}, "string"),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer | null"),
    ({"type": "array", "items": {"type": "string"}}, "list of string"),
    ({"enum": ["a", 1]}, '"a" | 1'),
    ({"const": "starter"}, '"starter"'),
    ({"type": "string", "format": "binary"}, "file"),
    ({"$ref": "#/components/schemas/Thing"}, "Thing"),
    ({"$ref": "#/components/schemas/Page_Thing_"}, "page of Thing"),
    ({"type": ["string", "null"]}, "string | null"),
    ({}, "")])
def test_kinds(said: dict, words: str) -> None:
    api = {"components": {"schemas": {
        "Thing": {}, "Page_Thing_": {"properties": {"items": {"items": {"$ref": "#/components/schemas/Thing"}}}}}}}
    assert "".join(p.text for p in kind_of(api, said)) == words


def test_fields_say_their_defaults_and_limits() -> None:
    body = {"type": "object", "required": ["a"], "properties": {
        "a": {"type": "integer", "minimum": 1, "maximum": 500, "default": 50, "description": "How `many`."},
        "inner": {"type": "object", "properties": {"b": {"type": "string", "maxLength": 3}}}}}
    api = {"paths": {"/x": {"post": {"tags": ["t"], "requestBody": {"content": {"application/json": {"schema": body}}},
                                     "responses": {"201": {"description": "made"}}}}},
           "components": {"schemas": {"Body": body, "Page_X_": {}, "ValidationError": {}}}}
    fields = sections(api)["t"][0].bodies[0].fields
    assert fields[0] == FieldRow("a", [Piece("integer")], True, [Piece("How "), Piece("many", "code"), Piece(".")],
                                 default="50", limits="≥ 1, ≤ 500")
    assert [f.name for f in fields] == ["a", "inner", "inner.b"] and fields[2].limits == "3 characters at most"
    assert [s.name for s in schemas(api)] == ["Body"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_whatever_a_description_says_is_text(api: Api, monkeypatch: pytest.MonkeyPatch, hostile: str) -> None:
    schema = json.loads(json.dumps(api.app.openapi()))
    operation = schema["paths"]["/api/v1/runs"]["get"]
    operation["description"] = f"{hostile} `{hostile}`"
    operation["parameters"][0]["description"] = operation["parameters"][0]["name"] = hostile
    monkeypatch.setattr(api.app, "openapi", lambda: schema)
    before = read(api.browser().get("/api/docs").text)
    page = assert_clean(api.browser().get("/api/docs").text)
    assert " ".join(hostile.split()) in "".join(page.text)
    assert [t for t, _ in page.tags if t in ("img", "script")] == [t for t, _ in before.tags if t in ("img", "script")]
    assert sum(t == "h1" for t, _ in page.tags) == 1
