"""A ``.pth`` file is a program for the unpickler: nothing of it runs, nothing of it takes the machine."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from pickle import dumps

import pytest
import torch

from minimind.errors import CheckpointError
from minimind.formats import pth, pth_reader
from minimind.formats.pth import save_pth
from minimind.formats.source import load_weights_from
from minimind.formats.tensors import EMBEDDING, HEAD
from tests.minimind.shapes import LLAMA, QWEN, SHARED_MOE, random_weights

GATE = "model.layers.1.mlp.gate_proj.weight"


class Command:
    """What pickle runs when it meets it."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_a_file_is_read_by_another_process(tmp_path: Path) -> None:
    weights = random_weights(QWEN)
    source = load_weights_from(save_pth(tmp_path / "model.pth", QWEN, weights))
    assert all(torch.equal(source.weights[n], weights[n].half().float()) for n in weights)


def test_commands_in_it_do_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({EMBEDDING: torch.ones(2, 2), "x": Command(f"touch {tmp_path}/it-ran")}, path)
    with pytest.raises(CheckpointError) as raised:
        load_weights_from(path)
    assert "model.pth holds more than tensors: it asks for 'posix.system', which was not run" in str(raised.value)
    assert not (tmp_path / "it-ran").exists()
    torch.load(path, **{"weights_only": False})  # the trap is one: this runs it
    assert (tmp_path / "it-ran").exists()


@pytest.mark.usefixtures("no_other_process")
def test_commands_in_other_pickles_do_not_run(tmp_path: Path) -> None:
    trap = {EMBEDDING: Command(f"touch {tmp_path}/it-ran")}
    torch.save(trap, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth").write_bytes(dumps(trap))
    for name in ("old.pth", "plain.pth"):
        with pytest.raises(CheckpointError):
            load_weights_from(tmp_path / name)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="other kernels do not hold a process to a limit")
