"""Exports by REST: asked for once, made by a job, sent as a file or as a zip of a folder."""

from __future__ import annotations

import asyncio
import io
import zipfile
from pathlib import Path

import pytest

from app.checkpoints import export_routes
from app.checkpoints.zip_stream import ZipStream
from app.core import queue
from app.core.db import now, reading, transaction
from app.core.models import Checkpoint, Job
from tests.app.conftest import Api
from tests.app.test_pages import assert_clean
from tests.app.test_runs import new_run
from tests.checkpoint_rig import make_adapter, make_checkpoint
from tests.database_rig import HOST, add_host
from worker import jobs
from worker.checkpoints import _superfluous


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("checkpoints")
    base = make_checkpoint(place / "base", seed=1)
    return {"base": base, "wide": make_checkpoint(place / "wide", seed=2, hidden_size=64),
            "adapter": make_adapter(place / "run", base, seed=3)}


def add(run: dict, path: Path, stage: str = "sft", state: str = "ready", step: int = 20) -> str:
    with transaction() as session:
        row = Checkpoint(run_id=run["id"], attempt=1, stage=stage, step=step, tokens=1, bytes=1, path=str(path),
                         state=state, created_at=now(session))
        session.add(row)
    return row.id


def ask(api: Api, id: str, **body: object):
    return api.post(f"/checkpoints/{id}/export", body)


def work() -> str:
    with transaction() as session:
        claimed = queue.claim_job(session, HOST)
    assert claimed is not None
    return jobs.execute(*claimed)


@pytest.fixture
def ended(api: Api) -> dict:
    """A run that is over, whose checkpoints can be deleted with it."""
    add_host()
    run = new_run(api, name="Où est / le phare?")
    assert api.post(f"/runs/{run['id']}/cancel").status_code == 202
    return run


def test_a_folder_is_made_once_and_sent_as_a_zip(api: Api, ended: dict, made: dict[str, Path]) -> None:
    id = add(ended, made["base"])
    answer = ask(api, id, format="hf")
    export = answer.json()
    assert answer.status_code == 202 and export["state"] == "running" and export["path"] is None
    assert (export["checkpoint_id"], export["format"], export["error"]) == (id, "hf", None)
    assert ask(api, id, format="hf").json()["id"] == export["id"], "it is being made already"
    refused = api.http.get(f"/api/v1/exports/{export['id']}/download")
    assert refused.status_code == 409 and "running" in refused.json()["error"]["message"]
    assert api.http.delete(f"/api/v1/exports/{export['id']}").status_code == 409
    assert api.http.delete(f"/api/v1/runs/{ended['id']}").status_code == 409, "its checkpoint is in use"

    assert work() == "completed"
    export = api.get(f"/exports/{export['id']}").json()
    path = Path(export["path"])
    assert export["state"] == "ready" and path.name == "O-est-le-phare-step-20" and path.is_dir()
    assert export["bytes"] == sum(p.stat().st_size for p in path.iterdir())
    assert ask(api, id, format="hf").json() == export
    sent = api.http.get(f"/api/v1/exports/{export['id']}/download")
    assert sent.headers["content-disposition"] == 'attachment; filename="O-est-le-phare-step-20.zip"'
    with zipfile.ZipFile(io.BytesIO(sent.content)) as archive:
        assert archive.testzip() is None
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"{path.name}/{p.name}": p.read_bytes() for p in path.iterdir()}

    assert ask(api, id, format="pth").json()["id"] != export["id"]
    assert work() == "completed"
    assert api.http.delete(f"/api/v1/exports/{export['id']}").status_code == 204
    assert not path.exists() and api.get(f"/exports/{export['id']}").status_code == 404
    assert ask(api, id, format="hf").json()["state"] == "running", "what was deleted is made again"


def test_a_file_is_sent_as_it_is(api: Api, ended: dict, made: dict[str, Path]) -> None:
    export = ask(api, add(ended, made["base"]), format="pth").json()
    assert work() == "completed"
    export = api.get(f"/exports/{export['id']}").json()
    sent = api.http.get(f"/api/v1/exports/{export['id']}/download")
    assert sent.content == Path(export["path"]).read_bytes() and len(sent.content) == export["bytes"]
    assert sent.headers["content-disposition"].endswith('filename="O-est-le-phare-step-20.pth"')


