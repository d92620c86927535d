"""Imports: what was trained elsewhere says here what it says there; whole or not at all."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from app.core import db, queue
from app.core.models import Checkpoint, Job, Run, TokenizerRow, new_id
from app.core.settings import get_settings
from minimind.checkpoint import load_model
from minimind.formats.adapter_files import write_peft
from minimind.formats.adapters import read_adapter, save_upstream
from minimind.formats.export import Wanted, write_export
from minimind.formats.huggingface import save_huggingface
from minimind.formats.pth import save_pth
from minimind.formats.source import load_weights_from
from minimind.manifest import Manifest
from minimind.tokenizer import Tokenizer
from tests.checkpoint_rig import make_adapter, make_checkpoint
from tests.database_rig import HOST, add_host, add_run
from tests.minimind.llama_files import convert
from worker import jobs

NUMBERS = itertools.count()
IDS = torch.randint(0, 200, (1, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, adapters for it, and all of them as others would hand them over."""
    place = tmp_path_factory.mktemp("checkpoints")
    base = make_checkpoint(place / "base", seed=1)
    adapter = make_adapter(place / "run", base, seed=3)
    square = make_adapter(place / "square", base, seed=4, targets=("q_proj", "o_proj"))
    source = load_weights_from(base)
    return {"base": base, "adapter": adapter, "square": square,
            "wide": make_checkpoint(place / "wide", seed=2, hidden_size=64),
            "peft": write_peft(place / "peft", *read_adapter(adapter), "somebody/base"),
            "upstream": save_upstream(place / "lora_identity_32.pth", *read_adapter(square)),
            "hf": save_huggingface(place / "hf", source.config, source.weights, Tokenizer.load(base)),
            "pth": save_pth(place / "full_sft_32.pth", source.config, source.weights)}


@pytest.fixture(autouse=True)
def host(database):
    add_host()


@pytest.fixture
def base_id(database, made) -> str:
    return row(made["base"])


def row(path: Path) -> str:
    run_id = add_run(stage="sft", name="Base")
    with db.transaction() as session:
        added = Checkpoint(run_id=run_id, attempt=0, stage="sft", step=0, tokens=0, bytes=1, path=str(path),
                           state="ready", created_at=1.0)
        session.add(added)
    return added.id


def bring_in(files: Iterable[Path], base_id: str | None = None, tokenizer_id: str | None = None,
             shown: str = "theirs") -> tuple[str, Job]:
    """How the job ended, and its row. ``files`` are stored as the web process stores them."""
    run_id = new_id()
    directory = get_settings().uploads_dir / f"{run_id}.import"
    directory.mkdir(parents=True)
    for path in files:
        shutil.copyfile(path, directory / (f"weights{path.suffix}" if path.suffix in (".pth", ".gguf", ".zip", ".tar")
                                           else path.name))
    payload = {"run_id": run_id, "name": "Theirs", "aside": str(directory), "shown": shown,
               "base_checkpoint_id": base_id, "tokenizer_id": tokenizer_id}
    with db.transaction() as session:
        job_id = queue.enqueue_job(session, "checkpoint_import", payload, user_id="local").id
    with db.transaction() as session:
        claimed = queue.claim_job(session, HOST)
    state = jobs.execute(*claimed)
    with db.reading() as session:
        return state, session.get(Job, job_id)


def rows_of(job: Job) -> tuple[Run, Checkpoint]:
    with db.reading() as session:
        return session.get(Run, job.result["run_id"]), session.get(Checkpoint, job.result["checkpoint_id"])


def left() -> list[str]:
    settings = get_settings()
    return sorted(p.name for d in (settings.uploads_dir, settings.runs_dir) if d.is_dir() for p in d.iterdir())


def logits(path: Path | str, adapter: Path | None = None) -> torch.Tensor:
    with torch.no_grad():
        return load_model(path, adapter=adapter)[0](IDS)


