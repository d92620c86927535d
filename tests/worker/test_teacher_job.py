"""The job that has a teacher answer: what was answered outlives a killed process, and nothing outlives a failed one."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.core import db, queue, secrets
from app.core.models import Dataset, Job
from app.core.settings import get_settings
from minimind.data.layouts import iter_rows
from tests.database_rig import HOST, add_host
from tests.teacher_rig import KEY, Server, asked, completion, write_questions
from tests.worker.runner_rig import wait_until
from worker import jobs, teacher_job
from worker.reconciler import Reconciler, start_job


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """``serve(reply)``: a running teacher; ``reply(question)`` is a text, or the status of a refusal."""
    with ExitStack() as running:
        def start(reply: Callable[[str], str | int] = lambda question: f"You asked: {question}") -> Server:
            def answer(body: dict, count: int) -> tuple:
                said = reply(asked(body))
                return (said, {}, {}) if isinstance(said, int) else completion(said)

            return running.enter_context(Server(answer))

        yield start


@pytest.fixture(autouse=True)
def host(database, monkeypatch):
    add_host()
    monkeypatch.setattr(teacher_job, "PATIENCE_S", 0.2)


def enqueue(server: Server | None, *, count: int = 6, **more: object) -> str:
    """A dataset of questions, and the job that has them answered into the dataset ``made``."""
    questions = write_questions(get_settings().data_dir / "questions.jsonl", count)
    payload = {"dataset_id": "made", "questions_dataset_id": "asked", "starter": None, "checkpoint_id": None,
               "endpoint": server and {"url": server.url, "model": "small"}, "system": "",
               "keep_system": False, "temperature": None, "max_tokens": 64, "limit": None, "seed": None,
               "concurrency": 2, "aside": str(get_settings().datasets_dir / ".made.importing"), **more}
    with db.transaction() as session:
        session.add(Dataset(id="asked", name="questions", user_id="local", layout="questions", state="ready",
                            warnings=[], source={}, path=str(questions), created_at=0))
        session.add(Dataset(id="made", name="made", user_id="local", layout="conversations", state="importing",
                            warnings=[], source={"kind": "teacher"}, created_at=0))
        return queue.enqueue_job(session, "teacher_answers", payload, user_id="local").id


def claim() -> tuple[str, int]:
    with db.transaction() as session:
        return queue.claim_job(session, HOST)


def row(kind: type, id: str):
    with db.reading() as session:
        return session.get(kind, id)


def answers() -> list[str]:
    return [r["conversations"][-1]["content"] for _, r in iter_rows(row(Dataset, "made").path, "conversations")]


def left_on_disk() -> list[str]:
    root = get_settings().datasets_dir
    return sorted(str(p.relative_to(root)) for p in root.rglob("*"))


def journal(attempt: int) -> Path:
    return get_settings().datasets_dir / ".made.importing" / f"answers-a{attempt}.jsonl"


def count_in(path: Path) -> int:
    return path.read_bytes().count(b'"answer"') if path.exists() else 0


def kill_process(job_id: str, attempt: int, after: Callable[[], bool]) -> None:
    """Start the job as a worker does, and kill it when ``after()`` is true."""
    process = start_job(job_id, attempt)
    try:
        wait_until(after, 30)
    finally:
        process.kill()
        process.wait()


def die(monkeypatch: pytest.MonkeyPatch, answers: int) -> int:
    """Do an attempt in this process until there are so many answers, and drop it as a kill would: without a word.
    Returns how many there are."""
    job_id, attempt = claim()

    def say(*_: object, **__: object) -> None:
        if count_in(journal(attempt)) >= answers:
            raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(jobs.Work, "say", say)
        jobs.execute(job_id, attempt)
    return count_in(journal(attempt))


def look(reconciler: Reconciler, job_id: str) -> None:
    """As the bookkeeper some seconds later: a process that has just been claimed is given time to appear."""
    with db.transaction() as session:
        session.get(Job, job_id).started_at -= 60
    reconciler._look_at_job(job_id)


def test_a_teacher_writes_a_dataset(serve):
    server = serve()
    secrets.keep_key("local", server.origin, KEY)
    job_id = enqueue(server, system="Be brief.", keep_system=True)
    assert jobs.execute(*claim()) == "completed"
    made = row(Dataset, "made")
    assert (made.state, made.layout, made.rows, made.warnings) == ("ready", "conversations", 6, [])
    assert answers() == [f"You asked: What is {n}?" for n in range(1, 7)]
    assert left_on_disk() == ["made", "made/data.jsonl"] and len(made.sha256) == 64
    assert json.loads(Path(made.path).read_text().splitlines()[0])["conversations"][0]["role"] == "system"
    done = row(Job, job_id)
    assert done.result == {"dataset_id": "made", "rows": 6} and done.progress["done"] == 6
    assert server.keys == {f"Bearer {KEY}"} and KEY not in json.dumps([done.payload, made.source, done.progress])


def test_the_starter_corpus_asks(serve):
    server = serve()
    enqueue(server, questions_dataset_id=None, starter={"minutes": 0.5, "languages": ["en"], "seed": 3}, limit=5)
    assert jobs.execute(*claim()) == "completed"
    assert row(Dataset, "made").rows == 5 and all("You asked: " in a for a in answers())


def test_a_key_goes_to_its_own_server_only(serve):
    server, other = serve(), serve()
    secrets.keep_key("local", other.origin, KEY)
    secrets.keep_key("somebody", server.origin, KEY)
    enqueue(server)
    assert jobs.execute(*claim()) == "completed" and server.keys == {None}


def test_a_killed_job_goes_on_behind_its_answers(serve):
    server = serve(lambda question: time.sleep(0.05) or f"You asked: {question}")
    job_id = enqueue(server, count=40)
    kill_process(*claim(), lambda: count_in(journal(1)) >= 10)
    known, before = count_in(journal(1)), len(server.bodies)
    reconciler = Reconciler(HOST)
    look(reconciler, job_id)
    assert row(Job, job_id).state == "queued" and count_in(journal(1)) == known, "nothing is thrown away"
    with open(journal(1), "ab") as file:
        file.write(b'{"n": 3')
    assert jobs.execute(*claim()) == "completed"
    assert len(server.bodies) - before == 40 - known
    assert answers() == [f"You asked: What is {n}?" for n in range(1, 41)]
    assert left_on_disk() == ["made", "made/data.jsonl"]


def test_one_that_was_killed_behind_its_last_word_begins_nothing_anew(serve, monkeypatch):
    server = serve()
    job_id = enqueue(server)
    with monkeypatch.context() as patch:
        patch.setattr(jobs.Work, "end", lambda *_, **__: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            jobs.execute(*claim())
    assert "made/data.jsonl" in left_on_disk()
    look(Reconciler(HOST), job_id)
    assert jobs.execute(*claim()) == "completed" and len(server.bodies) == 6
    assert left_on_disk() == ["made", "made/data.jsonl"] and row(Dataset, "made").rows == 6


def test_a_shutdown_costs_no_try_and_no_answer(serve, monkeypatch):
    server = serve()
    job_id = enqueue(server, count=20)
    for attempt in (1, 2, 3):
        die(monkeypatch, 4 * attempt)
        with db.transaction() as session:
            queue.lose_job(session, session.get(Job, job_id), on_purpose=True)
    assert jobs.execute(*claim()) == "completed" and row(Dataset, "made").rows == 20
    assert row(Job, job_id).attempt == 4 and len(server.bodies) < 20 + 4 * 3  # an answer or two was on its way


def test_killed_twice_it_fails_and_leaves_nothing(serve, monkeypatch):
    job_id = enqueue(serve(), count=20)
    for attempt in (1, 2):
        die(monkeypatch, 3 * attempt)
        look(Reconciler(HOST), job_id)
    assert row(Job, job_id).state == "failed" and row(Dataset, "made").state == "failed"
    assert left_on_disk() == []


@pytest.mark.parametrize("reply", [401, 503])
def test_a_teacher_that_cannot_go_on_is_one_sentence_and_leaves_nothing(serve, reply):
    asked = []
    server = serve(lambda question: asked.append(question) or ("yes" if len(asked) < 3 else reply))
    job_id = enqueue(server)
    assert jobs.execute(*claim()) == "failed"
    failed = row(Job, job_id)
    assert f"status {reply}" in failed.error["message"] and failed.error["class"] == "TEACHER" and failed.error["hint"]
    assert (reply == 401) == ("secrets/teacher" in failed.error["hint"]) and "MINIMIND" not in failed.error["hint"]
    assert row(Dataset, "made").error == failed.error and left_on_disk() == []


def test_cancelling_ends_it_within_a_moment(serve, monkeypatch):
    monkeypatch.setattr(jobs, "PROGRESS_EVERY_S", 0.0)
    server = serve(lambda question: time.sleep(0 if "1?" in question else 20) or "yes")
    job_id = enqueue(server)
    claimed = claim()

    def cancel() -> None:
        wait_until(lambda: count_in(journal(1)) >= 1, 10)
        with db.transaction() as session:
            queue.request_cancel_job(session, session.get(Job, job_id))

    thread = threading.Thread(target=cancel)
    thread.start()
    began = time.monotonic()
    assert jobs.execute(*claimed) == "cancelled"
    thread.join()
    assert time.monotonic() - began < 5 and left_on_disk() == [] and row(Dataset, "made").state == "failed"


def test_one_that_waits_for_its_second_try_is_cancelled_with_its_answers(serve, monkeypatch):
    job_id = enqueue(serve(), count=40)
    die(monkeypatch, 3)
    look(Reconciler(HOST), job_id)
    assert row(Job, job_id).state == "queued" and count_in(journal(1)) >= 3
    with db.transaction() as session:
        queue.request_cancel_job(session, session.get(Job, job_id))
    assert row(Job, job_id).state == "cancelled" and left_on_disk() == []


def test_one_that_was_given_to_another_changes_nothing(serve, monkeypatch):
    monkeypatch.setattr(jobs, "PROGRESS_EVERY_S", 0.0)
    server = serve()
    job_id = enqueue(server)
    claimed = claim()
    with db.transaction() as session:
        queue.lose_job(session, session.get(Job, job_id))

    class Late(jobs.Work):
        def __init__(self, job_id: str, attempt: int):
            self.job_id, self.attempt, self._said_at = job_id, attempt, 0.0
            with db.reading() as session:
                job = session.get(Job, job_id)
                self.kind, self.payload = job.kind, dict(job.payload)

    again = claim()
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "Work", Late)
        assert jobs.execute(*claimed) == "lost"
    assert row(Job, job_id).state == "running"
    assert jobs.execute(*again) == "completed" and row(Dataset, "made").rows == 6


def test_imports_do_not_wait_for_a_teacher(serve):
    enqueue(serve())
    teacher = claim()
    with db.transaction() as session:
        for kind in ("teacher_answers", "tokenizer_train", "dataset_import"):
            session.add(Job(id=kind, kind=kind, state="queued", payload={}, user_id="local", created_at=1, attempt=0,
                            cancel_wanted=False, progress={}))
    assert row(Job, teacher[0]).kind == "teacher_answers"
    assert claim()[0] in ("tokenizer_train", "dataset_import")
    assert claim() is None, "one of each sort"


def test_a_checkpoint_teaches(serve, tmp_path, monkeypatch):
    """The model is loaded by the job itself."""
    from app.core.models import Checkpoint, Run
    from minimind.engine import Engine
    from tests.checkpoint_rig import make_checkpoint

    place = make_checkpoint(tmp_path / "teacher", seed=1)
    init = Engine.__init__

    def shorter(self: Engine, *given: object, **options: object) -> None:
        init(self, *given, **options)
        self.end_ids |= set(range(0, 420, 7))  # noise knows no end token

    monkeypatch.setattr(Engine, "__init__", shorter)
    enqueue(None, checkpoint_id="c1", temperature=1.0, max_tokens=64)
    with db.transaction() as session:
        session.add(Run(id="r1", name="r", user_id="local", stage="sft", config={}, devices="auto", state="completed",
                        ended_at=1, created_at=0, updated_at=0))
        session.flush()
        session.add(Checkpoint(id="c1", run_id="r1", attempt=1, stage="sft", step=1, tokens=1, bytes=1,
                               path=str(place), created_at=0))
    assert jobs.execute(*claim()) == "completed", row(Dataset, "made").error
    made = row(Dataset, "made")
    left_out = [int(w.split()[0]) for w in made.warnings if "left out" in w]
    assert made.rows > 2 and made.rows + sum(left_out) == 6


def test_a_checkpoint_that_is_gone_is_said(serve):
    job_id = enqueue(None, checkpoint_id="c1")
    assert jobs.execute(*claim()) == "failed"
    assert "checkpoint of the teacher is not there" in row(Job, job_id).error["message"] and left_on_disk() == []


def test_keys_are_files_for_our_own_account(database):
    secrets.keep_key("local", "https://a.example", KEY)
    secrets.keep_key("local", "https://a.example", KEY + "2")
    kept = [p for p in (get_settings().data_dir / "secrets").rglob("*") if p.is_file()]
    assert [os.stat(p).st_mode & 0o777 for p in kept] == [0o600]
    assert os.stat(kept[0].parent).st_mode & 0o077 == 0
    assert secrets.key_for("local", "https://a.example") == KEY + "2"
    assert secrets.key_for("local", "http://a.example") is None and secrets.key_for("x", "https://a.example") is None
    assert [origin for origin, _ in secrets.origins_with_keys("local")] == ["https://a.example"]
    assert secrets.forget_key("local", "https://a.example") and not secrets.forget_key("local", "https://a.example")