@pytest.mark.parametrize("quantization", [None, "f32", "q8_0"])
def test_a_gguf_file_with_what_runs_it(api: Api, ended: dict, made: dict[str, Path], quantization: str | None) -> None:
    id = add(ended, made["base"])
    body = {"format": "gguf"} | ({"quantization": quantization} if quantization else {})
    export = ask(api, id, **body).json()
    assert export["quantization"] == (quantization or "f16") and export["modelfile"] is None
    assert work() == "completed"
    export = api.get(f"/exports/{export['id']}").json()
    assert export["state"] == "ready"
    assert Path(export["path"]).name == f"O-est-le-phare-step-20-{quantization or 'f16'}.gguf"
    assert [one["tool"] for one in export["commands"]] == ["ollama", "llama.cpp", "llama.cpp server"]
    recipe = api.http.get(f"/api/v1/exports/{export['id']}/modelfile")
    assert recipe.text == export["modelfile"] and recipe.headers["content-type"].startswith("text/plain")
    assert recipe.headers["content-disposition"].endswith(f'filename="{Path(export["path"]).stem}.Modelfile"')
    assert f"-f {Path(export['path']).stem}.Modelfile" in export["commands"][0]["text"]
    assert export["modelfile"].startswith(f"FROM ./{Path(export['path']).name}\nTEMPLATE ")
    sent = api.http.get(f"/api/v1/exports/{export['id']}/download").content
    assert sent[:4] == b"GGUF" and len(sent) == export["bytes"]
    assert ask(api, id, **body).json()["id"] == export["id"]
    other = {"format": "gguf", "quantization": "f16" if quantization else "f32"}
    assert ask(api, id, **other).json()["id"] != export["id"], "another file"


def test_one_that_is_deleted_while_it_is_sent_comes_whole(api: Api, ended: dict, made: dict[str, Path]) -> None:
    export = ask(api, add(ended, made["base"]), format="hf").json()
    assert work() == "completed"
    answer = export_routes.download_export(export["id"])
    whole = api.http.get(f"/api/v1/exports/{export['id']}/download").content
    assert api.http.delete(f"/api/v1/exports/{export['id']}").status_code == 204

    async def sent() -> bytes:
        return b"".join([block async for block in answer.body_iterator])

    assert asyncio.run(sent()) == whole


def test_one_that_failed_says_why(api: Api, ended: dict, made: dict[str, Path]) -> None:
    id = add(ended, made["adapter"], "lora", step=0)
    export = ask(api, id, format="minimind_lora").json()
    assert work() == "failed"
    export = api.get(f"/exports/{export['id']}").json()
    assert export["state"] == "failed" and "Upstream has adapters beside" in export["error"]["message"]
    assert api.http.get(f"/api/v1/exports/{export['id']}/download").status_code == 409
    assert ask(api, id, format="minimind_lora").json()["id"] != export["id"], "it can be tried again"


