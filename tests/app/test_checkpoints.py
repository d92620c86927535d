"""Checkpoints by REST: lists, and a download that is a real tar without a copy on disk."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from sqlalchemy import event, func, select

from app.checkpoints.download import TarStream
from app.checkpoints.queries import SavingCost, list_checkpoints, saving_cost
from app.checkpoints.schemas import CheckpointOut
from app.core.db import now, reading, transaction
from app.core.errors import NotFound
from app.core.models import Checkpoint
from app.core.rest import Paging
from minimind.manifest import Manifest
from tests.app.conftest import Api
from tests.app.test_runs import new_run


def make_checkpoint(directory: Path, **files: bytes) -> Path:
    """A sealed directory with these files (and one that no manifest knows)."""
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name.replace("_", ".")).write_bytes(content)
    Manifest(stage="pretrain", step=3, tokens=300, attempt=1, world_size=1, loss=2.0, eval_loss=None, model={},
             config_fingerprint="c", data_fingerprint="d", tokenizer_fingerprint="t", lineage={}, versions={},
             created_at=1.0).seal(directory)
    (directory / "stray.txt").write_text("not part of it")
    return directory


def add(api: Api, path: Path, run_id: str | None = None, state: str = "ready", step: int = 3) -> str:
    """A later call makes a newer row, also within one tick of the database's clock (a millisecond in SQLite)."""
    run_id = run_id or new_run(api)["id"]
    with transaction() as session:
        newest = session.scalar(select(func.max(Checkpoint.created_at))) or 0.0
        row = Checkpoint(run_id=run_id, attempt=1, stage="pretrain", step=step, tokens=step * 100, bytes=11, loss=2.0,
                         eval_loss=float("inf"), path=str(path), state=state,
                         created_at=max(now(session), newest + 0.001))
        session.add(row)
    return row.id


def test_lists(api: Api, tmp_path: Path) -> None:
    run, other = new_run(api)["id"], new_run(api)["id"]
    late, early = add(api, tmp_path / "b", run, step=20), add(api, tmp_path / "a", run, step=10)
    gone, foreign = add(api, tmp_path / "c", run, "deleted", 30), add(api, tmp_path / "d", other)
    assert [c["id"] for c in api.get(f"/runs/{run}/checkpoints").json()["items"]] == [early, late]
    assert [c["id"] for c in api.get("/checkpoints").json()["items"]] == [foreign, early, late]
    assert [c["id"] for c in api.get("/checkpoints", run_id=run).json()["items"]] == [early, late]
    assert api.get("/checkpoints", run_id="../x").json()["items"] == []
    assert len(api.get("/checkpoints", stage="pretrain", limit=1).json()["items"]) == 1
    names = {api.get(f"/runs/{r}").json()["name"]: r for r in (run, other)}
    assert len(names) == 2
    for listed in (api.get("/checkpoints"), api.get(f"/runs/{run}/checkpoints")):
        assert all(names[c["run_name"]] == c["run_id"] for c in listed.json()["items"])
    shown = api.get(f"/checkpoints/{late}").json()
    assert names[shown["run_name"]] == run
    assert shown.keys() >= {"id", "run_id", "stage", "step", "tokens", "bytes", "eval_loss", "path", "created_at"}
    assert shown["eval_loss"] is None, "not finite"
    assert api.get(f"/checkpoints/{gone}").status_code == 404
    assert api.get(f"/checkpoints/{gone}/download").status_code == 404
    assert api.post(f"/checkpoints/{late}/export", {"format": "onnx"}).status_code == 422