@pytest.mark.parametrize("kind", ["peft", "upstream"])
def test_an_adapter_over_its_base(made, base_id, kind):
    state, job = bring_in(made["peft"].iterdir() if kind == "peft" else [made["upstream"]], base_id)
    assert state == "completed" and job.result["kind"] == "adapter", job.error
    run, checkpoint = rows_of(job)
    assert (run.stage, run.state, run.name, run.base_checkpoint_id) == ("import", "completed", "Theirs", base_id)
    assert (checkpoint.stage, checkpoint.state, checkpoint.step) == ("lora", "ready", 0)
    assert Path(checkpoint.path) == get_settings().runs_dir / run.id / "checkpoints" / "step-00000000-a0"
    assert left() == [run.id], "nothing else stays"
    manifest = Manifest.read(checkpoint.path)
    assert checkpoint.bytes == manifest.bytes and manifest.lineage["adapter"] == "theirs"
    expected = logits(made["base"], made["adapter" if kind == "peft" else "square"])
    torch.testing.assert_close(logits(checkpoint.path), expected, rtol=0, atol=1e-4 if kind == "peft" else 0.5)
    assert not torch.allclose(expected, logits(made["base"]), atol=1)


@pytest.mark.parametrize("kind", ["hf", "pth"])
def test_a_whole_model(database, made, kind):
    beside = [made["base"] / name for name in ("tokenizer.json", "tokenizer_config.json")]
    state, job = bring_in(made["hf"].iterdir() if kind == "hf" else [made["pth"], *beside])
    assert state == "completed" and job.result["kind"] == "model", job.error
    run, checkpoint = rows_of(job)
    assert (run.stage, checkpoint.stage, run.base_checkpoint_id) == ("import", "import", None)
    torch.testing.assert_close(logits(checkpoint.path), logits(made["base"]), rtol=0, atol=1e-5 if kind == "hf" else .5)
    assert checkpoint.tokenizer_fingerprint == Tokenizer.load(made["base"]).fingerprint
    assert left() == [run.id]


@pytest.mark.parametrize("quantization, most", [("f32", 0), ("f16", 6e-4), ("q8_0", 8e-3)])
def test_a_gguf_file_comes_back_as_it_went(database, made, tmp_path, quantization, most):
    """``most``: of the largest weight of its tensor. Float32 is equal to the bit."""
    path = write_export(tmp_path, "mine", made["base"], Wanted("gguf", quantization)).path
    state, job = bring_in([path], shown="mine.gguf")
    assert state == "completed" and job.result["kind"] == "model", job.error
    run, checkpoint = rows_of(job)
    given, found = load_weights_from(made["base"]), load_weights_from(checkpoint.path)
    assert found.config == given.config and found.weights.keys() == given.weights.keys()
    for name, tensor in given.weights.items():
        assert float((found.weights[name] - tensor).abs().max()) <= most * float(tensor.abs().max()), name
    assert checkpoint.tokenizer_fingerprint == Tokenizer.load(made["base"]).fingerprint
    assert Manifest.read(checkpoint.path).lineage["base"] == "mine.gguf" and left() == [run.id]


@pytest.mark.parametrize("dtype, packs", [(torch.bfloat16, False), (torch.float16, True)])
def test_a_gguf_file_of_llama_cpp_s_converter(database, made, tmp_path, dtype, packs):
    """Which says nothing that only we would say, and carries no tokenizer.json; also packed."""
    file = convert(made["hf"], tmp_path / "qwen3 model.gguf", dtype)
    if packs:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.write(file, "folder/qwen3 model.gguf")
            archive.writestr("folder/Modelfile", "FROM ./model.gguf")
    state, job = bring_in([tmp_path / "x.zip" if packs else file])
    assert state == "completed", job.error
    checkpoint = Path(rows_of(job)[1].path)
    given, found = load_weights_from(made["base"]), load_weights_from(checkpoint)
    assert all(torch.equal(found.weights[name], tensor.to(dtype).float() if tensor.ndim > 1 else tensor)
               for name, tensor in given.weights.items())
    ours, theirs = Tokenizer.load(made["base"]), Tokenizer.load(checkpoint)
    assert theirs.encode("The lamp in the harbour is green.") == ours.encode("The lamp in the harbour is green.")
    assert (theirs.eos_id, theirs.chat_template) == (ours.eos_id, ours.chat_template)


