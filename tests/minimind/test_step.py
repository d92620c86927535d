"""One step: nothing in it waits for a device, its numbers may come late, and its objective with experts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minimind.control import write_control
from minimind.data.packing import Rows
from minimind.data.sampler import Window
from minimind.distributed import World
from minimind.model import Head, Losses
from minimind.objectives import Batch, NextToken
from minimind.run_dir import RunDir
from minimind.speed import Meter
from minimind.step import Numbers, Stepper
from minimind.trainer import Trainer
from tests.minimind.training import at_step, curve, events, result, start, weights, write_texts


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "data.jsonl")


class HostReads(TorchDispatchMode):
    """Counts the places where the host asks a tensor for its value; a GPU would have to finish first."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_asks_the_device_for_nothing(tmp_path: Path, data: Path, scaled: bool,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping, the finite check, the loss scale and both optimizers included; only ``Numbers.read`` reads."""
    take, tolist, reads = Stepper.take, Tensor.tolist, HostReads()

    def watched(self: Stepper, *arguments: object) -> tuple:
        with monkeypatch.context() as patch, reads:
            patch.setattr(Tensor, "tolist", lambda tensor: pytest.fail("the host reads a tensor"))
            return take(self, *arguments)

    if scaled:
        monkeypatch.setattr(Stepper, "new_scaler", lambda self: torch.amp.GradScaler("cpu", init_scale=2.0))
    monkeypatch.setattr(Stepper, "take", watched)
    assert start(tmp_path, "--max_steps", 3, "--accumulation_steps", 2, "--grad_clip", 0.1) == 0
    assert reads.count == 0 and len(curve(tmp_path / "run")) == 3
    with reads:
        assert float(torch.ones(())) == 1 and reads.count == 1  # the instrument works
    assert Tensor.tolist is tolist


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_on_a_gpu_waits_for_nothing(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Stepper.take

    def watched(self: Stepper, window: Window, *rest: object) -> tuple:
        torch.cuda.set_sync_debug_mode("error" if window.step > 2 else "default")  # the first ones fill caches
        try:
            return take(self, window, *rest)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Stepper, "take", watched)
    assert start(tmp_path, "--max_steps", 6, "--device", "cuda") == 0


