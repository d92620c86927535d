"""How fast does the core train on this GPU, how much of it does that use, and what takes the time?

    ./studio bench gpu --data FILE [FILE ...] [--tokenizer DIR] [--preset minimind-3 minimind-3-moe] [--rows 32 128]
                       [--attention varlen sdpa ...] [--compile on off] [--steps 30] [--no_profile] [--device cuda]

Pretraining steps of the trainer's own ``Stepper`` on packed rows of real text: for every preset the attention kernels
side by side, then without torch.compile, then with more rows a step; the best one is profiled. Tokens are real ones
(rows have no padding). MFU is ``tokens/s * (6 N + 6 L h c) / peak`` with the peak of square products of matrices
measured here, and beside it with that of the data sheet. A mixture of experts is compared with the dense model of the
same number of active parameters; the goal is 70 % of its tokens a second. Without --data the starter corpus is used,
which is not real text. Exit status 2 where there is no GPU; ``--device cpu --preset tiny-cpu`` only shows that the
benchmark itself works.
"""

from __future__ import annotations

import argparse
import gc
import re
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.autograd import DeviceType  # noqa: E402
from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402

from minimind import objectives  # noqa: E402
from minimind.attention import KERNELS, choose_kernel, missing_for  # noqa: E402
from minimind.data import starter  # noqa: E402
from minimind.data.cache import content_hash, open_cache  # noqa: E402
from minimind.data.layouts import detect_layout, iter_rows  # noqa: E402
from minimind.data.mixture import Source  # noqa: E402
from minimind.data.packing import Rows  # noqa: E402
from minimind.data.sampler import Sampler  # noqa: E402
from minimind.device import choose_device, choose_dtype, make_repeatable, missing_for_compile  # noqa: E402
from minimind.distributed import World  # noqa: E402
from minimind.errors import MiniMindError  # noqa: E402
from minimind.model import MiniMindForCausalLM  # noqa: E402
from minimind.optim import Optimizer  # noqa: E402
from minimind.presets import PRESETS, model_config  # noqa: E402
from minimind.speed import Meter, matmul_peak, memory_peak_bytes  # noqa: E402
from minimind.stages.base import texts_of  # noqa: E402
from minimind.stages.pretrain import Pretrain  # noqa: E402
from minimind.step import Stepper  # noqa: E402
from minimind.tokenizer import Tokenizer  # noqa: E402

