"""Models and adapters of others by REST: several files or one, a job, and a run that every page can show."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.checkpoints import imports
from app.core import queue
from app.core.db import reading, transaction
from app.core.models import Checkpoint, Job
from app.core.settings import get_settings
from minimind.formats.adapter_files import write_peft
from minimind.formats.adapters import read_adapter
from tests.app.conftest import Api
from tests.app.test_chat_pages import adapters_of, chosen, show
from tests.app.test_pages import assert_clean
from tests.app.test_runs import new_run
from tests.checkpoint_rig import make_adapter, make_checkpoint
from tests.database_rig import HOST, add_host
from worker import jobs

HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("checkpoints")
    base = make_checkpoint(place / "base", seed=1)
    adapter = make_adapter(place / "run", base, seed=3)
    return {"base": base, "adapter": adapter, "peft": write_peft(place / "peft", *read_adapter(adapter))}


def send(api: Api, paths: list[Path] | dict[str, bytes], key: str | None = None, **fields: str):
    given = paths if isinstance(paths, dict) else {path.name: path.read_bytes() for path in paths}
    parts = [("file", (name, content)) for name, content in given.items()]
    return api.http.post("/api/v1/checkpoints/import", files=parts, data=fields,
                         headers={"Idempotency-Key": key} if key else {})


def work() -> str:
    with transaction() as session:
        claimed = queue.claim_job(session, HOST)
    return jobs.execute(*claimed)


def base_row(run: dict, path: Path) -> str:
    with transaction() as session:
        row = Checkpoint(run_id=run["id"], attempt=1, stage="sft", step=5, tokens=1, bytes=1, path=str(path),
                         state="ready", created_at=1e9)
        session.add(row)
    return row.id


def uploads() -> list[str]:
    return sorted(p.name for p in get_settings().uploads_dir.iterdir())


def test_a_peft_folder_becomes_a_run_that_every_page_knows(api: Api, made: dict[str, Path]) -> None:
    add_host()
    base = base_row(new_run(api, name="Base"), made["base"])
    files = sorted(made["peft"].iterdir())
    answer = send(api, files, key="once", name="Pirate", base_checkpoint_id=base)
    job = answer.json()
    assert answer.status_code == 202 and (job["kind"], job["state"]) == ("checkpoint_import", "queued")
    again = send(api, files, key="once", name="Pirate", base_checkpoint_id=base)
    assert again.json()["id"] == job["id"] and again.headers["idempotency-replayed"] == "true"
    assert len(uploads()) == 1, "sent twice, kept once"
    assert work() == "completed"
    job = api.get(f"/jobs/{job['id']}").json()
    assert job["result"]["kind"] == "adapter" and uploads() == []

    run = api.get(f"/runs/{job['result']['run_id']}").json()
    assert (run["name"], run["stage"], run["state"], run["base_checkpoint_id"]) == (
        "Pirate", "import", "completed", base)
    [checkpoint] = api.get(f"/runs/{run['id']}/checkpoints").json()["items"]
    assert checkpoint["id"] == job["result"]["checkpoint_id"] and checkpoint["stage"] == "lora"
    browser = api.browser()
    for path in (f"/runs/{run['id']}", "/runs", "/checkpoints", f"/checkpoints?run_id={run['id']}", "/runs/new",
                 f"/runs/new?stage=sft&base_checkpoint_id={checkpoint['id']}", f"/runs/new?clone={run['id']}",
                 f"/runs/{run['id']}?part=main", "/system", "/datasets"):
        page = browser.get(path, headers=HTML)
        assert page.status_code == 200, path
        assert_clean(page.text)
    page = browser.get(f"/runs/{run['id']}", headers=HTML).text
    assert "Imported" in page and "run-charts" not in page and f"clone={run['id']}" not in page
    assert "Starts from" not in page and "starter corpus" not in page
    for path in ("metrics", "events", "samples", "logs", "attempts"):
        assert api.get(f"/runs/{run['id']}/{path}").status_code == 200, path
    assert chosen(show(browser, f"/chat?checkpoint={checkpoint['id']}")) == checkpoint["id"]
    assert adapters_of(show(browser, f"/chat?checkpoint={base}"))[0] == [checkpoint["id"]]
    assert api.post(f"/runs/{run['id']}/clone").status_code == 422
    assert api.http.delete(f"/api/v1/runs/{run['id']}").status_code == 204
    assert not (get_settings().runs_dir / run["id"]).exists()


@pytest.mark.parametrize("files, fields, field, said", [
    ({}, {"name": "x"}, "file", "no file"),
    ({"notes.pdf": b"x"}, {}, "file", "notes.pdf is no file of a model"),
    ({"a.pth": b"x", "b.pth": b"x"}, {}, "file", "take each other's place: a.pth, b.pth"),
    ({"a-00001-of-00002.gguf": b"x", "a-00002-of-00002.gguf": b"x"}, {}, "file", "take each other's place"),
    ({"a.pth": b"x"}, {"base_checkpoint_id": "nothing"}, "base_checkpoint_id", "no usable checkpoint"),
    ({"a.pth": b"x"}, {"tokenizer_id": "nothing"}, "tokenizer_id", "no usable tokenizer"),
    ({"a.pth": b"x"}, {"more": "x"}, "more", "no field of this name"),
    ({"a.pth": b"x"}, {"name": "x" * 300}, "name", ""),
])
def test_what_is_wrong_is_said_before_anything_is_read(api: Api, files: dict, fields: dict, field: str,
                                                       said: str) -> None:
    if files:
        answer = send(api, files, **fields)
    else:
        boundary = '--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nx\r\n--b--\r\n'
        answer = api.http.post("/api/v1/checkpoints/import", content=boundary,
                               headers={"Content-Type": "multipart/form-data; boundary=b"})
    error = answer.json()["error"]
    assert answer.status_code == 422 and error["field"] == field and said in error["message"], error
    assert uploads() == []
    with reading() as session:
        assert session.query(Job).count() == 0


@pytest.mark.parametrize("shown, stored", [
    ("config.json", "config.json"), ("model.SAFETENSORS", "model.safetensors"), ("Mein.PTH", "weights.pth"),
    ("模型.safetensors", "weights.safetensors"), (".hidden.json", "weights.json"), ("a.TAR", "weights.tar"),
    ("Qwen3 0.6B.GGUF", "weights.gguf")])
def test_names_on_the_disk_are_ours(shown: str, stored: str) -> None:
    assert imports.stored_name(shown) == stored


def test_what_fails_later_says_so_in_the_job(api: Api) -> None:
    add_host()
    job = send(api, {"../../etc/mein Modell.json": b"{}"}).json()
    assert work() == "failed"
    job = api.get(f"/jobs/{job['id']}").json()
    assert "neither a model nor an adapter" in job["error"]["message"] and uploads() == []


def test_json_is_refused_and_viewers_too(api: Api) -> None:
    assert api.post("/checkpoints/import", {}).status_code == 415
    viewer = api.as_role("looks", "viewer")
    assert viewer.post("/api/v1/checkpoints/import", files={"file": ("a.pth", b"x")}).status_code == 403
