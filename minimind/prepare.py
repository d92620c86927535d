"""Everything before the first tensor, on rank 0 alone: data, tokenizer, base checkpoint, tokenized cache.

Between units of work the control file and signals are looked at; a wish to stop raises ``StopRequested``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from minimind.config import RunConfig, TrainConfig
from minimind.data import starter
from minimind.data.cache import MASKED_LAYOUTS, content_hash, open_cache
from minimind.data.layouts import data_files, detect_layout, iter_rows
from minimind.data.mix_option import parse_mix
from minimind.errors import CheckpointError, ConfigError, DataError
from minimind.manifest import Manifest
from minimind.metrics import Reporter
from minimind.presets import ModelConfig, model_config
from minimind.stages.base import texts_of
from minimind.stopping import Stopper
from minimind.tokenizer import Tokenizer
from minimind.tokenizing import Tokenizing

if TYPE_CHECKING:
    from minimind.formats.base import Base

DEFAULT_STARTER_MINUTES = 5.0
TOKENIZER_VERSION = 1
#: a vocabulary learns nothing from more text than this
TOKENIZER_TEXT_CHARS = 200_000_000
CHECK_EVERY_ROWS = 500


@dataclass(frozen=True)
class Prepared:
    """What rank 0 tells the others before they load anything. Paths are strings: it travels as JSON."""

    tokenizer: str
    sources: list[dict]  # as ``mixture.Source.open`` reads them
    preset: str
    model: dict
    languages: list[str]
    base: str | None = None
    base_weights: str | None = None  # sha256
    teacher: str | None = None
    teacher_weights: str | None = None  # sha256
    world: dict | None = None  # minutes, languages and seed of the starter world that the weights know

    as_dict = asdict


@dataclass(frozen=True)
class DataSet:
    """One data set of the run as it lies on the disk. ``weight``: its part of a mixture, whatever the others' add up
    to; ``field``: the option that names it."""

    path: Path
    weight: Fraction
    field: str

    @cached_property
    def layout(self) -> str:
        return detect_layout(self.path)

    @cached_property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in data_files(self.path))

    def check(self, config: RunConfig) -> None:
        """Raises ``DataError`` where it is missing, or is nothing that the stage can learn from."""
        if not self.path.exists():
            raise DataError(f"There is no file or directory {self.path}.", field=self.field,
                            hint=f"Check --{self.field}.")
        if self.layout not in config.layouts:
            raise DataError(f"{self.path.name} has the layout {self.layout}, and the stage {config.stage_name} "
                            f"needs {' or '.join(config.layouts)}.", field=self.field,
                            hint="Choose the stage that fits the data, or other data.")


def _check_of_one_kind(found: list[DataSet]) -> None:
    """Raises ``DataError`` where texts, learnt whole, are mixed with dialogues, learnt in part."""
    first = found[0]
    for data in found[1:]:
        if (data.layout in MASKED_LAYOUTS) != (first.layout in MASKED_LAYOUTS):
            raise DataError(f"{first.path.name} has the layout {first.layout} and {data.path.name} the layout "
                            f"{data.layout}: a mixture is of texts or of dialogues, not of both.", field=data.field,
                            hint="Train on one kind after the other, or write the texts as dialogues.")


class Materials:
    """The run's data and tokenizer, made or found when first asked for."""

    def __init__(self, config: RunConfig, cache_dir: Path, reporter: Reporter, stopper: Stopper, *,
                 has_gpu: bool, resume_from: Path | None = None):
        self.config = config
        self.cache_dir = cache_dir
        self.reporter = reporter
        self._stopper = stopper
        self._resume_from = resume_from
        self.has_gpu = has_gpu
        self.preset = config.preset_for(has_gpu=has_gpu)

    @cached_property
    def starter_plan(self) -> starter.Plan | None:
        """Size of the starter world, ``None`` with data of the user's own."""
        if self.config.has_own_data:
            return None
        minutes = (self.config.starter_minutes or self._known_world.get("minutes")
                   or getattr(self.config, "max_minutes", None) or DEFAULT_STARTER_MINUTES)
        return starter.plan(minutes, getattr(self.config, "languages", None) or self._known_world.get("languages"))

    @property
    def _known_world(self) -> dict:
        """The starter world that base or teacher know: what is learnt next should speak of the same one."""
        if self._resume_from is not None:
            return Manifest.read(self._resume_from).lineage.get("world") or {}
        known = self.base or self.teacher
        return (known.manifest.lineage.get("world") if known is not None else None) or {}

    @property
    def world_seed(self) -> int:
        return self._known_world.get("seed", self.config.seed)

    @cached_property
    def data_sets(self) -> list[DataSet]:
        """What to learn from, one or several. Raises ``DataError``."""
        if self.config.data_mix is not None:
            found = [DataSet(Path(path), weight, "data_mix") for path, weight in parse_mix(self.config.data_mix)]
        else:
            plan, given = self.starter_plan, self.config.data_path
            path = Path(str(given)) if plan is None else self._starter(plan)
            found = [DataSet(path, Fraction(1), "data_path")]
        for data in found:
            data.check(self.config)
        if isinstance(self.config, TrainConfig):
            _check_of_one_kind(found)
        return found

    def _starter(self, plan: starter.Plan) -> Path:
        """The starter corpus, written now unless it is there."""
        part = self.config.starter or self.config.starter_part
        identity = [starter_version(), part, plan.minutes, plan.languages, self.world_seed]
        name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        path = self.cache_dir / "starter" / f"{part}-{name}.jsonl"
        if not path.exists():
            self.reporter.phase("import", unit="rows", message=f"Writing the starter corpus ({plan.people} people, "
                                                               f"{', '.join(plan.languages)}).")
            path.parent.mkdir(parents=True, exist_ok=True)
            starter.write(part, path, minutes=plan.minutes, languages=plan.languages,
                          seed=self.world_seed)
        self._stopper.check()
        return path

    @cached_property
    def contents(self) -> list[str]:
        """Hash of each data set's content."""
        found = []
        for data in self.data_sets:
            self.reporter.phase("import", unit="files", message=f"Reading {data.path}.")
            found.append(content_hash(data.path, lambda rows, size: self._stopper.check()))
        return found

    @cached_property
    def base(self) -> Base | None:
        """What to start from, as a verified checkpoint."""
        return self._weights("from_weight")

    @cached_property
    def teacher(self) -> Base | None:
        """Whom to learn from, as a verified checkpoint. Raises ``CheckpointError`` where nobody says what its tokens
        are: a file of weights alone needs ``--tokenizer``."""
        teacher = self._weights("teacher_weight")
        if teacher is not None and not teacher.has_tokenizer and not self.config.tokenizer:
            raise CheckpointError(f"There is no usable tokenizer with the teacher {self.config.teacher_weight}, so "
                                  "nobody can tell whether its tokens are the student's.", field="teacher_weight",
                                  hint="Name the directory of the tokenizer that it was trained with, which is the "
                                       "student's too: --tokenizer DIR.")
        return teacher

    def _weights(self, field: str) -> Base | None:
        """The weights that an option names, as a verified checkpoint. Raises ``CheckpointError``."""
        given = getattr(self.config, field, None)
        if given in (None, "none"):
            return None
        from minimind.formats.base import open_base  # imports torch

        self.reporter.phase("import", unit="files", message=f"Reading the weights of {given}.")
        try:
            found = open_base(Path(given), self.cache_dir)
        except CheckpointError as error:
            error.field = field
            raise
        for warning in found.warnings:
            self.reporter.warn(warning)
        return found

    def check_origin(self) -> None:
        """Raises ``ConfigError`` where the stage needs weights to start from, or a teacher, and none are named."""
        stage = self.config.stage_name
        if self.config.needs_base and self._resume_from is None and self.base is None:
            raise ConfigError([{"field": "from_weight",
                                "message": f"The stage {stage} goes on from a trained model, and none is named.",
                                "hint": "Name a run or a checkpoint: --from_weight DIR."}])
        if stage == "distill" and self.teacher is None:
            raise ConfigError([{"field": "teacher_weight", "message": "There is no teacher to learn from.",
                                "hint": "Name a run or a checkpoint: --teacher_weight DIR."}])

    def check_teacher(self, tokenizer: Tokenizer) -> None:
        """Raises ``CheckpointError`` where student and teacher do not mean the same by their tokens."""
        if self.teacher is None:
            return
        if self.teacher.has_tokenizer:
            is_same = Tokenizer.load(self.teacher.path).fingerprint == tokenizer.fingerprint
        else:
            is_same = tokenizer.vocab_size <= self.teacher.manifest.model["vocab_size"]
        if not is_same:
            raise CheckpointError(f"The teacher {self.config.teacher_weight} has another vocabulary than the student: "
                                  "the same number means another token to it.", field="teacher_weight",
                                  hint="Choose a teacher and a student that were trained with one tokenizer. A "
                                       "teacher of any vocabulary can write answers to learn from instead "
                                       "(docs/distillation.md).")

    def tokenizer_dir(self) -> Path:
        """Directory of the run's tokenizer: the resumed checkpoint's, the base's, the given one, or one made now."""
        given = Path(self.config.tokenizer) if self.config.tokenizer else None
        if self._resume_from is not None:
            bound = self._resume_from
        elif self.base is not None:
            if not self.base.has_tokenizer:
                return self._tokenizer_for(self.base, given)
            bound = self.base.path
        elif given is None and self.teacher is not None:
            return self.teacher.path
        else:
            return given if given is not None else self.trained_tokenizer()
        if given is not None and Tokenizer.load(given).fingerprint != Tokenizer.load(bound).fingerprint:
            raise CheckpointError(f"The tokenizer {given} is not the one that the checkpoint {bound} was trained "
                                  "with.", field="tokenizer", hint="Leave --tokenizer out: the checkpoint has its own.")
        return bound

    def _tokenizer_for(self, base: Base, given: Path | None) -> Path:
        """The given tokenizer, where weights came without one: they know the ids of one tokenizer, but not which."""
        if given is None:
            raise CheckpointError(f"There is no usable tokenizer with the weights {self.config.from_weight}.",
                                  field="tokenizer", hint="Name the directory of the tokenizer that they were trained "
                                                          "with: --tokenizer DIR.")
        entries, rows = Tokenizer.load(given).vocab_size, base.manifest.model["vocab_size"]
        if entries > rows:
            raise CheckpointError(f"The tokenizer {given} has {entries} entries, and the weights "
                                  f"{self.config.from_weight} know {rows}.", field="tokenizer",
                                  hint="Name the tokenizer that they were trained with.")
        return given

    def trained_tokenizer(self) -> Path:
        """A vocabulary learnt from the run's data, kept by the content it was learnt from."""
        size = getattr(self.config, "vocab_size", None) or self.preset.model.vocab_size
        identity = [TOKENIZER_VERSION, *self._identity_of_texts(), size]
        target = self.cache_dir / "tokenizers" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        if target.exists():
            return target
        self.reporter.phase("tokenizer", unit="rows", message=f"Learning a vocabulary of {size} entries.")
        made = Tokenizer.train(self._texts(), size)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            made.save(aside)
            try:
                aside.rename(target)
            except OSError:
                if not target.exists():  # else another process was faster with the same one
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._stopper.check()
        return target

    def _identity_of_texts(self) -> list:
        """All that decides ``_texts``."""
        if len(self.data_sets) == 1:
            return [self.contents[0], self.data_sets[0].layout]
        return [[content, data.layout, str(data.weight)] for content, data in zip(self.contents, self.data_sets)]

    def _texts(self) -> Iterator[str]:
        """Texts of all data sets, no more of each than its share of what a vocabulary is learnt from."""
        number = 0
        weights = sum((data.weight for data in self.data_sets), Fraction(0))
        for data in self.data_sets:
            chars, most = 0, TOKENIZER_TEXT_CHARS * data.weight / weights
            for _, row in iter_rows(data.path, data.layout):
                if number % CHECK_EVERY_ROWS == 0:
                    self.reporter.phase("tokenizer", number, unit="rows")
                    self._stopper.check()
                number += 1
                for text in texts_of(row):
                    chars += len(text)
                    yield text
                if chars > most:
                    break

    def prepare(self) -> Prepared:
        """Do all of it for a stage that trains weights."""
        config = self.config
        assert isinstance(config, TrainConfig)
        self.check_origin()
        assert self.data_sets  # says at once what is wrong with the data
        directory = self.tokenizer_dir()
        tokenizer = Tokenizer.load(directory)
        self.check_teacher(tokenizer)
        self._stopper.check()
        sources = self._tokenized(tokenizer, config.num_workers)
        # A resumed run has its base's weights in it: the base itself may be gone by now.
        lineage = {"base": None, "base_weights": None}
        if self._resume_from is not None:
            manifest = Manifest.read(self._resume_from)
            model = self._shape_of(manifest)
            lineage = {name: manifest.lineage.get(name) for name in lineage}
        elif self.base is not None:
            model = self._shape_of(self.base.manifest)
            lineage = {"base": str(self.base.path), "base_weights": self.base.weights_sha256}
        else:
            model = model_config(self.preset.name, config.model_overrides(), tokenizer.vocab_size)
        started_from = model if lineage["base"] is not None else None
        preset = config.preset_for(has_gpu=self.has_gpu, base=started_from)
        teacher = {"teacher": str(self.teacher.path), "teacher_weights": self.teacher.weights_sha256} \
            if self.teacher is not None else {}
        return Prepared(tokenizer=str(directory), sources=sources, preset=preset.name, model=model.as_dict(),
                        languages=self._languages(), world=self._world(), **lineage, **teacher)

    def _world(self) -> dict | None:
        plan = self.starter_plan
        if plan is None:
            return self._known_world or None
        return {"minutes": plan.minutes, "languages": list(plan.languages), "seed": self.world_seed}

    def _shape_of(self, manifest: Manifest) -> ModelConfig:
        """A checkpoint's shape, which options cannot change: raises ``ConfigError`` where they say another."""
        assert isinstance(self.config, TrainConfig)
        shape = ModelConfig.from_dict(manifest.model)
        wrong = {name: value for name, value in self.config.model_overrides().items()
                 if value is not None and value != getattr(shape, name)}
        if wrong:
            raise ConfigError([{"field": name, "message": f"The option {name} is {value}, and the checkpoint has "
                                                          f"{getattr(shape, name)}, which cannot be changed.",
                                "hint": f"Leave {name} out, or start without a checkpoint."}
                               for name, value in wrong.items()])
        return shape

    def _tokenized(self, tokenizer: Tokenizer, workers: int) -> list[dict]:
        """Every data set as tokens, for ``Prepared.sources``."""
        contents = self.contents
        progress = Tokenizing(self.reporter, self._stopper, sum(data.num_bytes for data in self.data_sets))
        names = [data.path.name for data in self.data_sets]
        found = []
        for data, content in zip(self.data_sets, contents):
            cache = open_cache(data.path, data.layout, tokenizer, self.cache_dir, content=content, workers=workers,
                               progress=progress.tell)
            progress.next(data.num_bytes)
            name = data.path.name if names.count(data.path.name) == 1 else str(data.path)
            self.reporter.log(f"{name}: {cache.num_documents:,} documents, {cache.num_tokens:,} tokens.")
            for warning in cache.warnings:
                self.reporter.warn(f"{name}: {warning}" if len(names) > 1 else warning)
            found.append({"name": name, "cache": str(cache.path), "weight": str(data.weight)})
        return found

    def _languages(self) -> list[str]:
        """Languages in which to ask for samples: the starter plan's, else a guess from the data's first rows."""
        if self.starter_plan is not None:
            return list(self.starter_plan.languages)
        text = "".join("".join(t for _, (_, row) in zip(range(20), iter_rows(data.path, data.layout))
                               for t in texts_of(row))[:20_000] for data in self.data_sets)
        chinese = sum("\u4e00" <= c <= "\u9fff" for c in text)
        return ["zh"] if chinese > 0.2 * max(1, len(text)) else ["en"]


def starter_version() -> str:
    """Hash of the generator's own source: other code, other corpus."""
    digest = hashlib.sha256()
    for file in sorted(Path(starter.__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def sample_prompts(languages: list[str]) -> list[str]:
    """The three fixed prompts; with several languages they take turns."""
    known = [code for code in languages if code in starter.SAMPLE_PROMPTS] or ["en"]
    return [starter.SAMPLE_PROMPTS[known[i % len(known)]][i] for i in range(3)]

