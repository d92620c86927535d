"""Imports and tokenizers: whole or not at all, with the line of the first mistake."""

from __future__ import annotations

import errno
import io
import json
import time
import zipfile
from pathlib import Path

import pytest

from app.core import db, queue
from app.core.models import Dataset, Job, TokenizerRow
from app.core.settings import get_settings
from minimind.tokenizer import Tokenizer
from tests.database_rig import HOST, add_host
from tests.worker.runner_rig import stop_between_transactions
from worker import jobs
from worker.reconciler import Reconciler, start_job


@pytest.fixture(autouse=True)
def host(database):
    add_host()


def make_import(content: bytes | None, *, filename: str = "mine.jsonl", layout: str = "auto",
                starter: dict | None = None, mapping: dict | None = None) -> tuple[str, int]:
    upload = None
    if content is not None:
        upload = get_settings().uploads_dir / "u1"
        upload.parent.mkdir(exist_ok=True)
        upload.write_bytes(content)
    with db.transaction() as session:
        session.add(Dataset(id="d1", name="mine", user_id="local", layout=layout, state="importing", warnings=[],
                            source={"kind": "upload", "filename": filename}, created_at=0))
        queue.enqueue_job(session, "dataset_import", {"dataset_id": "d1", "upload_path": upload and str(upload),
                                                      "starter": starter, "layout": layout, "mapping": mapping},
                          user_id="local")
    return claim()


def claim() -> tuple[str, int]:
    with db.transaction() as session:
        return queue.claim_job(session, HOST)


def dataset() -> Dataset:
    with db.reading() as session:
        return session.get(Dataset, "d1")


def job(job_id: str) -> Job:
    with db.reading() as session:
        return session.get(Job, job_id)


def left_on_disk() -> list[str]:
    """Files of uploads, datasets and tokenizers, hidden ones too."""
    root = get_settings().data_dir
    return sorted(str(p.relative_to(root)) for d in ("uploads", "datasets", "tokenizers")
                  for p in (root / d).rglob("*") if p.is_file())


def test_an_upload_becomes_a_dataset(database):
    rows = b"".join(json.dumps({"text": f"row {i} \xe9"}).encode() + b"\n" for i in range(2500))
    job_id, attempt = make_import(rows)
    assert jobs.execute(job_id, attempt) == "completed"
    made = dataset()
    assert (made.state, made.layout, made.rows, made.bytes) == ("ready", "text", 2500, len(rows))
    assert Path(made.path).read_bytes() == rows and len(made.sha256) == 64
    assert left_on_disk() == ["datasets/d1/data.jsonl"], "the upload is gone"
    assert job(job_id).state == "completed" and job(job_id).progress["total"] == len(rows)


def test_plain_text_stays_plain_text(database):
    job_id, attempt = make_import(b"one\n\ntwo\n", filename="book.TXT")
    assert jobs.execute(job_id, attempt) == "completed"
    assert dataset().layout == "txt" and dataset().rows == 2 and dataset().path.endswith("data.txt")


def gb18030_table(rows: int) -> bytes:
    lines = (f"高血压能吃党参吗{i}？,可以口服，没有问题。\n" for i in range(rows))
    return ("ask,answer\n" + "".join(lines)).encode("gb18030")


@pytest.mark.parametrize("packed", [False, True])
def test_a_foreign_file_is_converted(database, packed):
    content, name = gb18030_table(500), "qa.csv"
    if packed:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inside/qa.csv", content)
        content, name = buffer.getvalue(), "qa.zip"
    job_id, attempt = make_import(content, filename=name)
    assert jobs.execute(job_id, attempt) == "completed"
    made = dataset()
    assert (made.state, made.layout, made.rows) == ("ready", "conversations", 500)
    assert [json.loads(line) for line in Path(made.path).read_text("utf-8").splitlines()][3] == {"conversations": [
        {"role": "user", "content": "高血压能吃党参吗3？"}, {"role": "assistant", "content": "可以口服，没有问题。"}]}
    assert left_on_disk() == ["datasets/d1/data.jsonl"] and "GB18030" in made.warnings[0]
    detected = made.source["detected"]
    assert (detected["layout"], detected["encoding"], detected["rows_read"]) == ("pairs", "gb18030", 500)


def test_rows_without_use_are_counted_and_broken_ones_named(database):
    rows = [{"instruction": "Who?", "input": "", "output": "Me."}] * 30
    rows[4] = {**rows[4], "output": ""}
    assert jobs.execute(*make_import(json.dumps(rows).encode(), filename="a.json")) == "completed"
    assert dataset().rows == 29 and dataset().source["detected"]["left_out"] == 1
    assert "1 of 30 rows were left out; the first: a.json line 1 (element 5): output is empty." in dataset().warnings


