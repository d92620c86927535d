"""A teacher's answers become a dataset: whole runs, interruptions, questions, a checkpoint of ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minimind.data import foreign, starter
from minimind.data.layouts import iter_rows
from minimind.errors import DataError
from minimind.teach.__main__ import _Line, main, make_teacher, parser
from minimind.teach.journal import Journal
from minimind.teach.local import LocalTeacher
from minimind.teach.loop import JOIN_S, Progress, answer_all, count_questions
from minimind.teach.questions import Question, read_questions
from minimind.teach.teachers import Answer
from tests.checkpoint_rig import make_checkpoint
from tests.teacher_rig import KEY, completion, echo, write_questions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINIMIND_TEACHER_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def run(tmp_path: Path, url: str, *more: str, questions: Path | None = None, out: str = "out.jsonl") -> int:
    questions = questions or write_questions(tmp_path / "questions.jsonl")
    return main(["--questions", str(questions), "--out", str(tmp_path / out), "--endpoint", url, "--model", "small",
                 *more])


def rows(path: Path) -> list[list[dict]]:
    return [row["conversations"] for _, row in iter_rows(path, "conversations")]


# -- a whole run --------------------------------------------------------------------------------------------------


def test_answers_become_conversations_in_the_order_of_the_questions(tmp_path, serve, capsys, monkeypatch):
    def reply(body: dict, count: int) -> tuple:
        time.sleep(0.05 if count == 1 else 0)  # the first to be asked is the last to be answered
        return echo(body, count)

    monkeypatch.setenv("MINIMIND_TEACHER_KEY", KEY)
    server = serve(reply)
    assert run(tmp_path, server.url, "--system", "Be brief.", "--temperature", "0", "--max_tokens", "50", "--seed",
               "7", "--concurrency", "3") == 0
    made = rows(tmp_path / "out.jsonl")
    assert made == [[{"role": "user", "content": f"What is {n}?"},
                     {"role": "assistant", "content": f"You asked: What is {n}?"}] for n in range(1, 7)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "questions.jsonl"]
    assert "has 6 conversations" in capsys.readouterr().out
    sent = server.bodies[0]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["model"], sent["temperature"], sent["max_tokens"], sent["seed"]) == ("small", 0, 50, 7)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert run(tmp_path, server.url) == 2 and "is there already" in capsys.readouterr().err


def test_the_system_prompt_is_part_of_the_rows_only_where_asked(tmp_path, serve):
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "a"}\n{"conversations": [{"role": "system", "content": "Own."}, '
                         '{"role": "user", "content": "b"}]}\n')
    server = serve()
    assert run(tmp_path, server.url, "--system", "S.", "--keep_system", questions=questions) == 0
    assert [m[0]["content"] for m in rows(tmp_path / "out.jsonl")] == ["S.", "Own."]
    assert sorted(b["messages"][0]["content"] for b in server.bodies) == ["Own.", "S."]


def test_the_starter_corpus_asks_where_no_file_is_named(tmp_path, serve):
    server = serve()
    assert main(["--out", str(tmp_path / "out.jsonl"), "--endpoint", server.url, "--model", "small", "--limit", "5",
                 "--minutes", "0.5"]) == 0
    asked = [m[0]["content"] for m in rows(tmp_path / "out.jsonl")]
    assert asked == [row["question"] for row, _ in zip(starter.generate("questions", minutes=0.5), range(5),
                                                       strict=False)]
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_what_was_cut_or_is_empty_is_left_out_and_counted(tmp_path, serve, capsys):
    replies = {"What is 1?": completion("half an", "length"), "What is 2?": completion("  "),
               "What is 3?": (400, {}, {"error": {"message": "no"}}),
               "What is 4?": completion("<think>\nhm\n</think>\n\nfour"),
               "What is 5?": completion("five", reasoning_content="well"),
               "What is 6?": completion(None, "tool_calls")}
    server = serve(lambda body, count: replies[body["messages"][-1]["content"]])
    assert run(tmp_path, server.url) == 0
    answers = [m[-1] for m in rows(tmp_path / "out.jsonl")]
    assert answers == [{"role": "assistant", "content": "four", "reasoning_content": "hm"},
                       {"role": "assistant", "content": "five", "reasoning_content": "well"}]
    assert "4 questions were left out: 1 cut off by max_tokens, 2 empty, 1 refused by the teacher." in \
        capsys.readouterr().out


def test_a_teacher_that_answers_nothing_makes_no_file(tmp_path, serve, capsys):
    assert run(tmp_path, serve(lambda body, count: completion("half", "length")).url) == 2
    assert "Not one question was answered. 6 questions were left out: 6 cut off" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_teacher_that_refuses_everything_is_not_asked_everything(tmp_path, serve, capsys):
    server = serve(lambda body, count: (400, {}, {"error": {"message": "temperature is not for this model"}}))
    assert run(tmp_path, server.url, "--concurrency", "1", questions=write_questions(tmp_path / "q.jsonl", 50)) == 2
    assert "temperature is not for this model" in capsys.readouterr().err and len(server.bodies) < 8


# -- going on -----------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_interrupted_run_goes_on_to_the_same_file(tmp_path, serve, concurrency):
    turns = threading.Semaphore(20 + concurrency)  # so that the server is never further than what was written down

    def reply(body: dict, count: int) -> tuple:
        turns.acquire()
        return echo(body, count)

    server = serve(reply)
    questions = write_questions(tmp_path / "questions.jsonl", 20)
    assert run(tmp_path, server.url, out="whole.jsonl", questions=questions) == 0
    asked = parser().parse_args(["--questions", str(questions), "--out", str(tmp_path / "out.jsonl"), "--endpoint",
                                 server.url, "--model", "small"])
    teacher = make_teacher(asked, has_answered=False)
    options = {**teacher.identity(), "system": "", "temperature": None, "max_tokens": 1024, "seed": None}

    done = 0

    def stop(progress: Progress) -> None:
        nonlocal done
        if progress.done >= 7:
            raise Stop
        if progress.done > done:
            turns.release(progress.done - done)
            done = progress.done

    part = tmp_path / "out.jsonl.part"
    with Journal(part, options) as journal, pytest.raises(Stop):
        answer_all(questions, teacher, journal, total=20, concurrency=concurrency, say=stop)
    with open(part, "ab") as file:
        file.write(b'{"n": 19, "q": "torn')
    assert 7 <= part.read_bytes().count(b'"answer"') <= 7 + concurrency
    turns.release(100)
    assert run(tmp_path, server.url, questions=questions) == 0
    assert len(server.bodies) <= 20 + 20 + concurrency, "only what was on its way is asked twice"
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_ctrl_c_keeps_what_there_is_and_says_how_to_go_on(tmp_path, serve):
    server = serve(lambda body, count: time.sleep(0.05 if count < 5 else 30) or echo(body, count))
    command = [sys.executable, "-m", "minimind.teach", "--questions", str(write_questions(tmp_path / "q.jsonl", 20)),
               "--out", str(tmp_path / "out.jsonl"), "--endpoint", server.url, "--model", "small", "--concurrency", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "MINIMIND_TEACHER_KEY": KEY})
    part = tmp_path / "out.jsonl.part"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (part.exists() and part.read_bytes().count(b'"answer"') >= 4):
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130 and time.monotonic() - began < 12
    assert "4 of 20 questions are kept in" in said and f"--out {tmp_path / 'out.jsonl'}" in said
    assert KEY not in said and KEY not in part.read_text() and not (tmp_path / "out.jsonl").exists()


def test_a_journal_of_other_options_or_questions_is_refused(tmp_path, serve, capsys):
    server = serve()
    questions = write_questions(tmp_path / "q.jsonl", 3)
    with Journal(tmp_path / "out.jsonl.part", {
            "endpoint": server.url, "model": "small", "system": "", "temperature": None, "max_tokens": 1024,
            "seed": None}) as journal:
        journal.add(Question(1, [{"role": "user", "content": "What is 1?"}]), Answer("one"))
        with pytest.raises(DataError, match="Another process is writing"):
            Journal(journal.path, {})
    assert run(tmp_path, server.url, "--temperature", "0.5", questions=questions) == 2
    assert "temperature was null and is 0.5 now" in capsys.readouterr().err
    questions.write_text(questions.read_text().replace("What is 1?", "Who is 1?"))
    assert run(tmp_path, server.url, questions=questions) == 2
    assert "Question 1 is another one than when" in capsys.readouterr().err
    write_questions(questions, 3)
    assert run(tmp_path, server.url, questions=questions) == 0
    assert [m[-1]["content"] for m in rows(tmp_path / "out.jsonl")][:2] == ["one", "You asked: What is 2?"]


def test_a_damaged_journal_is_named_by_line(tmp_path):
    with Journal(tmp_path / "part", {}) as journal:
        journal.add(Question(1, [{"role": "user", "content": "x"}]), Answer("one"))
    content = (tmp_path / "part").read_bytes().splitlines(keepends=True)
    (tmp_path / "part").write_bytes(content[0] + b"{broken\n" + content[1])
    with pytest.raises(DataError, match="part line 2 is damaged"):
        Journal(tmp_path / "part", {})


# -- questions ----------------------------------------------------------------------------------------------------


def test_questions_of_every_shape(tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "r", "x": 1},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    given = [{"question": "q"}, {"prompt": "p"}, {"conversations": talk}, {"messages": talk[:1]},
             {"conversations": [{"role": "user", "content": "x"}], "tools": [{"name": "f"}]},
             {"conversations": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}, talk[2]]}]
    (tmp_path / "q.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, given)))
    found = list(read_questions(tmp_path / "q.jsonl"))
    assert [q.number for q in found] == [1, 2, 3, 4], "those with tools are passed over"
    assert [m["content"] for m in found[2].messages] == ["a", "b", "c"]
    assert found[2].messages[1] == {"role": "assistant", "content": "b", "reasoning_content": "r"}
    assert found[2].asked("S")[0] == {"role": "system", "content": "S"}
    assert set(found[2].asked()[1]) == {"role", "content"}
    (tmp_path / "q.txt").write_text("one?\n\n{two?}\r\n三？")
    assert [q.messages[0]["content"] for q in read_questions(tmp_path / "q.txt")] == ["one?", "{two?}", "三？"]
    assert len(list(read_questions(tmp_path / "q.txt", limit=2))) == 2


def test_the_header_of_a_table_is_no_question(tmp_path):
    (tmp_path / "q.csv").write_text("question\nWho?\n")
    with pytest.raises(DataError, match="q.csv is a table or an archive") as caught:
        list(read_questions(tmp_path / "q.csv"))
    with foreign.Source(tmp_path / "q.csv") as source:  # as the hint says
        foreign.write_canonical(source, tmp_path / "questions.jsonl")
    assert "minimind.data.foreign q.csv" in caught.value.hint
    assert [q.messages[0]["content"] for q in read_questions(tmp_path / "questions.jsonl")] == ["Who?"]


@pytest.mark.parametrize(("content", "line", "field"), [
    (b'{"question": "a"}\n{"question": 3}\n', 2, "question"), (b'{"text": "a"}\n', 1, "question"),
    (b'{"question": "a"}\n[1]\n', 2, None), (b'{"question": " "}\n', 1, "question"),
    (b'{"conversations": [{"role": "robot", "content": "a"}]}', 1, "conversations[0].role"),
    (b'{"conversations": [{"role": "assistant", "content": "a"}]}', 1, "conversations"),
    (b'{"conversations": [{"role": "user"}]}', 1, "conversations[0].content"), (b'{"question": "\xff"}', 1, None),
    (b"\n", None, "questions"),
])
def test_a_row_that_is_no_question_is_named_before_any_is_asked(tmp_path, serve, content, line, field):
    server = serve()
    (tmp_path / "q.jsonl").write_bytes(content)
    with Journal(tmp_path / "part", {}) as journal, pytest.raises(DataError) as caught:
        count_questions(tmp_path / "q.jsonl", journal)
    assert (caught.value.line, caught.value.field) == (line, field) and "q.jsonl" in str(caught.value)
    assert run(tmp_path, server.url, questions=tmp_path / "q.jsonl") == 2 and not server.bodies


def test_the_command_line_knows_no_key():
    assert not [a for a in parser()._actions if "key" in "".join(a.option_strings)]
    with pytest.raises(SystemExit):
        parser().parse_args(["--questions", "a", "--out", "b"])  # nobody to ask


# -- a checkpoint of ours -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learnt nothing: it says noise, the same noise for the same seed."""
    return make_checkpoint(tmp_path_factory.mktemp("teacher") / "model", seed=1, positions=512)


