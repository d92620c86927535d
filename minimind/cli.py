"""The command line of ``train.py``, made from the stage's option schema. Imports no torch.

Booleans accept ``--flag``, ``--flag 0/1/true/false`` and ``--no_flag``. Only what was given is in
``Command.values``: a resumed run keeps its own configuration and compares.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo

from minimind.config import STAGES, field_kind, stage_class
from minimind.errors import ConfigError

DEFAULT_STAGE = "pretrain"
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass
class Command:
    """One call of ``train.py``. ``values`` are the options that were given."""

    stage: str
    values: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None
    save_dir: Path = Path("runs")
    resume: str | None = None
    attempt: int | None = None
    allow_changes: bool = False
    cache_dir: Path | None = None


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, and names the nearest known flag."""

    def error(self, message: str) -> NoReturn:
        hint = "python train.py STAGE --help lists every option."
        unknown = message.partition("unrecognized arguments: ")[2].split()
        if unknown:
            flag = unknown[0].partition("=")[0]
            known = [o for a in self._actions for o in a.option_strings]
            near = difflib.get_close_matches(flag, known, 1)
            message = f"There is no option {flag}." if flag.startswith("-") else f"{flag!r} stands where no value goes."
            hint = f"Did you mean {near[0]}? {hint}" if near else hint
        else:
            message = message[0].upper() + message[1:] + ("" if message.endswith(".") else ".")
        raise ConfigError([{"field": "", "message": message, "hint": hint}])


def _boolean(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def parser_for(stage: str) -> argparse.ArgumentParser:
    """Every option of ``stage`` with its default, unit and help."""
    config = stage_class(stage)
    parser = _Parser(
        prog=f"train.py {stage}", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{config.summary}\n\nStages: {', '.join(STAGES)} (default {DEFAULT_STAGE}). A step is an "
                    "optimizer step everywhere.")
    place = parser.add_argument_group("run")
    place.add_argument("--out", type=Path, metavar="DIR", help="Run directory. Default: SAVE_DIR/STAGE-TIME.")
    place.add_argument("--save_dir", type=Path, metavar="DIR", default=Path("runs"),
                       help="Parent of run directories. Default: runs.")
    place.add_argument("--resume", metavar="auto|DIR",
                       help="auto continues --out (without it: the newest unfinished run of this stage in --save_dir) "
                            "from its newest whole checkpoint; DIR is a run or one checkpoint. Default: a new run.")
    place.add_argument("--allow_changes", nargs="?", const=True, default=False, type=_boolean, metavar="BOOL",
                       help="Accept another number of ranks, changed data or options on resume. Default: false.")
    place.add_argument("--no_allow_changes", action="store_false", dest="allow_changes", help=argparse.SUPPRESS)
    place.add_argument("--cache_dir", type=Path, metavar="DIR",
                       help="Tokenized data and trained vocabularies, shared by runs. Default: cache beside the "
                            "directory that holds the runs.")
    place.add_argument("--attempt", type=int, metavar="N",
                       help="Number of this start, given by a job runner. Default: the last one + 1.")
    groups: dict[str, Any] = {}
    for name, info in config.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        group = str(extra.get("group", "options"))
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        _add_option(groups[group], name, info, str(extra.get("unit") or ""))
    return parser


def _add_option(group: Any, name: str, info: FieldInfo, unit: str) -> None:
    kind, is_list = field_kind(info.annotation)
    default = "decided later (auto)" if info.default is None else info.default
    help = f"{info.description or ''} Default: {default}{f' [{unit}]' if unit else ''}.".replace("%", "%%")
    common = {"help": help, "default": argparse.SUPPRESS, "dest": name}
    if kind is bool:
        group.add_argument(f"--{name}", nargs="?", const=True, type=_boolean, metavar="BOOL", **common)
        group.add_argument(f"--no_{name}", action="store_false", default=argparse.SUPPRESS, dest=name,
                           help=argparse.SUPPRESS)
    elif is_list:
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        group.add_argument(f"--{name}", type=lambda text: [part for part in text.split(",") if part],
                           metavar=",".join(map(str, choices)) or "A,B", **common)
    elif get_origin(kind) is Literal:
        group.add_argument(f"--{name}", metavar="|".join(map(str, get_args(kind))), **common)
    else:
        metavar = {int: "N", float: "X"}.get(kind, "TEXT")
        group.add_argument(f"--{name}", type=kind if kind in (int, float) else str, metavar=metavar, **common)


def parse(arguments: Sequence[str]) -> Command:
    """Raises ``ConfigError`` for an unknown stage or flag; ``--help`` prints and exits."""
    arguments = list(arguments)
    stage = DEFAULT_STAGE
    if arguments and not arguments[0].startswith("-"):
        stage = arguments.pop(0)
    given = vars(parser_for(stage).parse_args(arguments))
    own = {name: given.pop(name) for name in ("out", "save_dir", "resume", "attempt", "allow_changes", "cache_dir")}
    command = Command(stage=stage, values=given, **own)
    if command.attempt is not None and (command.out is None or command.attempt < 1):
        raise ConfigError([{"field": "attempt", "message": "--attempt needs --out and is counted from 1.",
                            "hint": "Leave it out unless a job runner starts the training."}])
    return command
