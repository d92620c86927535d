"""LoRA adapters on the command line::

    python -m minimind.adapter merge ADAPTER OUT [--base BASE]    a whole model, as a Hugging Face folder
    python -m minimind.adapter to_peft ADAPTER OUT                a folder for Hugging Face's peft
    python -m minimind.adapter to_upstream ADAPTER OUT.pth        a file for upstream MiniMind
    python -m minimind.adapter import ADAPTER BASE OUT            a run of ours, to chat with and to start from

ADAPTER: a run or checkpoint of the stage lora, a peft folder, or upstream's lora .pth file. BASE: a run, a checkpoint,
a Hugging Face folder or a MiniMind .pth file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from minimind.errors import exit_status

DTYPES = ("float32", "bfloat16", "float16")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m minimind.adapter", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, out: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument("adapter", type=Path, help="run, checkpoint, peft folder or upstream's lora .pth file")
        if name == "import":
            added.add_argument("base", type=Path, help="the model that it belongs to")
        added.add_argument("out", type=Path, help=out)
        if name in ("merge", "import"):
            added.add_argument("--tokenizer", type=Path, help="directory of the base's tokenizer, where it has none")
        return added

    merge = command("merge", "Write base and adapter as one model.", "Hugging Face folder to make")
    merge.add_argument("--base", type=Path, help="the model to change; default: the one that a run of ours keeps")
    merge.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the numbers in the file")
    peft = command("to_peft", "Write the adapter for Hugging Face's peft.", "folder to make")
    peft.add_argument("--base_name", help="name or place of the base to write into adapter_config.json")
    command("to_upstream", "Write the adapter for upstream MiniMind.", ".pth file to write")
    command("import", "Make a run of ours from an adapter and its base.", "run directory to make")
    return made


def run(options: argparse.Namespace) -> Path:
    """Do what the command says; returns what was made. Raises ``MiniMindError``."""
    import torch  # seconds to import: --help does not wait for it

    from minimind.formats import adapter_files, adapters

    if options.command == "merge":
        return adapter_files.write_merged(options.out, options.adapter, options.base, tokenizer=options.tokenizer,
                                          dtype=getattr(torch, options.dtype))
    if options.command == "import":
        return adapter_files.import_adapter(options.out, options.adapter, options.base, tokenizer=options.tokenizer)
    adapter, weights = adapters.read_adapter(options.adapter)
    if options.command == "to_upstream":
        if adapter.rank != adapters.UPSTREAM_RANK:
            print(f"Upstream's programs expect rank {adapters.UPSTREAM_RANK}, and this adapter has {adapter.rank}: "
                  "pass it to apply_lora there.", file=sys.stderr)
        return adapters.save_upstream(options.out, adapter, weights)
    return adapter_files.write_peft(options.out, adapter, weights, options.base_name or adapters.BASE_PLACE)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return exit_status(lambda: print(f"Written: {run(options)}"), options.out)


if __name__ == "__main__":
    sys.exit(main())