@pytest.mark.parametrize("which, body, field, said", [
    ("base", {"format": "gguf", "quantization": "q2_k"}, "quantization", "q8_0"),
    ("base", {"format": "zip"}, "format", "hf"),
    ("base", {}, "format", "missing"),
    ("base", {"format": "hf", "more": 1}, "more", ""),
    ("base", {"format": "peft"}, "format", "whole model"),
    ("base", {"format": "minimind_lora"}, "format", "whole model"),
    ("base", {"format": "hf", "base_checkpoint_id": "x"}, "base_checkpoint_id", "belongs to an adapter"),
    ("adapter", {"format": "peft", "base_checkpoint_id": "x"}, "base_checkpoint_id", "belongs to an adapter"),
    ("adapter", {"format": "merged", "base_checkpoint_id": "x"}, "base_checkpoint_id", "no usable checkpoint"),
    ("adapter", {"format": "merged", "base_checkpoint_id": "WIDE"}, "base_checkpoint_id", "32 channels"),
])
def test_what_cannot_be_exported_is_said_at_once(api: Api, ended: dict, made: dict[str, Path], which: str, body: dict,
                                                 field: str, said: str) -> None:
    wide = add(ended, made["wide"], step=1)
    body = {k: wide if v == "WIDE" else v for k, v in body.items()}
    answer = ask(api, add(ended, made[which], "lora" if which == "adapter" else "sft"), **body)
    error = answer.json()["error"]
    assert answer.status_code == 422 and error["field"] == field and said in error["message"]
    with reading() as session:
        assert session.query(Job).count() == 0


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_sizes_are_told_before(api: Api, ended: dict, made: dict[str, Path], which: str, tmp_path: Path) -> None:
    """Within some kilobytes (names, the model card) or a tenth of what is then made."""
    id = add(ended, made[which], "lora" if which == "adapter" else "sft")
    told = api.get(f"/checkpoints/{id}").json()["export_bytes"]
    folder = "merged" if which == "adapter" else "hf"
    assert set(told) == {f"{folder}:float32", f"{folder}:bfloat16", f"{folder}:float16", "gguf:f32", "gguf:f16",
                         "gguf:q8_0", "pth", *(("peft", "minimind_lora") if which == "adapter" else ())}
    for name in set(told) - {"minimind_lora"}:  # which has no place for what stands beside other matrices
        format, _, how = name.partition(":")
        body = {"format": format} | ({"quantization": how} if format == "gguf" else {"dtype": how} if how else {})
        export = ask(api, id, **body).json()
        assert work() == "completed"
        made_of = api.get(f"/exports/{export['id']}").json()["bytes"]
        assert abs(made_of - told[name]) < 12_000 + 0.1 * made_of, (name, told[name], made_of)
    assert api.get(f"/checkpoints/{add(ended, Path('/nothing/there'), step=3)}").json()["export_bytes"] == {}
    (unreadable := tmp_path / "unreadable" / "manifest.json").mkdir(parents=True)
    odd = add(ended, unreadable.parent, step=4)
    assert api.get(f"/checkpoints/{odd}").json()["export_bytes"] == {}
    assert api.browser().get("/checkpoints").status_code == 200


def test_they_are_listed_newest_first(api: Api, ended: dict, made: dict[str, Path]) -> None:
    first, second = add(ended, made["base"]), add(ended, made["wide"], step=21)
    ids = [ask(api, first, format="pth").json()["id"], ask(api, second, format="hf").json()["id"],
           ask(api, first, format="gguf").json()["id"]]
    assert [work(), work()] == ["completed"] * 2
    page = api.get("/exports", limit=2).json()
    assert [one["id"] for one in page["items"]] == ids[:0:-1] and page["next_cursor"]
    [last] = api.get("/exports", limit=2, cursor=page["next_cursor"]).json()["items"]
    assert (last["id"], last["name"], last["state"]) == (ids[0], "O-est-le-phare-step-20.pth", "ready")
    assert 0 <= last["seconds"] < 60 and page["items"][0]["seconds"] is None
    assert {one["id"] for one in api.get("/exports", checkpoint_id=first).json()["items"]} == {ids[0], ids[2]}
    assert api.get("/exports", checkpoint_id="x'--").json()["items"] == []
    assert api.get("/exports", checkpoint_id="a\0").json()["items"] == [], "PostgreSQL has no such text"

    browser = api.browser()
    page = assert_clean(browser.get("/exports").text)
    assert [a["data-key"] for tag, a in page.tags if tag == "tr" and "data-key" in a] == ids[::-1]
    text = " ".join("".join(page.text).split())
    for said in ("O-est-le-phare-step-20-f16.gguf", "Hugging Face folder", "Où est / le phare?", "step 21",
                 "vllm serve", "Waiting for a worker"):
        assert said in text, said
    links = [a.get("href") for tag, a in page.tags if tag == "a"]
    assert f"/api/v1/exports/{ids[1]}/download" in links and f"/api/v1/exports/{ids[2]}/download" not in links
    assert [a["data-cancel-job"] for tag, a in page.tags if "data-cancel-job" in a] == [ids[2]]
    assert {a["data-delete"] for tag, a in page.tags if "data-delete" in a} == set(ids[:2])
    assert work() == "completed"
    page = assert_clean(browser.get("/exports", params={"part": "rows", "checkpoint_id": first}).text)
    assert f"/api/v1/exports/{ids[2]}/modelfile" in [a.get("href") for tag, a in page.tags if tag == "a"]
    viewer = api.as_role("looks", "viewer").get("/exports").text
    assert "data-delete" not in viewer and f"/exports/{ids[1]}/download" in viewer