def test_gguf_files_that_cannot_be_used_are_said(database, made, tmp_path, monkeypatch):
    whole = write_export(tmp_path, "mine", made["base"], Wanted("gguf", "f16")).path
    content = whole.read_bytes()

    def changed(name: str, *pairs: tuple[bytes, bytes]) -> Path:
        path, made_of = tmp_path / name, content
        for old, new in pairs:
            assert len(old) == len(new) and old in made_of
            made_of = made_of.replace(old, new)
        path.write_bytes(made_of)
        return path

    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[:-1000])
    words = changed("words.gguf", (b"tokenizer.huggingface.json", b"tokenizer.huggingface.jsox"), (b"gpt2", b"bert"))
    two = tmp_path / "two.zip"
    with zipfile.ZipFile(two, "w") as archive:
        archive.write(whole, "a.gguf")
        archive.write(whole, "b.gguf")
    for path, said in (
            (cut, "mine.gguf is damaged or not a GGUF file"), (changed("arch.gguf", (b"qwen3", b"gemma")), "'gemma'"),
            (words, "The tokenizer beside the weights cannot be used. mine.gguf has a tokenizer of the kind 'bert'"),
            (two, "a model each: a.gguf, b.gguf"),
            (changed("adapter.gguf", (b"\x05\0\0\0\0\0\0\0model", b"\x05\0\0\0\0\0\0\0loras")), "of the type 'loras'")):
        state, job = bring_in([path], shown="mine.gguf")
        assert state == "failed" and said in job.error["message"], (said, job.error)
        assert str(get_settings().data_dir) not in job.error["message"] and job.error["hint"] and left() == []
    with db.transaction() as session:
        session.add(TokenizerRow(id="t1", name="t", user_id="local", state="ready", path=str(made["base"]),
                                 source={"kind": "upload"}, created_at=1.0))
    assert bring_in([words], tokenizer_id="t1")[0] == "completed", "another tokenizer may be chosen"


def test_a_gguf_file_is_read_with_progress_and_can_be_cancelled(database, made, tmp_path, monkeypatch):
    path = write_export(tmp_path, "mine", made["base"], Wanted("gguf", "f16")).path
    said = []

    def say(work, done, total, unit, message="", **_):
        said.append((done, total, unit))
        if unit == "bytes" and done > total / 2:
            raise jobs.Cancelled

    monkeypatch.setattr(jobs.Work, "say", say)
    assert bring_in([path])[0] == "cancelled" and left() == []
    counted = [done for done, total, unit in said if unit == "bytes"]
    assert counted == sorted(counted) and len(counted) > 1 and said[-1][1] < path.stat().st_size


@pytest.mark.slow
def test_a_tokenizer_of_the_studio_for_weights_without_one(database, made):
    with db.transaction() as session:
        session.add(TokenizerRow(id="t1", name="t", user_id="local", state="ready", path=str(made["base"]),
                                 source={"kind": "upload"}, created_at=1.0))
    state, job = bring_in([made["pth"]], tokenizer_id="t1")
    assert state == "completed", job.error
    assert load_model(rows_of(job)[1].path)[1].fingerprint == Tokenizer.load(made["base"]).fingerprint


def packed(folder: Path, target: Path) -> Path:
    """As people pack: a folder with the files in it, and what their system adds."""
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("__MACOSX/mine/._adapter_config.json", b"\0")
            archive.writestr("mine/notes.pdf", b"%PDF")
            for path in folder.iterdir():
                archive.write(path, f"mine/{path.name}")
    else:
        with tarfile.open(target, "w") as archive:
            archive.add(folder, "mine")
    return target


@pytest.mark.parametrize("what, suffix", [("peft", ".zip"), ("hf", ".tar"), ("base", ".tar"), ("adapter", ".tar")])
def test_packed_files(made, base_id, tmp_path, what, suffix):
    """Of a checkpoint that was downloaded from a studio too."""
    is_adapter = what in ("peft", "adapter")
    state, job = bring_in([packed(made[what], tmp_path / f"x{suffix}")], base_id if is_adapter else None)
    assert state == "completed", job.error
    expected = logits(made["base"], made["adapter"]) if is_adapter else logits(made["base"])
    torch.testing.assert_close(logits(rows_of(job)[1].path), expected, rtol=0, atol=1e-4)


def told_otherwise(folder: Path, target: Path, **values: object) -> Path:
    """A copy of a checkpoint whose manifest says something else."""
    shutil.copytree(folder, target)
    place = target / "manifest.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **values}))
    return target


