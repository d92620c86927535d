"""What is packed on its way and what is not; built files come packed from the disk and may be kept for good."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.compression import Compression
from app.static_files import BuiltFiles
from tests.app.conftest import Api


def encoding(answer) -> str | None:
    return answer.headers.get("content-encoding")


def test_pages_and_json_are_packed(api: Api) -> None:
    browser = api.browser()
    page = browser.get("/start", headers={"Accept-Encoding": "gzip"})
    assert encoding(page) == "gzip" and "Train your first model" in page.text
    assert "Accept-Encoding" in page.headers["vary"]
    assert encoding(browser.get("/start", headers={"Accept-Encoding": "identity"})) is None
    assert encoding(api.http.get("/api/v1/openapi.json", headers={"Accept-Encoding": "gzip"})) == "gzip"


@pytest.mark.parametrize("path", ["/v1/models", "/api/v1/checkpoints/x/download", "/static/x.js"])
def test_streams_and_what_is_packed_are_left_alone(path: str) -> None:
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"x" * 5000})

    client = TestClient(Compression(app))
    assert encoding(client.get(path, headers={"Accept-Encoding": "gzip"})) is None
    assert encoding(client.get("/else", headers={"Accept-Encoding": "gzip"})) == "gzip"


def test_built_files(tmp_path: Path) -> None:
    (tmp_path / "run-ABC.js").write_text("let a = 1;" * 300)
    (tmp_path / "run-ABC.js.gz").write_bytes(gzip.compress(b"let packed = 1;"))
    (tmp_path / "app-ABC.css").write_text("a {}")
    client = TestClient(BuiltFiles(directory=tmp_path))
    packed = client.get("/run-ABC.js", headers={"Accept-Encoding": "gzip"})
    assert encoding(packed) == "gzip" and packed.text == "let packed = 1;"
    assert packed.headers["content-type"].startswith("text/javascript")
    assert "immutable" in packed.headers["cache-control"] and packed.headers["vary"] == "Accept-Encoding"
    plain = client.get("/run-ABC.js", headers={"Accept-Encoding": "identity"})
    assert encoding(plain) is None and plain.text.startswith("let a")
    style = client.get("/app-ABC.css", headers={"Accept-Encoding": "gzip"})
    assert encoding(style) is None and style.text == "a {}"