def test_a_small_file_cannot_take_the_memory(tmp_path: Path) -> None:
    """Compressed zeros: 640 MB of a tensor in 3 MB of a file."""
    plain, path = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({EMBEDDING: torch.zeros(1 << 10, dtype=torch.uint8)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data.pkl"):  # the number of elements, of the tensor and of its storage
                assert data.count(b"M\x00\x04") == 2
                data = data.replace(b"M\x00\x04", b"J" + (40 << 24).to_bytes(4, "little"))
            if entry.filename.endswith("data/0"):
                with new.open(entry.filename, "w") as file:
                    for _ in range(40):
                        file.write(bytes(1 << 24))
            else:
                new.writestr(entry.filename, data)
    assert path.stat().st_size < 5 << 20
    answer = pth._read_apart(path, tmp_path / "out")
    assert answer["problem"] == "memory" and "allocate" in answer["detail"], "it was unpacked before anyone minded"
    assert "far more memory" in pth.PROBLEMS["memory"][0]


def test_a_reader_that_dies_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_pth(tmp_path / "model.pth", QWEN, random_weights(QWEN))
    monkeypatch.setattr(pth.sys, "executable", "/bin/false")
    with pytest.raises(CheckpointError, match="model.pth could not be read within the limits"):
        load_weights_from(path)


@pytest.mark.usefixtures("no_other_process")
def test_tensors_that_repeat_themselves(tmp_path: Path) -> None:
    torch.save({EMBEDDING: torch.ones(1).expand(1 << 40)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="far more memory"):
        load_weights_from(tmp_path / "x.pth")


@pytest.mark.usefixtures("no_other_process")
def test_damaged_files(tmp_path: Path) -> None:
    path = save_pth(tmp_path / "model.pth", QWEN, random_weights(QWEN))
    whole = path.read_bytes()
    for data in (whole[:len(whole) // 2], whole[:-1], whole[:100], b"", b"not a model at all", b"\x80\x02}q\x00."[:3],
                 b"PK\x03\x04" + bytes(200)):
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as raised:
            load_weights_from(path)
        assert f"{path} is damaged or not a .pth file: " in raised.value.message
        assert "weights_only" not in raised.value.message
        assert "copy or download" in raised.value.hint


@pytest.mark.usefixtures("no_other_process")
@pytest.mark.parametrize(("content", "says"), [
    ([torch.ones(2)], "holds no weights: it is a list"),
    (torch.ones(2), "holds no weights: it is a Tensor"),
    ({}, "holds no weights"),
    ({"model": {}}, "holds no weights"),
    ({EMBEDDING: torch.ones(2, 2), "epoch": 3}, "the entry 'epoch', which is not a tensor"),
    ({3: torch.ones(2)}, "unusable name 3"),
    ({"a\nb": torch.ones(2)}, "unusable name"),
    ({EMBEDDING: torch.eye(3).to_sparse()}, "which is not a plain tensor"),
    ({EMBEDDING: torch.ones(2, 2, dtype=torch.complex64)}, "which is not a plain tensor"),
    ({EMBEDDING: torch.ones(2, 2, device="meta")}, "which is not a plain tensor"),
    ({EMBEDDING: torch.ones(2, 2, dtype=torch.int8)}, "is of the type int8"),
    ({"module.a": torch.ones(2), "a": torch.ones(2)}, "with and without a wrapper's prefix"),
    ({"fc.weight": torch.ones(2, 2)}, f"lacks the tensor {EMBEDDING}"),
    ({"tok_embeddings.weight": torch.ones(2, 2)}, "weights of MiniMind 1"),
    ({"model.layers.0.self_attn.q_proj.lora.A.weight": torch.ones(2, 2)}, "a LoRA adapter"),
    ({"vision_proj.mlp.0.weight": torch.ones(2)}, "a vision model"),
    ({EMBEDDING: torch.ones(4)}, r"embed_tokens.weight in .* has the shape \[4\], and a matrix is needed"),
])
def test_files_without_a_model(tmp_path: Path, content: object, says: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=says) as raised:
        load_weights_from(tmp_path / "x.pth")
    assert "x.pth" in raised.value.message and raised.value.hint


@pytest.mark.usefixtures("no_other_process")
@pytest.mark.parametrize(("config", "name", "tensor", "says"), [
    (QWEN, GATE, None, f"lacks the tensor {GATE}"),
    (QWEN, GATE, torch.ones(95, 64), rf"{GATE} in .* has the shape \[95, 64\], and the model needs \[96, 64\]"),
    (QWEN, "model.layers.0.self_attn.k_proj.weight", torch.ones(65, 64), "are not whole heads of 16"),
    (LLAMA, "model.layers.0.self_attn.q_proj.weight", torch.ones(60, 64), "models without q/k norm have 8 query heads"),
    (QWEN, "model.layers.999999999.x", torch.ones(1), "num_hidden_layers is 1000000000"),
    (QWEN, "model.layers.1.extra", torch.ones(1), "does not know: 'model.layers.1.extra'"),
    (SHARED_MOE, "model.layers.2.mlp.experts.3.up_proj.weight", None, r"lacks .*layers.2.mlp.experts.3.up_proj"),
    (QWEN, HEAD, torch.ones(90, 64), r"lm_head.weight in .* has the shape \[90, 64\]"),
])
def test_tensors_that_do_not_fit(tmp_path: Path, config, name: str, tensor: torch.Tensor | None, says: str) -> None:
    weights = {**random_weights(config), name: tensor}
    torch.save({n: t for n, t in weights.items() if t is not None}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=says):
        load_weights_from(tmp_path / "x.pth")


@pytest.mark.usefixtures("no_other_process")
def test_weights_that_are_not_finite_are_warned_of(tmp_path: Path) -> None:
    weights = random_weights(QWEN)
    weights[GATE][0, 0] = float("inf")
    torch.save(weights, tmp_path / "x.pth")
    [warning] = load_weights_from(tmp_path / "x.pth").warnings
    assert GATE in warning and "x.pth" in warning and "not finite" in warning
    with pytest.raises(CheckpointError, match=f"{GATE} has values that float16 cannot hold"):
        save_pth(tmp_path / "out.pth", QWEN, weights)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def test_problems_have_sentences() -> None:
    source = Path(pth_reader.__file__).read_text()
    used = {kind for kind in pth.PROBLEMS if f'"{kind}"' in source}
    assert used == set(pth.PROBLEMS)