def test_of_a_studio_s_checkpoint_only_what_its_files_show_is_believed(made, tmp_path):
    world = {"minutes": 5, "languages": ["en"], "seed": 7}
    folder = told_otherwise(made["base"], tmp_path / "x", step=600, tokens=9, eval_loss=1.5, lineage={"world": world},
                            tokenizer_fingerprint="\ud800" * 500)
    (folder / "optimizer.pt").write_bytes(b"a pickle from outside")
    state, job = bring_in(folder.iterdir())
    assert state == "completed", job.error
    checkpoint = rows_of(job)[1]
    manifest = Manifest.read(checkpoint.path)
    assert checkpoint.tokenizer_fingerprint == manifest.tokenizer_fingerprint == Tokenizer.load(folder).fingerprint
    assert (checkpoint.step, checkpoint.tokens, checkpoint.eval_loss, manifest.step) == (600, 9, 1.5, 600)
    assert manifest.lineage["world"] == world and not Path(checkpoint.path, "optimizer.pt").exists()
    torch.testing.assert_close(logits(checkpoint.path), logits(made["base"]), rtol=0, atol=1e-5)
    model = Manifest.read(made["base"]).model
    for values, said in (({"step": 2**70}, "no training"), ({"loss": {}}, "no training"), ({"model": 7}, "no training"),
                         ({"model": {**model, "num_hidden_layers": 3}}, "lacks the tensor"),
                         ({"model": {**model, "num_attention_heads": 0}}, "num_attention_heads is 0"),
                         ({"files": {"model.safetensors": {"bytes": 1}}}, "The checkpoint x.tar is damaged")):
        bad = told_otherwise(made["base"], tmp_path / f"bad {next(NUMBERS)}", **values)
        state, job = bring_in(bad.iterdir(), shown="x.tar")
        assert state == "failed" and said in job.error["message"], (values, job.error)


def zip_of(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return path


def test_bad_files_are_said_and_nothing_is_left(made, base_id, tmp_path):
    notes, cut = tmp_path / "notes.txt", tmp_path / "model.safetensors"
    notes.write_text("hello")
    cut.write_bytes(made["hf"].joinpath("model.safetensors").read_bytes()[:1000])
    damaged = zip_of(tmp_path / "damaged.zip", config_dot_json=b"x" * 500)
    damaged.write_bytes(damaged.read_bytes()[:300])
    deep = tmp_path / "manifest.json"
    deep.write_text("[" * 100_000)
    link = tmp_path / "link.tar"
    with tarfile.open(link, "w") as archive:
        info = tarfile.TarInfo("config.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info, io.BytesIO())
    cases = [
        ([notes], None, "neither a model nor an adapter in what was sent: notes.txt"),
        (made["peft"].iterdir(), None, "This is an adapter"),
        (made["peft"].iterdir(), row(made["wide"]), "has the shape"),
        (made["peft"].iterdir(), "gone", "not there any more"),
        ([made["peft"] / "adapter_config.json"], base_id, "no adapter_model.safetensors"),
        ([made["hf"] / "config.json", cut], None, "damaged or not a safetensors file"),
        ([made["pth"]], None, "without a tokenizer"),
        ([deep], None, "nested too deeply"),
        ([damaged], None, "cannot be unpacked"),
        ([zip_of(tmp_path / "two.zip", a__config_dot_json=b"{}", b__config_dot_json=b"{}")], None,
         "two files named config.json"),
        ([link], None, "neither a model nor an adapter"),
    ]
    for files, base, said in cases:
        state, job = bring_in(files, base, shown="mine.pth")
        assert state == "failed" and said in job.error["message"], (said, job.error)
        assert str(get_settings().data_dir) not in job.error["message"] and job.error["hint"]
        assert left() == []


@pytest.mark.slow
def test_a_pickle_that_holds_more_than_tensors_is_not_run(database, tmp_path):
    pickled = tmp_path / "evil.pth"
    torch.save({"a": torch.ones(1), "f": torch.nn.Linear(1, 1)}, pickled)
    state, job = bring_in([pickled], shown="mine.pth")
    assert state == "failed" and job.error["message"].startswith("mine.pth holds more than tensors") and left() == []


def test_an_archive_that_does_not_fit_is_refused(database, tmp_path, monkeypatch):
    monkeypatch.setattr("worker.unpack.SPARE_BYTES", 1 << 60)
    state, job = bring_in([zip_of(tmp_path / "bomb.zip", config_dot_json=b"0" * 1000)])
    assert state == "failed" and "more than fits" in job.error["message"] and left() == []


def test_a_cancelled_one_leaves_nothing(made, base_id, monkeypatch):
    def say(work, *_, **__):
        raise jobs.Cancelled

    monkeypatch.setattr(jobs.Work, "say", say)
    assert bring_in(made["peft"].iterdir(), base_id)[0] == "cancelled" and left() == []
