"""The door of every ``./studio`` command: ``python -m worker.cli COMMAND [...]``."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys

from minimind.errors import MiniMindError
from minimind.lifeline import die_as_told

COMMANDS = {
    "up": "start everything on this machine",
    "demo": "train a model through the REST API and talk to it, without a browser",
    "test": "run the tests",
    "doctor": "check this machine and say what to do",
    "user": "user add NAME: make a user and print the password",
    "token": "token create NAME: make an API token and print it",
    "bench": "run the benchmarks",
    "web": "the web process alone",
    "worker": "the worker of this host alone",
    "inference": "the inference process alone",
}


def usage() -> str:
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: ./studio COMMAND [--data_dir D] ...", "", *lines, "",
                      "./studio COMMAND --help lists a command's options."])


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        print(f"studio: there is no command {name!r}." + (f" Did you mean {near[0]!r}?" if near else "")
              + " ./studio --help lists them.", file=sys.stderr)
        return 2
    die_as_told()
    command = importlib.import_module(f"worker.cli.{name}")
    parser = argparse.ArgumentParser(prog=f"./studio {name}", description=command.__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    command.arguments(parser)
    parser.add_argument("--data_dir", metavar="D", help="where everything is kept (default: ./data)")
    if getattr(command, "FORWARDS", False):
        args, args.rest = parser.parse_known_args(rest)
    else:
        args = parser.parse_args(rest)
    if args.data_dir:
        os.environ["STUDIO_DATA_DIR"] = os.path.abspath(args.data_dir)
    try:
        return command.run(args)
    except Exception as error:
        sentence = for_the_user(error)
        if sentence is None:
            raise
        print(f"studio: {sentence}", file=sys.stderr)
        return 2


def for_the_user(error: Exception) -> str | None:
    """What a person can do something about, as a sentence; None for a fault of ours."""
    if isinstance(error, MiniMindError):
        return str(error)
    if "app.core.errors" not in sys.modules:  # where only the core is installed
        return None
    from app.core.answers import as_app_error

    answered = as_app_error(error)
    return str(answered) if answered.status != 500 else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