@pytest.fixture
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seventh token ends an answer: noise knows no end token."""
    from minimind.engine import Engine

    init = Engine.__init__

    def shorter(self: Engine, *given: object, **options: object) -> None:
        init(self, *given, **options)
        self.end_ids |= set(range(0, 420, 7))

    monkeypatch.setattr(Engine, "__init__", shorter)


@pytest.mark.parametrize("temperature", ["0", "1.5"])
def test_a_checkpoint_gives_the_same_answers_after_an_interruption(tmp_path, checkpoint, short_answers, monkeypatch,
                                                                   capsys, temperature):
    questions = write_questions(tmp_path / "q.jsonl", 12)
    command = ["--questions", str(questions), "--checkpoint", str(checkpoint), "--temperature", temperature,
               "--max_tokens", "40", "--seed", "3"]
    assert main([*command, "--out", str(tmp_path / "whole.jsonl")]) == 0
    say, seen = _Line.say, []

    def interrupt(self: _Line, progress: Progress) -> None:
        say(self, progress)
        seen.append(progress)
        if progress.done == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Line, "say", interrupt)
        assert main([*command, "--out", str(tmp_path / "out.jsonl")]) == 130
    assert "Interrupted. Go on with: python -m minimind.teach --questions" in capsys.readouterr().err
    assert seen[-1].eta_s > 0 and "of 12" in str(seen[-1])
    assert main([*command, "--out", str(tmp_path / "out.jsonl")]) == 0
    kept = re.search(r"Going on behind (\d+) questions", capsys.readouterr().err)
    assert 5 <= int(kept[1]) < 12  # one more may have come in while the interrupt was on its way
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert len({m[-1]["content"] for m in rows(tmp_path / "whole.jsonl")}) > 3
    if temperature != "0":
        assert main([*command[:-1], "4", "--out", str(tmp_path / "other.jsonl")]) == 0
        assert (tmp_path / "other.jsonl").read_bytes() != whole


def test_of_a_run_its_newest_checkpoint_answers(tmp_path, checkpoint):
    newest = tmp_path / "run/checkpoints/step-00000020-a1"
    for path in (newest, newest.with_name("step-00000010-a1")):
        shutil.copytree(checkpoint, path)
    assert LocalTeacher(tmp_path / "run").identity() == {"checkpoint": str(newest)}


def test_a_checkpoint_stops_within_an_answer(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("minimind.teach.loop.SAY_EVERY_S", 0.02)  # before a quick machine has answered
    teacher = LocalTeacher(checkpoint, max_tokens=400, temperature=1)
    teacher.engine.end_ids = set()
    with Journal(tmp_path / "part", {}) as journal:
        began = time.monotonic()

        def stop(progress: Progress) -> None:
            raise Stop

        with pytest.raises(Stop):
            answer_all(write_questions(tmp_path / "q.jsonl"), teacher, journal, total=6, say=stop)
        assert time.monotonic() - began < JOIN_S and len(journal) == 0
        assert teacher.ask([{"role": "user", "content": "x " * 600}], 1, lambda: False).left_out == "too_long"