@pytest.mark.parametrize(("rows", "name", "line", "field", "words"), [
    ([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 20 + [{"prompt": "a", "chosen": "b", "rejected": "b"}],
     "pairs.jsonl", 21, "rejected", "pairs.jsonl line 21: chosen and rejected are equal"),
    ([{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": '{"name": '},
                         {"from": "gpt", "value": "b"}]}], "tools.jsonl", 1, "conversations[1].value",
     "tools.jsonl line 1: conversations[1].value is not valid JSON"),
    ([{"conversations": [{"from": "human", "value": "a"}]}], "talk.jsonl", 1, "conversations",
     "has no message of the assistant"),
])
def test_a_broken_foreign_row_is_named(database, rows, name, line, field, words):
    job_id, attempt = make_import(b"".join(json.dumps(row).encode() + b"\n" for row in rows), filename=name)
    assert jobs.execute(job_id, attempt) == "failed"
    error = dataset().error
    assert words in error["message"] and (error["line"], error["field"]) == (line, field) and left_on_disk() == []


def test_a_layout_and_a_mapping_are_followed(database):
    rows = b"First line.\nSecond line.\n"
    assert jobs.execute(*make_import(rows, filename="a.txt", layout="lines")) == "completed"
    assert (dataset().layout, dataset().rows) == ("text", 2)


def test_a_mapping_is_followed(database):
    rows = json.dumps([{"who": "Who?", "then": "Me."}] * 3).encode()
    mapping = {"layout": "pairs", "question": "who", "answer": "then"}
    assert jobs.execute(*make_import(rows, filename="a.json", mapping=mapping)) == "completed"
    assert dataset().source["detected"]["mapping"] == mapping
    with db.transaction() as session:
        session.delete(session.get(Dataset, "d1"))
    assert jobs.execute(*make_import(rows, filename="a.json", mapping={**mapping, "answer": "x"})) == "failed"
    assert "no column 'x'" in dataset().error["message"] and dataset().error["field"] == "mapping.answer"


def test_a_conversion_is_cancelled(database, monkeypatch):
    monkeypatch.setattr(jobs, "PROGRESS_EVERY_S", 0.0)
    job_id, attempt = make_import(gb18030_table(3000), filename="qa.csv")
    with db.transaction() as session:
        queue.request_cancel_job(session, session.get(Job, job_id))
    assert jobs.execute(job_id, attempt) == "cancelled"
    assert job(job_id).progress["message"] == "Converting" and left_on_disk() == []


def test_the_starter_corpus_is_written(database):
    job_id, attempt = make_import(None, starter={"part": "dialogues", "minutes": 0.5, "languages": None, "seed": 7})
    assert jobs.execute(job_id, attempt) == "completed"
    assert dataset().layout == "conversations" and dataset().rows > 10


@pytest.mark.parametrize(("content", "layout", "line", "words"), [
    (b'{"text": "a"}\n{"text": \n', "auto", 2, "mine.jsonl line 2 is not valid JSON"),
    (b'{"text": "a"}\n', "conversations", 1, "mine.jsonl line 1"),
    (b"", "auto", None, "mine.jsonl is empty"),
    (b'{"text": "a"}\n{"text": "\xff"}\n', "auto", 2, "not UTF-8"),
    (b'{"x": 1}\n', "auto", 1, "mine.jsonl line 1"),
])
def test_a_bad_file_is_one_sentence_and_leaves_nothing(database, content, layout, line, words):
    job_id, attempt = make_import(content, layout=layout)
    assert jobs.execute(job_id, attempt) == "failed"
    made = dataset()
    assert made.state == "failed" and words in made.error["message"] and made.error["line"] == line
    assert made.error == job(job_id).error and left_on_disk() == []


def test_a_full_disk_is_said_and_leaves_nothing(database, monkeypatch):
    job_id, attempt = make_import(b'{"text": "a"}\n')

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jobs, "_settle_on_disk", full)
    assert jobs.execute(job_id, attempt) == "failed"
    assert dataset().error["class"] == "DISK_FULL" and "disk" in dataset().error["message"]
    assert left_on_disk() == []


def test_a_cancelled_import_stops_and_leaves_nothing(database, monkeypatch):
    monkeypatch.setattr(jobs, "PROGRESS_EVERY_S", 0.0)
    job_id, attempt = make_import(b'{"text": "a"}\n' * 5000)
    with db.transaction() as session:
        queue.request_cancel_job(session, session.get(Job, job_id))
    assert jobs.execute(job_id, attempt) == "cancelled"
    assert job(job_id).state == "cancelled" and dataset().state == "failed" and left_on_disk() == []