def late(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As on a GPU: numbers are taken in one step later. The order of what happens."""
    order: list[str] = []
    init, take, read = Trainer.__init__, Stepper.take, Numbers.read

    def patched_init(self: Trainer, *arguments: object, **named: object) -> None:
        init(self, *arguments, **named)
        self.ahead = 1

    def patched_take(self: Stepper, window: Window, *rest: object) -> tuple:
        order.append(f"take {window.step}")
        return take(self, window, *rest)

    def patched_read(self: Numbers) -> list[float]:
        order.append("read")
        return read(self)

    monkeypatch.setattr(Trainer, "__init__", patched_init)
    monkeypatch.setattr(Stepper, "take", patched_take)
    monkeypatch.setattr(Numbers, "read", patched_read)
    return order


def test_numbers_that_come_late_change_nothing(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--max_steps", 9, "--eval_interval", 4, "--sample_interval", 3, "--save_interval", 6,
               "--log_interval", 2)
    counted: list[int] = []
    monkeypatch.setattr(Meter, "add", lambda self, tokens, add=Meter.add: (counted.append(tokens), add(self, tokens)))
    assert start(tmp_path, *options, out="now") == 0
    order = late(monkeypatch)
    assert start(tmp_path, *options, out="late") == 0
    assert order[:7] == ["take 1", "take 2", "read", "take 3", "read", "read", "take 4"]  # a sample after step 3
    assert weights(tmp_path / "now") == weights(tmp_path / "late")
    for kind in ("metrics", "eval", "sample"):
        assert curve(tmp_path / "now", kind) == curve(tmp_path / "late", kind)
    kept = [[(e["type"], e["step"], e["tokens"]) for e in events(tmp_path / out, 1)
             if e["type"] in ("metrics", "eval", "sample", "checkpoint")] for out in ("now", "late")]
    assert kept[0] == kept[1]
    assert counted[:9] == counted[9:] and sum(counted[:9]) == events(tmp_path / "now", 1, "metrics")[-1]["tokens"]


def test_a_pause_waits_for_the_last_numbers(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late(monkeypatch)
    at_step(monkeypatch, 4, lambda: write_control(RunDir(tmp_path / "run").attempt(1).control, "pause"))
    assert start(tmp_path, "--max_steps", 50) == 0
    paused = result(tmp_path / "run")
    assert paused["status"] == "paused" and paused["step"] == 6  # step 5 was under way when step 4 was reported
    assert max(curve(tmp_path / "run")) == 6
    [saved] = events(tmp_path / "run", 1, "checkpoint")
    assert saved["data"]["loss"] == dict(curve(tmp_path / "run")[6])["loss"]


class FakeExperts(nn.Module):
    """hidden = w * ids, balance = v * mean of ids; one layer of two experts: odd and even ids."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
        self.config = SimpleNamespace(num_hidden_layers=1)

    def forward(self, ids: Tensor, *, segments: object, head: Head) -> Losses:
        odd = (ids % 2).sum()
        load = torch.stack([ids.numel() - odd, odd])[None].float()
        loss, sums = head(self.w * ids, self.w)
        return Losses(loss, self.v * ids.float().mean(), load, sums)


class SumOfLearnt(NextToken):
    """The sum of hidden where something is learnt, and beside it how often that is."""

    metrics = ("learnt",)

    def __call__(self, hidden: Tensor, output_weight: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        learnt = batch.targets != -100
        return (hidden * learnt).sum(), learnt.sum().view(1)


class FakeCache:
    is_masked = False

    def ids_at(self, places: np.ndarray) -> np.ndarray:
        return places % 7 + 1


class Pair(World):
    """One of two ranks whose sums are made outside."""

    def agree(self, numbers: Tensor, host: list[float]) -> tuple[Tensor, list[float]]:
        self.numbers = numbers
        return numbers, host


@pytest.mark.parametrize("size", [1, 2])
def test_the_objective_with_experts_weighs_micro_batches_by_their_tokens(size: int) -> None:
    """Rows of 3, 5 and 4 tokens, one a micro-batch: against the formula in minimind/step.py."""
    lengths = np.array([3, 5, 4])
    starts = np.array([0, 3, 8])
    rows = Rows(FakeCache(), starts, lengths, np.zeros(3, bool), np.arange(4), lengths - 1, lengths)
    ids = [FakeCache().ids_at(np.arange(s, s + n)) for s, n in zip(starts, lengths)]
    window = Window(1, 0, 0, np.array([0, 1, 2]))
    grads, numbers = {"w": 0.0, "v": 0.0}, 0
    for rank in range(size):
        model = FakeExperts()
        stepper = Stepper(model, None, Pair(rank, size), rows, dtype=torch.float32, attention="sdpa", batch_size=1,
                          grad_clip=0.0, objective=SumOfLearnt())
        numbers = numbers + stepper.accumulate(window)
        grads = {name: grads[name] + p.grad / size for name, p in model.named_parameters()}  # as DDP averages
    nats = sum(int(i[:-1].sum()) for i in ids)  # the last token of a piece has no target
    targets, tokens = 2 + 4 + 3, 3 + 5 + 4
    assert float(grads["w"]) == pytest.approx(nats / targets)
    assert float(grads["v"]) == pytest.approx(sum(int(i.sum()) for i in ids) / tokens)  # mean_b * tokens_b / tokens
    outcome = stepper.outcome(Numbers(torch.cat([torch.ones(1).double(), numbers])), window)
    assert outcome.loss == pytest.approx(2 * nats / targets)
    assert outcome.metrics == {"learnt": 1.0}
    assert outcome.balance_loss == pytest.approx(3 * sum(int(i.sum()) for i in ids) / tokens)
    odd = sum(int((i % 2).sum()) for i in ids)
    # the rank without a row in the second round passes throwaway tokens, which count nowhere
    assert outcome.expert_load_max == pytest.approx(2 * max(odd, tokens - odd) / tokens)