GOAL_MOE = 0.7  # of the dense model's tokens per second
ROUNDS = 3
WARM_UP_STEPS, PROFILED_STEPS = 5, 3
TOP_KERNELS = 15
#: dense bfloat16 FLOPs per second of NVIDIA's data sheets; the first name that is part of the device's counts
DATA_SHEET = {"H100 PCIe": 756e12, "H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12, "RTX 4090": 165e12}
#: names of kernels (on a CPU: of operations) -> what they are for; the first that fits
GROUPS = {
    "attention": r"flash|fmha|attention|attn|flex",
    "matrix products": r"triton_tem|gemm|cutlass|xmma|nvjet|cublas|splitk|matmul|grouped_mm|::(mm|addmm|bmm|linear)\b",
    "norms, activations, other elementwise": r"^triton_",
    "optimizer and clipping": r"adam|multi_tensor|foreach|lpnorm",
    "copies and casts": r"memcpy|memset|copy|::(_?to|cat|clone|contiguous)\b",
}
REST = "norms, activations, other elementwise"
LOSS, OPTIMIZER = "output layer and loss", "optimizer and clipping"


@dataclass(frozen=True)
class Setup:
    """One way to train. ``rows``: of ``max_seq_len`` tokens, in a step."""

    preset: str
    attention: str
    compiled: bool
    rows: int


@dataclass(frozen=True)
class Result:
    setup: Setup
    tokens_per_s: float
    mfu: float
    memory_bytes: int
    loss: float


class Bench:
    """The machine and the text; the same for all setups."""

    def __init__(self, device: torch.device, dtype: torch.dtype, rows: Rows, vocab_size: int, steps: int):
        self.device, self.dtype, self.rows, self.steps = device, dtype, rows, steps
        self.vocab_size = vocab_size
        self.peak = matmul_peak(device, dtype, torch.get_num_threads())

    def stepper(self, setup: Setup) -> tuple[Stepper, Sampler]:
        torch.manual_seed(0)
        model = MiniMindForCausalLM(model_config(setup.preset, {}, self.vocab_size)).to(self.device)
        if setup.compiled:
            torch.compiler.reset()  # what one model was compiled to counts against the next one's limit
            model.compile_blocks()
        world = World()
        world.device = self.device
        stepper = Stepper(model, Optimizer(model, "adamw", weight_decay=0.1, beta2=0.95), world, self.rows,
                          dtype=self.dtype, attention=setup.attention, batch_size=setup.rows, grad_clip=1.0)
        return stepper, Sampler(len(self.rows), setup.rows, 0)

    def measure(self, setup: Setup) -> Result | None:
        """The median of some rounds; ``None`` where the memory is not enough."""
        try:
            return self._measure(setup)
        except torch.OutOfMemoryError:
            return None
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _measure(self, setup: Setup) -> Result:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        stepper, sampler = self.stepper(setup)
        loss, step = take_steps(stepper, sampler, 1, WARM_UP_STEPS)
        meter = Meter(stepper.model.config.flops_per_token(self.rows.mean_piece_length), self.peak, self.device)
        speeds, used = [], []
        for _ in range(ROUNDS):
            meter.skip()
            first = step
            loss, step = take_steps(stepper, sampler, first, self.steps)
            meter.add(sum(int(self.rows.tokens[sampler.window(s).rows].sum()) for s in range(first, step)))
            metrics = meter.metrics()
            speeds.append(metrics["tokens_per_s"])
            used.append(metrics["mfu"])
        return Result(setup, statistics.median(speeds), statistics.median(used), memory_peak_bytes(self.device), loss)

    def profile(self, setup: Setup) -> None:
        """Where the time of a few steps goes."""
        on_gpu = self.device.type == "cuda"
        stepper, sampler = self.stepper(setup)
        _, step = take_steps(stepper, sampler, 1, WARM_UP_STEPS)
        compute_loss = objectives.linear_cross_entropy

        def named(*arguments: torch.Tensor) -> torch.Tensor:
            with record_function(LOSS):
                return compute_loss(*arguments)

        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
        with mock.patch.object(objectives, "linear_cross_entropy", named), profile(activities=activities) as profiler:
            take_steps(stepper, sampler, step, PROFILED_STEPS)
        events = list(profiler.events())
        spent = Counter[str]()
        kernels = Counter[str]()
        for group, name, seconds in (on_the_gpu if on_gpu else on_the_cpu)(events):
            spent[group] += seconds
            kernels[name] += seconds
        timed = [e for e in events if not on_gpu or e.device_type == DeviceType.CUDA]
        whole = (max(e.time_range.end for e in timed) - min(e.time_range.start for e in timed)) / 1e6
        spent["idle" if on_gpu else "between operations"] = whole - (busy_s(timed) if on_gpu else sum(spent.values()))
        print(f"\n{in_words(setup)}: a step of {whole / PROFILED_STEPS * 1e3:.2f} ms, by what it is for")
        for group, seconds in spent.most_common():
            print(f"  {seconds / PROFILED_STEPS * 1e3:9.3f} ms {seconds / whole:6.1%}  {group}")
        print(f"  the {TOP_KERNELS} largest {'kernels' if on_gpu else 'operations'}:")
        for name, seconds in kernels.most_common(TOP_KERNELS):
            print(f"  {seconds / PROFILED_STEPS * 1e3:9.3f} ms {seconds / whole:6.1%}  {name[:90]}")


def take_steps(stepper: Stepper, sampler: Sampler, first: int, count: int) -> tuple[float, int]:
    """Steps ``first``.., handed to the device one ahead of reading their numbers, as the trainer does it. The last
    one's loss in nats a token, once all is computed, and the next step's number."""
    waiting = None
    for step in range(first, first + count):
        window = sampler.window(step)
        numbers, _ = stepper.take(window, 1e-4, list)
        if waiting is not None:
            waiting.read()
        waiting = numbers
    assert waiting is not None
    loss = stepper.outcome(waiting, window).loss
    if stepper.world.device.type == "cuda":
        torch.cuda.synchronize(stepper.world.device)
    return loss, first + count


def group_of(name: str) -> str:
    return next((group for group, names in GROUPS.items() if re.search(names, name, re.IGNORECASE)), REST)


def owner_of(event: torch.autograd.profiler_util.FunctionEvent) -> str | None:
    """The part of the step that an event of the host belongs to, where that says more than its name."""
    while event is not None:
        if event.name == LOSS:
            return LOSS
        if event.name.startswith("Optimizer.step#"):
            return OPTIMIZER
        event = event.cpu_parent
    return None


def on_the_cpu(events: list) -> Iterator[tuple[str, str, float]]:
    """``(group, operation, seconds)``"""
    for event in events:
        if not event.is_user_annotation and not event.name.startswith("Optimizer."):
            yield owner_of(event) or group_of(event.name), event.name, event.self_cpu_time_total / 1e6


def on_the_gpu(events: list) -> Iterator[tuple[str, str, float]]:
    """``(group, kernel, seconds)``. Kernels of the loss and of the optimizer are known by who started them."""
    owned = Counter[str]()
    for event in events:
        owner = None if event.is_user_annotation else owner_of(event)
        for kernel in event.kernels if owner else ():
            owned[kernel.name] += kernel.duration / 1e6
            yield owner, kernel.name, kernel.duration / 1e6
    total = Counter[str]()
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            total[event.name] += event.time_range.elapsed_us() / 1e6
    for name, seconds in total.items():
        yield group_of(name), name, seconds - owned[name]


def busy_s(events: list) -> float:
    """Seconds in which at least one of ``events`` ran."""
    busy, until = 0.0, 0.0
    for start, end in sorted((e.time_range.start, e.time_range.end) for e in events if not e.is_user_annotation):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6


def in_words(setup: Setup) -> str:
    return (f"{setup.preset}, {setup.attention}, {'compiled' if setup.compiled else 'not compiled'}, "
            f"{setup.rows} rows a step")


def rows_of(paths: list[Path], tokenizer: Tokenizer, seq_len: int, place: Path) -> Rows:
    sources = []
    for path in paths:
        content = content_hash(path)
        sources.append(Source(path.name, open_cache(path, detect_layout(path), tokenizer, place, content=content)))
    return Pretrain().data(sources, seq_len, 0.0).train


def compare(bench: Bench, preset: str, kernels: list[str], compiled: list[bool], rows: list[int],
            sheet: float | None) -> Result | None:
    """The kernels, then without the compiler, then more rows; the fastest."""
    results: list[Result] = []

    def run(setup: Setup) -> None:
        result = bench.measure(setup)
        print(f"  {setup.attention:14}{'yes' if setup.compiled else 'no':>9}{setup.rows:6}", end="")
        if result is None:
            print("  the GPU's memory is not enough")
            return
        results.append(result)
        of_sheet = f"{result.mfu * bench.peak / sheet:10.1%}" if sheet else f"{'-':>10}"
        print(f"{result.tokens_per_s:14,.0f}{result.mfu:10.1%}{of_sheet}{result.memory_bytes / 2**30:10.2f} GiB"
              f"{result.loss:8.3f}", flush=True)

    def best() -> Setup:
        return max(results, key=lambda r: r.tokens_per_s).setup

    print(f"\n{preset}\n  {'attention':14}{'compiled':>9}{'rows':>6}{'real tokens/s':>14}{'MFU':>10}{'of sheet':>10}"
          f"{'peak memory':>14}{'loss':>8}")
    for kernel in kernels:
        run(Setup(preset, kernel, compiled[0], rows[0]))
    if results and len(compiled) > 1:
        run(replace(best(), compiled=compiled[1]))
    for count in rows[1:]:
        if results:
            run(replace(best(), rows=count))
    return max(results, key=lambda r: r.tokens_per_s) if results else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", help="jsonl or txt files with real text")
    parser.add_argument("--tokenizer", type=Path, help="default: one learnt from the data, of the preset's size")
    parser.add_argument("--preset", nargs="+", choices=sorted(PRESETS), default=["minimind-3", "minimind-3-moe"],
                        help="the first is what the others are compared with")
    parser.add_argument("--rows", type=int, nargs="+", help="rows of a step; default: 1, 2 and 4 times the preset's")
    parser.add_argument("--attention", nargs="+", choices=list(KERNELS), help="default: all that can run but flex")
    parser.add_argument("--compile", nargs="+", choices=("on", "off"), default=("on", "off"))
    parser.add_argument("--steps", type=int, default=30, help=f"of each of {ROUNDS} rounds")
    parser.add_argument("--no_profile", action="store_true")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(argv)
    try:
        device = choose_device(args.device, 0)
        with tempfile.TemporaryDirectory(prefix="bench-") as place:
            return run(args, device, Path(place))
    except MiniMindError as error:
        print(f"bench gpu: {error.message} {error.hint or ''}".rstrip(), file=sys.stderr)
        return 2


def run(args: argparse.Namespace, device: torch.device, place: Path) -> int:
    dtype, _ = choose_dtype("auto", device)
    make_repeatable(device)
    first = PRESETS[args.preset[0]]
    paths = args.data or [starter.write("text", place / "starter.jsonl", minutes=5)]
    if not args.data:
        print("The starter corpus is made, not found: give --data for figures that mean something.")
    texts = (text for path in paths for _, row in iter_rows(path, detect_layout(path)) for text in texts_of(row))
    tokenizer = Tokenizer.load(args.tokenizer) if args.tokenizer else Tokenizer.train(texts, first.model.vocab_size)
    bench = Bench(device, dtype, rows_of(paths, tokenizer, first.max_seq_len, place), tokenizer.vocab_size, args.steps)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    sheet = next((peak for part, peak in DATA_SHEET.items() if part in name), None)
    print(f"{name}, torch {torch.__version__}, {str(dtype).removeprefix('torch.')}: products of matrices reach "
          f"{bench.peak / 1e12:.3g} TFLOP/s" + (f", the data sheet says {sheet / 1e12:.0f}" if sheet else ""))
    print(f"{len(bench.rows):,} rows of {first.max_seq_len} tokens, {bench.rows.mean_piece_length:.0f} tokens in a "
          f"piece of a document (mean); --attention auto is "
          f"{choose_kernel('auto', device, dtype, first.model.head_dim)[0]}")
    compiled = [answer == "on" for answer in args.compile]
    if any(compiled) and (missing := missing_for_compile(device)) is not None:
        print(f"torch.compile is left out: {missing} was not found.")
        compiled = [False]
    best: dict[str, Result] = {}
    for preset in args.preset:
        head_dim = PRESETS[preset].model.head_dim
        problems = {k: missing_for(k, device, dtype, head_dim) for k in args.attention or KERNELS}
        for kernel, problem in problems.items():
            if problem is not None:
                print(f"{kernel} is left out: {problem}.")
        able = [k for k, problem in problems.items() if problem is None and (args.attention or k != "flex")]
        rows = args.rows or [PRESETS[preset].batch_size * times for times in (1, 2, 4)]
        if (result := compare(bench, preset, able, compiled, rows, sheet)) is not None:
            best[preset] = result
    for preset in args.preset[1:]:
        if preset in best and args.preset[0] in best:
            share = best[preset].tokens_per_s / best[args.preset[0]].tokens_per_s
            print(f"\n{preset} makes {share:.0%} of the tokens a second of {args.preset[0]} (goal: {GOAL_MOE:.0%}).")
    if not args.no_profile:
        for result in best.values():
            bench.profile(result.setup)
    return 0


if __name__ == "__main__":
    sys.exit(main())
