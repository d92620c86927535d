"""Where a checkpoint comes from, read from the run directories that are still there: for a model card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from minimind.errors import CheckpointError
from minimind.events import read_events
from minimind.manifest import MANIFEST_FILE, Manifest
from minimind.run_dir import RunDir, read_json

#: a lineage is a few stages long; one that is longer goes round in circles
MOST_STAGES = 20
#: points of the curve in the card, each the mean of its share of the steps
CURVE_POINTS = 240


@dataclass(frozen=True)
class DataSource:
    name: str
    rows: int | None = None
    bytes: int | None = None
    license: str | None = None


@dataclass(frozen=True)
class Named:
    """What people call a run, and what it learnt from."""

    run: str
    data: tuple[DataSource, ...] = ()
    tokenizer: str | None = None


@dataclass(frozen=True)
class StageDone:
    """One stage of a lineage; losses in nats per token."""

    stage: str
    step: int
    tokens: int
    loss: float | None
    eval_loss: float | None
    named: Named


@dataclass(frozen=True)
class Story:
    """``stages``: oldest first. The rest is about the last one: ``curve`` and ``held_out`` are ``(step, loss)``,
    ``samples`` ``(prompt, answer)`` of the last time that it was asked."""

    stages: tuple[StageDone, ...] = ()
    languages: tuple[str, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()
    held_out: tuple[tuple[int, float], ...] = ()
    bits_per_byte: float | None = None
    samples: tuple[tuple[str, str], ...] = ()


def named_on_disk(run: Path) -> Named:
    """By what a run that was started by hand says of itself: names, and no places."""
    config = read_json(RunDir(run).config)
    config = config if isinstance(config, dict) else {}
    path = config.get("data_path")
    data: tuple[DataSource, ...] = ()
    if isinstance(path, str) and path:
        file = Path(path)
        data = (DataSource(file.name, bytes=file.stat().st_size if file.is_file() else None),)
    return Named(run.name, data or (DataSource("starter corpus of MiniMind Studio"),) if config else ())


def story_of(checkpoint: Path, named: Callable[[Path], Named] = named_on_disk) -> Story:
    """``named``: what to call the run whose directory is given, and its data. What cannot be read any more is left
    out: a card is no reason for an export to fail."""
    try:
        last = Manifest.read(checkpoint)
    except CheckpointError:
        return Story()
    stages, seen, place, manifest = [], set(), checkpoint.absolute(), last
    while len(stages) < MOST_STAGES and place not in seen:
        seen.add(place)
        stages.append(StageDone(manifest.stage, manifest.step, manifest.tokens, manifest.loss, manifest.eval_loss,
                                named(place.parent.parent)))
        base = manifest.lineage.get("base")
        place = Path(base) if isinstance(base, str) and Path(base).is_absolute() else Path()
        try:
            manifest = Manifest.read(place) if (place / MANIFEST_FILE).exists() else None
        except (CheckpointError, OSError):
            manifest = None
        if manifest is None or place.parent.name != "checkpoints":
            break
    world = last.lineage.get("world") or {}
    said = _Said(last.step)
    said.read(RunDir(checkpoint.absolute().parent.parent))
    return Story(tuple(reversed(stages)), tuple(str(code) for code in world.get("languages") or ()),
                 thinned(sorted(said.losses.items())), tuple(sorted(said.held_out.items())), said.bits_per_byte,
                 tuple(said.samples.items()))


@dataclass
class _Said:
    """What a run's events say up to the step of the checkpoint; of a step that was done twice, the last time."""

    step: int
    losses: dict[int, float] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    bits_per_byte: float | None = None
    samples: dict[str, str] = field(default_factory=dict)

    def read(self, run: RunDir) -> None:
        for attempt in run.attempts():
            offset, is_first = 0, True
            while True:
                block = list(read_events(attempt.events, offset))
                if not block:
                    break
                offset = block[-1][1]
                for event, _ in block:
                    if event.get("type") == "metrics" and is_first:
                        is_first = False
                        self._forget_from(event.get("step", 0))
                    self._take(event)

    def _forget_from(self, step: int) -> None:
        for points in (self.losses, self.held_out):
            for later in [s for s in points if s >= step]:
                del points[later]

    def _take(self, event: dict) -> None:
        step, data = event.get("step"), event.get("data")
        if type(step) is not int or step > self.step or not isinstance(data, dict):
            return
        if event["type"] == "metrics" and isinstance(data.get("loss"), float):
            self.losses[step] = data["loss"]
        elif event["type"] == "eval" and isinstance(data.get("eval_loss"), float):
            self.held_out[step] = data["eval_loss"]
            bits = data.get("bits_per_byte")
            self.bits_per_byte = bits if isinstance(bits, float) else None
        elif event["type"] == "sample" and isinstance(data.get("prompt"), str) and isinstance(data.get("text"), str):
            self.samples[data["prompt"]] = data["text"]


def thinned(points: list[tuple[int, float]], most: int = CURVE_POINTS) -> tuple[tuple[int, float], ...]:
    """Equal shares of the points, each as its last step and mean."""
    if len(points) <= most:
        return tuple(points)
    made = []
    for i in range(most):
        share = points[i * len(points) // most:(i + 1) * len(points) // most]
        made.append((share[-1][0], sum(loss for _, loss in share) / len(share)))
    return tuple(made)