def test_what_nobody_foresaw_is_said_once_and_leaves_nothing(database, monkeypatch):
    """Another try would end in the same way, and it would be said that the process was killed."""
    job_id, attempt = make_import(b'{"text": "a"}\n')
    monkeypatch.setattr(jobs, "scan", lambda *_, **__: {}["nothing"])
    assert jobs.execute(job_id, attempt) == "failed"
    assert dataset().error["class"] == "INTERNAL" and "(KeyError)" in dataset().error["message"]
    assert dataset().error["hint"] and left_on_disk() == []


def test_with_too_little_memory_it_is_tried_again(database, monkeypatch):
    job_id, attempt = make_import(b'{"text": "a"}\n')

    def scan(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(jobs, "scan", scan)
    with pytest.raises(RuntimeError):
        jobs.execute(job_id, attempt)
    assert job(job_id).state == "running", "its worker sees that the process is gone"


def test_one_that_waits_for_its_second_try_is_cancelled_with_what_the_first_left(database):
    job_id, _ = make_import(b'{"text": "a"}\n')
    for left in ("datasets/.d1.importing/data.jsonl", "datasets/d1/data.jsonl"):
        (get_settings().data_dir / left).parent.mkdir(parents=True)
        (get_settings().data_dir / left).write_text("half")
    with db.transaction() as session:
        queue.lose_job(session, session.get(Job, job_id))
    assert len(left_on_disk()) == 3
    with db.transaction() as session:
        queue.request_cancel_job(session, session.get(Job, job_id))
    assert job(job_id).state == "cancelled" and left_on_disk() == []


def test_a_process_whose_job_was_given_on_changes_nothing(database):
    job_id, attempt = make_import(b'{"text": "a"}\n')
    with db.transaction() as session:
        queue.lose_job(session, session.get(Job, job_id))
    second = claim()
    assert jobs.execute(job_id, attempt) == "lost"
    assert job(job_id).state == "running" and dataset().state == "importing"
    assert jobs.execute(*second) == "completed"


def test_a_job_whose_process_is_killed_twice_leaves_nothing(database):
    job_id, attempt = make_import(None, starter={"part": "text", "minutes": 60})
    reconciler = Reconciler(HOST)
    for state in ("queued", "failed"):
        process = start_job(job_id, attempt)
        deadline = time.monotonic() + 60
        while not left_on_disk():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
        with db.transaction() as session:
            session.get(Job, job_id).started_at = 0
        reconciler.reconcile()
        assert job(job_id).state == state
        if state == "queued":
            job_id, attempt = claim()
    assert "killed twice" in job(job_id).error["message"]
    assert dataset().state == "failed" and left_on_disk() == []


def test_a_job_that_hangs_gives_its_lane_back(database, monkeypatch):
    job_id, attempt = make_import(None, starter={"part": "text", "minutes": 60})
    reconciler = Reconciler(HOST)
    reconciler._trust_expiry_at = 0
    process = start_job(job_id, attempt)
    deadline = time.monotonic() + 60
    while not left_on_disk():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    stop_between_transactions(process.pid)
    with db.transaction() as session:
        session.get(Job, job_id).lease_expires_at = db.now(session) - 5
        session.get(Job, job_id).started_at = 0
    reconciler.reconcile()
    assert job(job_id).state == "running", "it may still come back"
    with db.transaction() as session:
        queue.request_cancel_job(session, session.get(Job, job_id)).lease_expires_at = 1.0
    reconciler.reconcile()
    assert job(job_id).state == "cancelled" and process.wait(timeout=10) < 0


def test_a_tokenizer_is_trained_from_a_dataset(database):
    assert jobs.execute(*make_import(b'{"text": "the cat sat on the mat"}\n' * 50)) == "completed"
    with db.transaction() as session:
        session.add(TokenizerRow(id="t1", name="t", user_id="local", state="training", source={}, created_at=0))
        queue.enqueue_job(session, "tokenizer_train", {"tokenizer_id": "t1", "dataset_id": "d1", "vocab_size": 320},
                          user_id="local")
    assert jobs.execute(*claim()) == "completed"
    with db.reading() as session:
        row = session.get(TokenizerRow, "t1")
    assert row.state == "ready" and Tokenizer.load(row.path).fingerprint == row.fingerprint
    assert row.vocab_size == Tokenizer.load(row.path).vocab_size


def test_an_impossible_vocabulary_is_said(database):
    assert jobs.execute(*make_import(b'{"text": "a"}\n')) == "completed"
    with db.transaction() as session:
        session.add(TokenizerRow(id="t1", name="t", user_id="local", state="training", source={}, created_at=0))
        queue.enqueue_job(session, "tokenizer_train", {"tokenizer_id": "t1", "dataset_id": "d1", "vocab_size": 5},
                          user_id="local")
    assert jobs.execute(*claim()) == "failed"
    with db.reading() as session:
        row = session.get(TokenizerRow, "t1")
    assert row.state == "failed" and "too small" in row.error["message"]
