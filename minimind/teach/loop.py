"""Asks a teacher every question that has no answer yet, several at a time, and says how far it is."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minimind.teach.journal import Journal
from minimind.teach.questions import Question, read_questions
from minimind.teach.teachers import LEFT_OUT, Answer, Teacher, TeacherError

SAY_EVERY_S = 0.5
#: a teacher that has refused so many and answered none has something against how it is asked
REFUSALS = 3
#: how long threads may take to notice that they are to end
JOIN_S = 5.0


@dataclass(frozen=True)
class Progress:
    """``done`` questions of ``total``, those of earlier starts included; ``rate_per_s`` counts this start's."""

    done: int
    total: int
    answered: int
    left_out: int
    rate_per_s: float | None
    eta_s: float | None

    def __str__(self) -> str:
        return ", ".join([f"{self.done} of {self.total} questions", *self.remarks()])

    def remarks(self) -> list[str]:
        """What there is to say beside the two numbers."""
        parts = [f"{self.left_out} of them left out"] if self.left_out else []
        if self.rate_per_s and self.eta_s is not None:
            slow = self.rate_per_s < 0.5
            parts.append(f"{self.rate_per_s * 60:.1f} a minute" if slow else f"{self.rate_per_s:.1f} a second")
            parts.append(f"{duration(self.eta_s)} left")
        return parts


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count_questions(path: Path | str, journal: Journal, limit: int | None = None) -> int:
    """How many there are. Every row is looked at before the first is asked, and those that have an answer are
    compared. Raises ``DataError``."""
    total = 0
    for question in read_questions(path, limit):
        journal.has(question)
        total += 1
    return total


def answer_all(path: Path | str, teacher: Teacher, journal: Journal, *, total: int, limit: int | None = None,
               system: str = "", concurrency: int = 1, say: Callable[[Progress], None] = lambda progress: None) -> None:
    """Ask what ``journal`` lacks of the questions in ``path``, up to ``concurrency`` at once.

    ``say`` is called at least twice a second, in the calling thread; what it raises ends everything, and so does
    KeyboardInterrupt: what was answered stays in the journal. Raises ``TeacherError``.
    """
    waiting = (q for q in read_questions(path, limit) if not journal.has(q))
    feed, stop = threading.Lock(), threading.Event()
    results: queue.Queue[tuple[Question, Answer] | BaseException | None] = queue.Queue()

    def work() -> None:
        try:
            while not stop.is_set():
                with feed:
                    question = next(waiting, None)
                if question is None:
                    break
                answer = teacher.ask(question.asked(system), question.number, stop.is_set)
                if answer is not None:
                    results.put((question, answer))
        except BaseException as error:
            results.put(error)
        results.put(None)

    known, began = len(journal), time.monotonic()
    threads = [threading.Thread(target=work, daemon=True)
               for _ in range(max(1, min(concurrency, teacher.max_concurrency, total - known)))]
    for thread in threads:
        thread.start()
    working = len(threads)
    try:
        while working:
            try:
                result = results.get(timeout=SAY_EVERY_S)
            except queue.Empty:
                result = ()  # nothing new to keep, but something to say
            if isinstance(result, BaseException):
                raise result
            if result is None:
                working -= 1
            elif result:
                journal.add(*result)
                _look_at(result[1], journal)
            say(_progress(journal, total, known, time.monotonic() - began))
    finally:
        stop.set()
        if working:
            teacher.close()
        deadline = time.monotonic() + JOIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        while not results.empty():  # answers that came meanwhile are kept too
            if isinstance(result := results.get(), tuple):
                journal.add(*result)


def _look_at(answer: Answer, journal: Journal) -> None:
    if answer.left_out == "refused" and not journal.answered and journal.left_out["refused"] >= REFUSALS:
        raise TeacherError(f'The teacher refuses what it is asked: "{answer.note}"', field="endpoint",
                           hint="Change the options that it names, and begin anew.")


def _progress(journal: Journal, total: int, known: int, seconds: float) -> Progress:
    done = len(journal)
    rate = (done - known) / seconds if done > known and seconds > 0 else None
    return Progress(done, total, journal.answered, sum(journal.left_out.values()), rate,
                    (total - done) / rate if rate else None)


def said_of_left_out(journal: Journal) -> str:
    """``"2 answers were left out: 2 cut off by max_tokens."``, or nothing where none was."""
    total = sum(journal.left_out.values())
    if not total:
        return ""
    reasons = ", ".join(f"{count} {LEFT_OUT[why]}" for why, count in sorted(journal.left_out.items()))
    return f"{total} {'question was' if total == 1 else 'questions were'} left out: {reasons}."


def check_any(journal: Journal) -> None:
    """Raises ``TeacherError`` where not one question was answered."""
    if not journal.answered:
        hint = "Raise max_tokens." if journal.left_out["cut"] else "Look at what the teacher says to one of them."
        raise TeacherError(f"Not one question was answered. {said_of_left_out(journal)}", field="endpoint", hint=hint)