def test_a_list_names_its_runs_with_one_query(api: Api, tmp_path: Path) -> None:
    for number in range(4):
        add(api, tmp_path / str(number), new_run(api, name=f"run {number}")["id"])
    asked: list[str] = []

    def note(_connection, _cursor, statement: str, *_rest) -> None:
        asked.append(statement)

    with reading() as session:
        event.listen(session.get_bind(), "before_cursor_execute", note)
        rows, _ = list_checkpoints(session, Paging())
        names = [CheckpointOut.of(row).run_name for row in rows]
        event.remove(session.get_bind(), "before_cursor_execute", note)
    assert names == ["run 3", "run 2", "run 1", "run 0"]
    assert len([s for s in asked if s.startswith("SELECT")]) == 1


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 3 << 20])
def test_a_download_is_the_directory(api: Api, tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    path = make_checkpoint(tmp_path / "c", model_safetensors=content, config_json=b"{}")
    id = add(api, path)
    answer = api.get(f"/checkpoints/{id}/download")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/x-tar"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["content-disposition"] == f'attachment; filename="pretrain-step-00000003-{id}.tar"'
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        found = {Path(m.name).name: tar.extractfile(m).read() for m in tar.getmembers()}
        assert {str(Path(m.name).parent) for m in tar.getmembers()} == {f"pretrain-step-00000003-{id}"}
    assert found.keys() == {"model.safetensors", "config.json", "manifest.json"}
    assert found["model.safetensors"] == content
    assert found["manifest.json"] == (path / "manifest.json").read_bytes()


def test_files_that_are_gone_are_no_download(api: Api, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "c", model_safetensors=b"x")
    id = add(api, path)
    shutil.rmtree(path)
    assert api.get(f"/checkpoints/{id}/download").status_code == 404
    assert api.get(f"/checkpoints/{id}").json()["state"] == "ready", "a disk that is away is no damage"
    with pytest.raises(NotFound):
        TarStream(tmp_path / "nowhere", "x")


def test_a_damaged_one_is_shown_and_used_for_nothing(api: Api, tmp_path: Path) -> None:
    path, run = make_checkpoint(tmp_path / "c", model_safetensors=b"weights"), new_run(api)["id"]
    id = add(api, path, run)
    assert api.get(f"/checkpoints/{id}/download").status_code == 200
    (path / "model.safetensors").write_bytes(b"weighty")
    refused = api.get(f"/checkpoints/{id}/download")
    assert refused.status_code == 409
    assert "The content of model.safetensors has changed since it was saved." in refused.json()["error"]["message"]
    listed = api.get(f"/runs/{run}/checkpoints").json()["items"]
    assert [(c["id"], c["state"]) for c in listed] == [(id, "corrupt")]
    assert listed[0]["problem"] == "The content of model.safetensors has changed since it was saved."
    assert not path.exists() and listed[0]["path"] == str(tmp_path / ".corrupt-c-1"), "kept, under another name"
    assert (tmp_path / ".corrupt-c-1" / "model.safetensors").read_bytes() == b"weighty"
    warning = api.get(f"/runs/{run}/events", type="warning").json()["items"][-1]
    assert warning["data"]["code"] == "CHECKPOINT_CORRUPT" and warning["step"] == 3
    assert api.get(f"/checkpoints/{id}").json()["state"] == "corrupt"
    assert api.get(f"/checkpoints/{id}/download").status_code == 409
    assert id not in [m["id"] for m in api.http.get("/v1/models").json()["data"]]


@pytest.mark.parametrize("address", ["/runs", "/preflight"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_no_run_begins_from_a_damaged_one(api: Api, tmp_path: Path, damage: str, address: str) -> None:
    path = make_checkpoint(tmp_path / "c", model_safetensors=b"weights")
    id = add(api, path)
    if damage == "flip":
        (path / "model.safetensors").write_bytes(b"weighty")
    elif damage == "cut":
        (path / "model.safetensors").write_bytes(b"weight")
    elif damage == "remove":
        (path / "model.safetensors").unlink()
    else:
        (path / "manifest.json").write_text('{"version": 1, "files": {"../../etc/passwd": {}}}')
    refused = api.post(address, {"stage": "sft", "config": {"max_steps": 1}, "base_checkpoint_id": id})
    assert refused.status_code == 422
    problem = refused.json()["error"]["problems"][0]
    assert problem["field"] == "base_checkpoint_id" and problem["message"].startswith("This checkpoint is damaged: ")
    assert api.get(f"/checkpoints/{id}").json()["state"] == "corrupt"


def test_another_versions_checkpoint_is_not_damaged(api: Api, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "c", model_safetensors=b"weights")
    id = add(api, path)
    (path / "manifest.json").write_text((path / "manifest.json").read_text().replace('"version":1', '"version":2'))
    assert json.loads((path / "manifest.json").read_text())["version"] == 2
    assert api.get(f"/checkpoints/{id}/download").status_code == 404
    assert api.get(f"/checkpoints/{id}").json()["state"] == "ready" and path.exists()


def test_what_saving_costs(api: Api, tmp_path: Path) -> None:
    run = new_run(api)["id"]
    for step, save_s, state in ((1, 1.5, "deleted"), (2, 0.5, "ready"), (3, None, "ready")):
        with transaction() as session:
            session.get_one(Checkpoint, add(api, tmp_path / str(step), run, state, step)).save_s = save_s
    with reading() as session:
        assert saving_cost(session, run, 40.0) == SavingCost(saves=2, bytes=22, seconds=2.0, share=0.05)
        assert saving_cost(session, new_run(api)["id"], 40.0) is None
    assert [c["save_s"] for c in api.get(f"/runs/{run}/checkpoints").json()["items"]] == [0.5, None]


def test_a_download_needs_memory_for_one_block(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "c")
    with open(path / "model.safetensors", "wb") as file:
        file.truncate(64 << 20)
    Manifest.read(path).seal(path)
    stream = TarStream(path, "x")
    tracemalloc.start()
    assert sum(map(len, stream.blocks())) == stream.bytes
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_retention_may_remove_a_checkpoint_while_it_is_sent(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "c", model_safetensors=b"m" * 5000)
    blocks = TarStream(path, "x").blocks()
    first = next(blocks)
    for file in path.iterdir():
        file.unlink()
    with tarfile.open(fileobj=io.BytesIO(first + b"".join(blocks))) as tar:
        assert tar.extractfile("x/model.safetensors").read() == b"m" * 5000
