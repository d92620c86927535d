"""A checkpoint for other programs, on the command line::

    python -m minimind.export CHECKPOINT --format gguf --quantization q8_0 --out exports
    python -m minimind.export RUN --format hf --dtype bfloat16 --name my-model

CHECKPOINT: a run, a checkpoint, a Hugging Face folder, a MiniMind .pth or a .gguf file. Formats: hf (a folder for
transformers and vLLM, with a model card), gguf (a file for llama.cpp and ollama, with ollama's Modelfile beside it),
pth (upstream MiniMind's file). Of a run of the stage lora these are base and adapter in one (merged: the same as hf);
peft and minimind_lora are the adapter alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from minimind.errors import MiniMindError, exit_status

FORMATS = ("hf", "gguf", "pth", "merged", "peft", "minimind_lora")
QUANTIZATIONS, DTYPES = ("f32", "f16", "q8_0"), ("float32", "bfloat16", "float16")
SAY_EVERY_S = 0.2


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m minimind.export", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("checkpoint", type=Path, help="run, checkpoint, Hugging Face folder, .pth or .gguf file")
    made.add_argument("--format", choices=FORMATS, default="hf", help="what to write; default: hf")
    made.add_argument("--quantization", choices=QUANTIZATIONS, default="f16",
                      help="gguf: how a weight is stored; default: f16")
    made.add_argument("--dtype", choices=DTYPES, default="float32", help="hf, merged: type of the weights")
    made.add_argument("--base", type=Path, help="of an adapter: another model than the one that it was trained on")
    made.add_argument("--tokenizer", type=Path, help="directory of the tokenizer, where the weights come without one")
    made.add_argument("--out", type=Path, default=Path(), help="directory to write into; default: this one")
    made.add_argument("--name", help="name of the file or folder; default: that of the run or file, and the step")
    return made


def run(options: argparse.Namespace) -> None:
    """Raises ``MiniMindError`` and ``OSError``."""
    from minimind.formats.export import Wanted, slug, write_export  # seconds to import: --help does not wait for torch
    from minimind.formats.origins import story_of
    from minimind.manifest import in_run

    checkpoint = in_run(options.checkpoint)
    name = options.name or _name_of(checkpoint) + (f"-{options.quantization}" if options.format == "gguf" else "")
    if options.name and slug(name) != name:
        raise MiniMindError(f"{name!r} is no name for a file.", field="name",
                            hint="Use letters, digits, dots, - and _, at most 60.")
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = Wanted(options.format, options.quantization, options.dtype, options.base, options.tokenizer,
                    story=story_of(checkpoint))
    line = _Line()
    began = time.monotonic()
    made = write_export(options.out, name, checkpoint, wanted, line.show)
    line.end()
    files = [made.path] if made.path.is_file() else [path for path in made.path.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"Written: {made.path} ({size / 1e6:,.1f} MB in {time.monotonic() - began:.1f} s)")
    if made.modelfile is not None:
        beside = made.path.with_suffix(".Modelfile")
        beside.write_text(made.modelfile, encoding="utf-8")
        print(f"Written: {beside}")
    for command in made.commands:
        print(f"\n# {command['tool']}\n{command['text']}")


def _name_of(checkpoint: Path) -> str:
    from minimind.formats.export import slug
    from minimind.run_dir import parse_checkpoint_name

    place = checkpoint.absolute()
    step = parse_checkpoint_name(place.name)
    name = f"{place.parent.parent.name}-step-{step[0]}" if step else place.stem if place.is_file() else place.name
    return slug(name) or "model"


class _Line:
    """One line of progress, where somebody looks at it."""

    def __init__(self) -> None:
        self._began, self._said_at = time.monotonic(), 0.0
        self._talks = sys.stderr.isatty()

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._talks or (done < total and now - self._said_at < SAY_EVERY_S):
            return
        self._said_at = now
        rate = done / max(1e-3, now - self._began)
        print(f"\r{done / total:4.0%}  {done / 1e6:,.1f} of {total / 1e6:,.1f} MB  {rate / 1e6:,.1f} MB/s ", end="",
              file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._said_at:
            print(file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return exit_status(lambda: run(options), options.out)


if __name__ == "__main__":
    sys.exit(main())
