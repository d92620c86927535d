"""Exports: what other programs would read is what the checkpoint says; whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.core import db, queue
from app.core.models import Checkpoint, Job
from app.core.settings import get_settings
from minimind.checkpoint import load_model
from minimind.formats.adapters import read_adapter
from minimind.formats.source import load_weights_from
from minimind.model import MiniMindForCausalLM
from tests.checkpoint_rig import make_adapter, make_checkpoint
from tests.database_rig import HOST, add_host, add_run
from worker import jobs

SQUARE = ("q_proj", "o_proj")  # what upstream has adapters beside
IDS = torch.randint(0, 200, (1, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("checkpoints")
    base = make_checkpoint(place / "base", seed=1)
    return {"base": base, "other": make_checkpoint(place / "other", seed=2),
            "adapter": make_adapter(place / "run", base, seed=3),
            "square": make_adapter(place / "square", base, seed=4, targets=SQUARE)}


@pytest.fixture(autouse=True)
def host(database):
    add_host()


def row(path: Path, stage: str = "lora") -> str:
    run_id = add_run(stage=stage, name="My run")
    with db.transaction() as session:
        added = Checkpoint(run_id=run_id, attempt=0, stage=stage, step=0, tokens=0, bytes=1, path=str(path),
                           state="ready", created_at=1.0)
        session.add(added)
    return added.id


def export(checkpoint_id: str, format: str, base_id: str | None = None) -> tuple[str, Job]:
    """How the job ended, and its row."""
    with db.transaction() as session:
        payload = {"checkpoint_id": checkpoint_id, "base_checkpoint_id": base_id, "format": format,
                   "name": "my-run-step-0", "base_name": "base-step-1"}
        job = queue.enqueue_job(session, "checkpoint_export", payload, user_id="local")
        job.payload = {**payload, "export_id": job.id}
        job_id = job.id
    with db.transaction() as session:
        claimed = queue.claim_job(session, HOST)
    assert claimed[0] == job_id
    state = jobs.execute(*claimed)
    with db.reading() as session:
        return state, session.get(Job, job_id)


def place_of(job: Job) -> Path:
    path = Path(job.result["path"])
    assert path.parent == get_settings().exports_dir / job.id
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    assert job.result["bytes"] == sum(p.stat().st_size for p in files)
    return path


def left() -> list[str]:
    exports = get_settings().exports_dir
    return sorted(p.name for p in exports.iterdir()) if exports.is_dir() else []


def logits(path: Path, adapter: Path | None = None) -> torch.Tensor:
    with torch.no_grad():
        return load_model(path, adapter=adapter)[0](IDS)


def logits_of_export(path: Path) -> torch.Tensor:
    source = load_weights_from(path)
    model = MiniMindForCausalLM(source.config)
    model.load_weights(source.weights)
    with torch.no_grad():
        return model(IDS)


@pytest.mark.parametrize("format", ["hf", "merged", "pth"])
def test_an_adapter_becomes_part_of_its_base(database, made, format):
    state, job = export(row(made["adapter"]), format)
    assert state == "completed"
    path = place_of(job)
    assert path.name == ("my-run-step-0.pth" if format == "pth" else "my-run-step-0")
    # float16, as upstream writes it: three digits
    torch.testing.assert_close(logits_of_export(path), logits(made["adapter"]), rtol=0,
                               atol=0.5 if format == "pth" else 1e-4)
    if format != "pth":
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= {p.name for p in path.iterdir()}
    assert not torch.allclose(logits(made["adapter"]), logits(made["base"]), atol=1)


def test_an_adapter_becomes_part_of_another_base(database, made):
    state, job = export(row(made["adapter"]), "merged", row(made["other"], "sft"))
    assert state == "completed"
    torch.testing.assert_close(logits_of_export(place_of(job)), logits(made["other"], made["adapter"]), rtol=0,
                               atol=1e-4)


@pytest.mark.parametrize("format", ["hf", "pth"])
def test_a_whole_model(database, made, format):
    state, job = export(row(made["base"], "sft"), format)
    assert state == "completed"
    torch.testing.assert_close(logits_of_export(place_of(job)), logits(made["base"]), rtol=0,
                               atol=0.5 if format == "pth" else 1e-5)


def test_an_adapter_for_peft(database, made):
    state, job = export(row(made["adapter"]), "peft")
    path = place_of(job)
    assert state == "completed" and sorted(p.name for p in path.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, "base-step-1")
    given, said = load_file(made["adapter"] / "adapter_model.safetensors"), load_file(
        path / "adapter_model.safetensors")
    assert given.keys() == said.keys() and all(torch.equal(given[n], said[n]) for n in given)


def test_an_adapter_for_upstream(database, made):
    state, job = export(row(made["square"]), "minimind_lora")
    assert state == "completed"
    path = place_of(job)
    _, weights = read_adapter(made["square"])
    saved = torch.load(path, weights_only=True)
    name = "model.layers.1.self_attn.q_proj"
    assert torch.equal(saved[f"{name}.lora.A.weight"], weights[f"{name}.lora_A"].half())
    assert torch.equal(saved[f"{name}.lora.B.weight"], (2 * weights[f"{name}.lora_B"]).half()), "alpha / r is in it"


def test_what_upstream_has_no_place_for_is_said_and_nothing_is_left(database, made):
    state, job = export(row(made["adapter"]), "minimind_lora")
    assert state == "failed" and "Upstream has adapters beside q_proj and o_proj alone" in job.error["message"]
    assert "peft" in job.error["hint"] and left() == []


def test_a_damaged_checkpoint_is_found_and_offered_no_more(database, made, tmp_path):
    shutil.copytree(made["base"].parent, tmp_path / "copy")
    path = tmp_path / "copy" / "base"
    id = row(path, "sft")
    (path / "model.safetensors").write_bytes(b"nothing of use")
    state, job = export(id, "hf")
    assert state == "failed" and "is damaged" in job.error["message"] and left() == []
    with db.reading() as session:
        assert session.get(Checkpoint, id).state == "corrupt"


def test_one_that_is_gone_is_said(database, made):
    id = row(made["base"], "sft")
    with db.transaction() as session:
        session.get(Checkpoint, id).state = "deleted"
    state, job = export(id, "hf")
    assert state == "failed" and "not there any more" in job.error["message"]


def test_a_second_try_begins_anew(database, made):
    """What a killed attempt has left is in nobody's way."""
    id = row(made["base"], "sft")
    with db.transaction() as session:
        payload = {"checkpoint_id": id, "base_checkpoint_id": None, "format": "hf", "name": "m", "base_name": "b"}
        job = queue.enqueue_job(session, "checkpoint_export", payload, user_id="local")
        job.payload = {**payload, "export_id": job.id}
        job_id = job.id
    for hidden in (f".{job_id}.exporting", job_id):
        (get_settings().exports_dir / hidden).mkdir(parents=True)
        (get_settings().exports_dir / hidden / "half").write_text("half")
    with db.transaction() as session:
        claimed = queue.claim_job(session, HOST)
    assert jobs.execute(*claimed) == "completed"
    assert [p.name for p in (get_settings().exports_dir / job_id).iterdir()] == ["m"] and left() == [job_id]