def test_the_list_says_how_far_it_is_and_how_it_ended(api: Api, ended: dict, made: dict[str, Path]) -> None:
    id = add(ended, made["base"])
    export = ask(api, id, format="gguf").json()
    with transaction() as session:
        claimed = queue.claim_job(session, HOST)
        job = session.get_one(Job, claimed[0])
        job.started_at = now(session) - 90
        job.progress = {"done": 90_000_000, "total": 100_000_000, "unit": "bytes", "message": "Writing the weights"}
    text = " ".join(api.browser().get("/exports").text.split())
    assert 'max="100000000" value="90000000"' in text and "90 MB of 100 MB" in text and "10 s left" in text
    assert api.post(f"/jobs/{export['id']}/cancel").status_code == 202
    assert "Cancelling" in api.browser().get("/exports").text
    assert ask(api, id, format="gguf").json()["id"] != export["id"], "not the one that is on its way out"
    assert jobs.execute(*claimed) == "cancelled"
    text = api.browser().get("/exports").text
    assert "It was cancelled." in text and "field-error" not in text
    assert work() == "completed", "the one that was asked for again"
    ask(api, add(ended, made["adapter"], "lora", step=0), format="minimind_lora")
    assert work() == "failed"
    assert "Upstream has adapters beside" in api.browser().get("/exports").text


def test_those_that_are_not_there(api: Api, ended: dict, made: dict[str, Path]) -> None:
    assert ask(api, "nothing", format="hf").status_code == 404
    assert ask(api, add(ended, made["base"], state="deleted"), format="hf").status_code == 404
    assert ask(api, add(ended, made["base"], state="corrupt", step=21), format="hf").status_code == 409
    for path in ("/exports/nothing", "/exports/..%2Fx", "/exports/nothing/download", "/exports/nothing/modelfile"):
        assert api.get(path).status_code == 404
    export = ask(api, add(ended, made["base"], step=22), format="pth").json()
    assert work() == "completed"
    assert api.get(f"/exports/{export['id']}/modelfile").status_code == 404, "ollama reads no .pth"
    Path(api.get(f"/exports/{export['id']}").json()["path"]).unlink()
    assert api.get(f"/exports/{export['id']}/download").status_code == 404
    viewer = api.as_role("looks", "viewer")
    assert viewer.post("/api/v1/checkpoints/x/export", json={"format": "hf"}).status_code == 403


def test_what_is_exported_is_kept(api: Api, ended: dict, made: dict[str, Path], monkeypatch) -> None:
    """Retention leaves it alone until the job has ended."""
    monkeypatch.setattr("worker.checkpoints.superfluous", lambda found, *more: [s for s in found if s.step == 20])
    id = add(ended, made["base"])
    with reading() as session:
        assert [row.id for row in _superfluous(session, ended["id"], 100, 1)] == [id]
    ask(api, id, format="pth")
    with reading() as session:
        assert _superfluous(session, ended["id"], 100, 1) == []
    assert work() == "completed"
    with reading() as session:
        assert [row.id for row in _superfluous(session, ended["id"], 100, 1)] == [id]


def test_a_zip_survives_that_its_files_are_deleted_while_it_is_sent(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    content = {"a.bin": b"a" * 3_000_000, "b.txt": b""}
    for name, data in content.items():
        (tmp_path / "m" / name).write_bytes(data)
    blocks = ZipStream(tmp_path / "m", "folder").blocks()
    first = next(blocks)
    for name in content:
        (tmp_path / "m" / name).unlink()
    with zipfile.ZipFile(io.BytesIO(first + b"".join(blocks))) as archive:
        assert {n: archive.read(n) for n in archive.namelist()} == {f"folder/{n}": d for n, d in content.items()}
