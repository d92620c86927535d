"""Let a teacher write answers: ``python -m minimind.teach --out FILE.jsonl [--questions FILE]`` and a teacher.

A teacher is a run or checkpoint of ours (``--checkpoint DIR``) or any OpenAI-compatible server (``--endpoint URL
--model NAME``; its key is read from MINIMIND_TEACHER_KEY or OPENAI_API_KEY, never from the command line). Without a
file of questions those of the starter corpus are asked. Each becomes a conversation of FILE.jsonl, in the order of the
questions. Answers are kept one by one in ``FILE.jsonl.part``: the same command goes on behind them.
Exit code: 0 finished, 130 interrupted, 2 a mistake in what was given or a teacher that cannot go on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from minimind.data import starter
from minimind.errors import DataError, MiniMindError
from minimind.teach.journal import Journal
from minimind.teach.loop import Progress, answer_all, check_any, count_questions, said_of_left_out
from minimind.teach.questions import read_questions
from minimind.teach.teachers import Teacher

KEY_VARIABLES = ("MINIMIND_TEACHER_KEY", "OPENAI_API_KEY")
LINE_EVERY_S = 30.0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m minimind.teach", description=__doc__.partition("\n\n")[0],
                                   epilog=__doc__.partition("\n\n")[2],
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--questions", type=Path, metavar="FILE",
                      help="jsonl of questions, prompts or conversations, or a text file with one question a line; "
                           "default: the starter corpus's questions")
    made.add_argument("--minutes", type=_number(float, 0.1, 1440), default=5, metavar="M",
                      help="of the starter corpus: as many as its other parts were made for (default 5)")
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="the jsonl that is made; must not exist")
    teacher = made.add_mutually_exclusive_group(required=True)
    teacher.add_argument("--checkpoint", type=Path, metavar="DIR", help="a run or checkpoint of ours answers")
    teacher.add_argument("--endpoint", metavar="URL", help="a server answers, for instance http://127.0.0.1:11434/v1")
    made.add_argument("--model", default="", metavar="NAME", help="the model at the endpoint")
    made.add_argument("--system", default="", metavar="TEXT",
                      help="a system prompt for the teacher; conversations that have one keep their own")
    made.add_argument("--keep_system", action="store_true", help="--system becomes part of the rows as well")
    made.add_argument("--temperature", type=_number(float, 0, 2), metavar="T",
                      help="0 is greedy; default: 0.7 for a checkpoint, the server's own for an endpoint")
    made.add_argument("--max_tokens", type=_number(int, 1, 1_000_000), default=1024, metavar="N",
                      help="longest answer in tokens; one that is cut off is left out (default 1024)")
    made.add_argument("--concurrency", type=_number(int, 1, 64), default=4, metavar="N",
                      help="questions asked at once of an endpoint (default 4); a checkpoint answers one at a time")
    made.add_argument("--seed", type=_number(int, 0, 2**31 - 1), metavar="N",
                      help="of what is drawn; default: 42 for a checkpoint, an endpoint is told none")
    made.add_argument("--limit", type=_number(int, 1, 2**62), metavar="N", help="only the first N questions")
    made.add_argument("--timeout_s", type=_number(float, 1, 86400), default=300.0, metavar="S",
                      help="how long an endpoint may take for one answer (default 300)")
    made.add_argument("--patience_s", type=_number(float, 1, 86400), default=180.0, metavar="S",
                      help="how long an endpoint that fails is tried again (default 180)")
    made.add_argument("--device", default="cpu", metavar="NAME", help="where a checkpoint runs, cpu or cuda")
    return made


def _number(kind: type, least: float, most: float):
    def read(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least:g} to {most:g}")
        return value

    read.__name__ = "whole number" if kind is int else "number"  # argparse says it
    return read


def key_from_environment() -> str | None:
    return next((value.strip() for name in KEY_VARIABLES if (value := os.environ.get(name, "")).strip()), None)


def make_teacher(asked: argparse.Namespace, *, has_answered: bool) -> Teacher:
    if asked.checkpoint is not None:
        from minimind.teach.local import LocalTeacher

        return LocalTeacher(asked.checkpoint, temperature=asked.temperature, max_tokens=asked.max_tokens,
                            seed=asked.seed, device=asked.device)
    from minimind.teach.endpoint import Endpoint

    return Endpoint(asked.endpoint, asked.model, key_from_environment(), temperature=asked.temperature,
                    max_tokens=asked.max_tokens, seed=asked.seed, timeout_s=asked.timeout_s,
                    patience_s=asked.patience_s, has_answered=has_answered)


def teach(asked: argparse.Namespace) -> None:
    if asked.out.exists():
        raise DataError(f"{asked.out} is there already.", field="out", hint="Choose another name, or remove it.")
    if not asked.out.parent.is_dir():
        raise DataError(f"There is no directory {asked.out.parent}.", field="out", hint="Make it first.")
    part = asked.out.with_name(asked.out.name + ".part")
    questions = asked.questions
    if questions is None:
        questions = starter.write("questions", asked.out.with_name(asked.out.name + ".questions.jsonl"),
                                  minutes=asked.minutes)
    teacher = make_teacher(asked, has_answered=part.exists())
    options = {**teacher.identity(), "system": asked.system, "temperature": asked.temperature,
               "max_tokens": asked.max_tokens, "seed": asked.seed}
    with Journal(part, options) as journal:
        if len(journal):
            print(f"Going on behind {len(journal)} questions in {part}.", file=sys.stderr)
        total = count_questions(questions, journal, asked.limit)
        line = _Line()
        try:
            answer_all(questions, teacher, journal, total=total, limit=asked.limit, system=asked.system,
                       concurrency=asked.concurrency, say=line.say)
        except BaseException:
            line.end()
            print(f"{len(journal)} of {total} questions are kept in {part}.", file=sys.stderr)
            raise
        line.end()
        check_any(journal)
        rows = journal.write_rows(asked.out, read_questions(questions, asked.limit),
                                  system=asked.system if asked.keep_system else "")
        print(f"{asked.out} has {rows} conversations. {said_of_left_out(journal)}".rstrip(), flush=True)
    part.unlink()
    if asked.questions is None:
        questions.unlink()


class _Line:
    """Progress on one line of a terminal; elsewhere a line every 30 seconds."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._said_at = time.monotonic()
        self._is_over = False

    def say(self, progress: Progress) -> None:
        if self._is_terminal:
            print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._said_at >= LINE_EVERY_S or (progress.done == progress.total
                                                                  and not self._is_over):
            self._said_at, self._is_over = time.monotonic(), progress.done == progress.total
            print(progress, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._is_terminal:
            print(file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    asked = parser().parse_args(arguments)
    if asked.endpoint is not None and not asked.model:
        parser().error("--endpoint needs --model")
    try:
        teach(asked)
    except KeyboardInterrupt:
        print(f"Interrupted. Go on with: python -m minimind.teach {shlex.join(arguments)}", file=sys.stderr)
        return 130
    except MiniMindError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
