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
from functools import cached_property
from pathlib import Path

from minimind.config import RunConfig, TrainConfig
from minimind.data import starter
from minimind.data.cache import content_hash, open_cache
from minimind.data.layouts import detect_layout, iter_rows
from minimind.errors import CheckpointError, ConfigError, DataError
from minimind.manifest import Manifest, newest_valid
from minimind.metrics import Reporter
from minimind.presets import ModelConfig, model_config
from minimind.stages.base import texts_of
from minimind.stopping import Stopper
from minimind.tokenizer import Tokenizer

DEFAULT_STARTER_MINUTES = 5.0
TOKENIZER_VERSION = 1
#: a vocabulary learns nothing from more text than this
TOKENIZER_TEXT_CHARS = 200_000_000
CHECK_EVERY_ROWS = 500


@dataclass(frozen=True)
class Prepared:
    """What rank 0 tells the others before they load anything. Paths are strings: it travels as JSON."""

    tokenizer: str
    cache: str
    preset: str
    model: dict
    languages: list[str]
    base: str | None = None
    base_weights: str | None = None  # sha256

    as_dict = asdict


class Materials:
    """The run's data and tokenizer, made or found when first asked for."""

    def __init__(self, config: RunConfig, cache_dir: Path, reporter: Reporter, stopper: Stopper, *,
                 has_gpu: bool, resume_from: Path | None = None):
        self.config = config
        self.cache_dir = cache_dir
        self.reporter = reporter
        self._stopper = stopper
        self._resume_from = resume_from
        self.preset = config.preset_for(has_gpu=has_gpu)

    @cached_property
    def starter_plan(self) -> starter.Plan | None:
        """Size of the starter world, ``None`` with data of the user's own."""
        if self.config.data_path is not None:
            return None
        minutes = getattr(self.config, "max_minutes", None) or DEFAULT_STARTER_MINUTES
        return starter.plan(minutes, getattr(self.config, "languages", None))

    @cached_property
    def data_path(self) -> Path:
        plan = self.starter_plan
        if plan is None:
            path = Path(str(self.config.data_path))
            if not path.exists():
                raise DataError(f"There is no file or directory {path}.", field="data_path", hint="Check --data_path.")
            return path
        identity = [starter_version(), self.config.starter_part, plan.minutes, plan.languages, self.config.seed]
        name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        path = self.cache_dir / "starter" / f"{self.config.starter_part}-{name}.jsonl"
        if not path.exists():
            self.reporter.phase("import", unit="rows", message=f"Writing the starter corpus ({plan.people} people, "
                                                               f"{', '.join(plan.languages)}).")
            path.parent.mkdir(parents=True, exist_ok=True)
            starter.write(self.config.starter_part, path, minutes=plan.minutes, languages=plan.languages,
                          seed=self.config.seed)
        self._stopper.check()
        return path

    @cached_property
    def layout(self) -> str:
        """Layout of the data. Raises ``DataError`` where the stage cannot learn from it."""
        layout = detect_layout(self.data_path)
        if layout not in self.config.layouts:
            raise DataError(f"{self.data_path.name} has the layout {layout}, and the stage {self.config.stage_name} "
                            f"needs {' or '.join(self.config.layouts)}.", field="data_path",
                            hint="Choose the stage that fits the data, or other data.")
        return layout

    @cached_property
    def content(self) -> str:
        self.reporter.phase("import", unit="files", message=f"Reading {self.data_path}.")
        return content_hash(self.data_path, lambda rows, size: self._stopper.check())

    @cached_property
    def base(self) -> tuple[Path, Manifest] | None:
        """The checkpoint to start from, verified."""
        given = getattr(self.config, "from_weight", None)
        if given in (None, "none"):
            return None
        path = Path(given)
        if (path / "checkpoints").is_dir():
            newest, _ = newest_valid(path)
            if newest is None:
                raise CheckpointError(f"The run {path} has no whole checkpoint.", field="from_weight",
                                      hint="Choose another run.")
            path = newest
        if not path.exists():
            raise CheckpointError(f"There is no checkpoint {path}.", field="from_weight", hint="Check --from_weight.")
        manifest = Manifest.read(path)
        manifest.verify(path)
        return path, manifest

    def tokenizer_dir(self) -> Path:
        """Directory of the run's tokenizer: the resumed checkpoint's, the base's, the given one, or one made now."""
        given = Path(self.config.tokenizer) if self.config.tokenizer else None
        bound = self._resume_from if self._resume_from is not None else self.base[0] if self.base else None
        if bound is not None:
            if given is not None and Tokenizer.load(given).fingerprint != Tokenizer.load(bound).fingerprint:
                raise CheckpointError(f"The tokenizer {given} is not the one that the checkpoint {bound} was trained "
                                      "with.", field="tokenizer", hint="Leave --tokenizer out: the checkpoint has its "
                                                                       "own.")
            return bound
        return given if given is not None else self.trained_tokenizer()

    def trained_tokenizer(self) -> Path:
        """A vocabulary learnt from the run's data, kept by the content it was learnt from."""
        size = getattr(self.config, "vocab_size", None) or self.preset.model.vocab_size
        identity = [TOKENIZER_VERSION, self.content, self.layout, size]
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

    def _texts(self) -> Iterator[str]:
        chars = 0
        for number, (_, row) in enumerate(iter_rows(self.data_path, self.layout)):
            if number % CHECK_EVERY_ROWS == 0:
                self.reporter.phase("tokenizer", number, unit="rows")
                self._stopper.check()
            for text in texts_of(row):
                chars += len(text)
                yield text
            if chars > TOKENIZER_TEXT_CHARS:
                return

    def prepare(self) -> Prepared:
        """Do all of it for a stage that trains weights."""
        config = self.config
        assert isinstance(config, TrainConfig)
        layout = self.layout  # says at once what is wrong with the data
        directory = self.tokenizer_dir()
        tokenizer = Tokenizer.load(directory)
        self._stopper.check()
        cache = open_cache(self.data_path, layout, tokenizer, self.cache_dir, content=self.content,
                           workers=config.num_workers, progress=self._on_tokenized)
        self.reporter.log(f"{cache.num_documents:,} documents, {cache.num_tokens:,} tokens.")
        # A resumed run has its base's weights in it: the base itself may be gone by now.
        lineage = {"base": None, "base_weights": None}
        if self._resume_from is not None:
            manifest = Manifest.read(self._resume_from)
            model, lineage = self._shape_of(manifest), manifest.lineage
        elif self.base is not None:
            path, manifest = self.base
            model = self._shape_of(manifest)
            lineage = {"base": str(path), "base_weights": manifest.files["model.safetensors"]["sha256"]}
        else:
            model = model_config(self.preset.name, config.model_overrides(), tokenizer.vocab_size)
        return Prepared(tokenizer=str(directory), cache=str(cache.path), preset=self.preset.name,
                        model=model.as_dict(), languages=self._languages(), **lineage)

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

    def _on_tokenized(self, rows: int, size: int) -> None:
        self.reporter.phase("tokenize", rows, unit="rows", message="Tokenizing.")
        self._stopper.check()

    def _languages(self) -> list[str]:
        """Languages in which to ask for samples: the starter plan's, else a guess from the data's first rows."""
        if self.starter_plan is not None:
            return list(self.starter_plan.languages)
        text = "".join(t for _, (_, row) in zip(range(20), iter_rows(self.data_path, self.layout))
                       for t in texts_of(row))[:20_000]
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

