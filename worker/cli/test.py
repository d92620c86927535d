"""Run the tests. What this command does not know goes to pytest: ./studio test -k tokenizer -x

What only the tests need (requirements-dev.txt) is installed before the first one. With STUDIO_PYTHON nothing is: tests
that need packages which are not there are skipped or left out, so the core can be tested with torch, numpy, tokenizers,
safetensors and pydantic alone. STUDIO_TEST_REQUIRE=1 makes that a failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FORWARDS = True


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="also the tests marked slow")


def run(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("pytest") is None:
        print("studio: pytest is not installed for this Python. Install it with 'pip install -r requirements-dev.txt', "
              "or unset STUDIO_PYTHON to use the studio's own environment.", file=sys.stderr)
        return 2
    os.environ.pop("STUDIO_DATA_DIR", None)  # tests make directories of their own
    if args.all:
        os.environ["STUDIO_TEST_ALL"] = "1"
    os.chdir(ROOT)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "pytest", *args.rest])
