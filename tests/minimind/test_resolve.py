"""What ``auto`` becomes, with its reason, and what an older version of the program has left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minimind import device as devices
from minimind import resolve as resolution
from minimind import session
from minimind.config import parse_config
from minimind.errors import ConfigError
from minimind.rehearsal import Rehearsal
from minimind.speed import Meter, matmul_peak
from tests.minimind.training import events, result, run, start, write_texts

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "data.jsonl")


def decided(total_steps: int | None, s_per_step: float, **options: object) -> tuple[bool, int]:
    """``(compile?, how often a step was measured)``."""
    asked = []

    def measure() -> float:
        asked.append(1)
        return s_per_step

    config = parse_config("pretrain", options)
    compiled, reason = resolution.decide_compile(config, {"total_steps": total_steps, "device": "cpu"}, None,
                                                   measure)
    assert reason
    return compiled, len(asked)


def test_compiling_is_for_long_runs() -> None:
    assert decided(None, 0.0, max_minutes=5.0) == (False, 0)
    assert decided(None, 0.0, max_minutes=60.0) == (True, 0)
    assert decided(100, 100.0) == (False, 0)  # not worth a look
    assert decided(1000, 0.01) == (False, 1)
    assert decided(1000, 10.0) == (True, 1)
    assert resolution.compile_pays("cuda", 300)[0] and not resolution.compile_pays("cpu", 300)[0]


def test_the_decision_is_made_once_and_kept(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolution, "COMPILE_MIN_STEPS", 3)
    monkeypatch.setattr(session, "missing_for_compile", lambda device: None)
    glances, glance = [], Rehearsal.glance

    def watched(self: Rehearsal) -> float:
        glances.append(glance(self))
        return glances[-1]

    monkeypatch.setattr(Rehearsal, "glance", watched)
    assert start(tmp_path, "--max_steps", 4) == 0
    assert len(glances) == 1 and 0 < glances[0] < 5
    resolved = json.loads((tmp_path / "run/resolved.json").read_text())
    assert resolved["use_compile"] is False and "pays from 15" in resolved["compile_reason"]
    assert resolved["dtype_reason"]
    [line] = [e["data"]["message"] for e in events(tmp_path / "run", 1, "log") if "parameters" in e["data"]["message"]]
    assert resolved["dtype_reason"] in line and f"not compiled ({resolved['compile_reason']})" in line
    (tmp_path / "run/attempts/1/result.json").unlink()  # as if it had been killed
    assert run("pretrain", "--out", tmp_path / "run", "--resume", "auto") == 0
    assert len(glances) == 1


def test_a_machine_without_a_compiler_trains_without_it(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch,
                                                        capfd: pytest.CaptureFixture) -> None:
    """torch.compile would fail in the first step, after everything was prepared."""
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setattr(resolution, "COMPILE_MIN_STEPS", 1)
    monkeypatch.setitem(resolution.COMPILE_PAYS_S, "cpu", 0.0)
    assert start(tmp_path, "--max_steps", 2) == 0
    resolved = json.loads((tmp_path / "run/resolved.json").read_text())
    assert resolved["use_compile"] is False and "no-such-compiler) was not found" in resolved["compile_reason"]
    assert start(tmp_path, "--max_steps", 2, "--use_compile", out="asked") == 2
    assert "torch.compile cannot work here: a compiler" in capfd.readouterr().err


def test_bfloat16_needs_a_cpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_native_bfloat16", lambda: False)
    with pytest.raises(ConfigError) as raised:
        devices.choose_dtype("bfloat16", CPU)
    assert raised.value.problems[0]["field"] == "dtype" and "9 times slower" in str(raised.value)
    monkeypatch.setattr(devices, "has_native_bfloat16", lambda: True)
    assert devices.choose_dtype("bfloat16", CPU) == (torch.bfloat16, "asked for")
    assert devices.choose_dtype("auto", CPU)[0] == torch.float32
    with pytest.raises(ConfigError, match="float16"):
        devices.choose_dtype("float16", CPU)


@pytest.mark.parametrize(("machine", "avx512", "amx", "capabilities", "native"), [
    ("x86_64", False, False, {}, False), ("x86_64", True, False, {}, True), ("x86_64", False, True, {}, True),
    ("aarch64", True, True, {"bf16": False}, False), ("arm64", False, False, {"bf16": True}, True)])
def test_native_bfloat16(machine: str, avx512: bool, amx: bool, capabilities: dict, native: bool,
                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert devices.has_native_bfloat16() is native


def test_a_run_of_an_older_version_goes_on(tmp_path: Path, data: Path) -> None:
    """Options, reasons and fields of the model's shape that it did not know had their defaults."""
    assert start(tmp_path, "--max_steps", 4, "--no_use_compile") == 0
    (tmp_path / "run/attempts/1/result.json").unlink()
    for name in ("run.json", "resolved.json"):
        path = tmp_path / "run" / name
        values = json.loads(path.read_text())
        for key in ("dropout", "batch_tokens", "early_stop", "nan_policy", "save_best", "gradient_checkpointing"):
            values.pop(key, None)
            values.get("config", {}).pop(key, None)
        for key in ("dtype_reason", "compile_reason"):
            values.pop(key, None)
        for key in ("num_experts", "rope_scaling"):
            values.get("model", {}).pop(key, None)
        path.write_text(json.dumps(values))
    assert run("pretrain", "--out", tmp_path / "run", "--resume", "auto") == 0
    assert result(tmp_path / "run", 2)["status"] == "completed"


def test_harmless_options_change_on_resume_and_others_are_named(tmp_path: Path, data: Path,
                                                               capfd: pytest.CaptureFixture) -> None:
    assert start(tmp_path, "--max_steps", 4) == 0
    (tmp_path / "run/attempts/1/result.json").unlink()
    assert run("pretrain", "--out", tmp_path / "run", "--resume", "auto", "--dropout", 0.5) == 2
    assert "dropout was 0.0 and is 0.5 now" in capfd.readouterr().err
    assert run("pretrain", "--out", tmp_path / "run", "--resume", "auto", "--gradient_checkpointing", "--save_best",
               "--nan_policy", "stop") == 0


def test_the_meter_counts_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("minimind.speed.time.perf_counter", lambda: now[0])
    meter = Meter(flops_per_token=1e6, peak_flops=4e8, device=CPU)

    def work(seconds: float, tokens: int) -> None:
        with meter.reading():
            now[0] += seconds / 4
        now[0] += seconds * 3 / 4
        meter.add(tokens)

    work(1.0, 100)
    now[0] += 50.0  # an evaluation
    meter.skip()
    work(1.0, 300)
    found = meter.metrics()
    assert (found["tokens_per_s"], found["mfu"], found["data_wait_share"]) == (200.0, 0.5, 0.25)
    work(2.0, 100)
    assert meter.metrics()["tokens_per_s"] == 50.0


def test_the_peak_is_measured_without_touching_the_random_state() -> None:
    state = torch.get_rng_state()
    peak = matmul_peak.__wrapped__(CPU, torch.float32, torch.get_num_threads())
    assert 1e8 < peak < 1e14 and torch.equal(state, torch.get_rng_state())
