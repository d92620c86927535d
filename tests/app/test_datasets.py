"""Uploads as they come over the wire, and what can be asked of a dataset or a tokenizer. The import itself is the
job's, run here in this process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from app.auth import guard
from app.core import upload as uploads
from app.core.db import reading, transaction
from app.core.models import Dataset, Job, Pipeline
from app.core.queue import claim_job
from app.datasets.service import sweep_uploads
from minimind.tokenizer import Tokenizer
from tests import database_rig
from tests.app.conftest import Api
from tests.app.test_runs import add_dataset, add_tokenizer, new_run, problems
from worker.jobs import execute

ROWS = b"".join(json.dumps({"text": f"The ferry {i} left the harbour at nine."}).encode() + b"\n" for i in range(30))
DIALOGUE = {"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
BOUNDARY = "b0undary"


def send(api: Api, content: bytes = ROWS, filename: str = "harbour.jsonl", **fields: str):
    return api.http.post("/api/v1/datasets", files={"file": (filename, content)}, data=fields)


def raw(api: Api, body: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}", path: str = "datasets"):
    return api.http.post(f"/api/v1/{path}", content=body, headers={"Content-Type": content_type})


def part(disposition: str, content: bytes = b"x") -> bytes:
    return (f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n")


END = f"--{BOUNDARY}--\r\n".encode()


def work_off() -> None:
    """Do every queued job as a worker would."""
    with reading() as session:
        known = session.query(database_rig.Host).count()
    if not known:
        database_rig.add_host()
    while True:
        with transaction() as session:
            claimed = claim_job(session, database_rig.HOST)
        if claimed is None:
            return
        execute(*claimed)


def left_behind(api: Api) -> list[Path]:
    """Files of uploads that nobody needs."""
    with reading() as session:
        wanted = {j.payload.get("upload_path") for j in session.query(Job).filter(Job.state == "queued")}
    return [p for p in (api.data_dir / "uploads").glob("*") if str(p) not in wanted]


def imported(api: Api, content: bytes = ROWS, *, filename: str = "harbour.jsonl", **fields: str) -> dict:
    answer = send(api, content, filename, **fields)
    assert answer.status_code == 201, answer.text
    work_off()
    return api.get(f"/datasets/{answer.json()['id']}").json()


def test_an_upload_becomes_a_dataset(api: Api) -> None:
    answer = send(api, name="my data")
    assert answer.status_code == 201
    dataset = answer.json()
    assert (dataset["state"], dataset["name"], dataset["layout"], dataset["tokens"], dataset["error"]) == (
        "importing", "my data", "auto", None, None)
    job = api.get(f"/jobs/{dataset['job_id']}").json()
    assert (job["kind"], job["state"]) == ("dataset_import", "queued")
    work_off()
    ready = api.get(f"/datasets/{dataset['id']}").json()
    assert (ready["state"], ready["layout"], ready["rows"], ready["bytes"], ready["warnings"]) == (
        "ready", "text", 30, len(ROWS), [])
    assert api.get(f"/jobs/{dataset['job_id']}").json()["state"] == "completed"
    assert list((api.data_dir / "uploads").iterdir()) == []
    assert api.get("/datasets").json()["items"] == [ready]


def test_a_bad_file_fails_with_its_line(api: Api) -> None:
    dataset = imported(api, ROWS + b'{"text": 7}\n')
    assert dataset["state"] == "failed" and dataset["error"]["line"] == 31 and dataset["error"]["field"] == "text"
    assert "harbour.jsonl" in dataset["error"]["message"] and dataset["error"]["hint"]
    assert left_behind(api) == [] and not (api.data_dir / "datasets" / dataset["id"]).exists()
    assert api.get(f"/datasets/{dataset['id']}/preview").status_code == 409
    assert api.http.delete(f"/api/v1/datasets/{dataset['id']}").status_code == 204


def test_the_starter_corpus(api: Api) -> None:
    answer = api.post("/datasets", {"name": "s", "source": {"kind": "starter", "part": "dialogues", "minutes": 0.2,
                                                            "languages": ["en"], "seed": 3}})
    assert answer.status_code == 201 and answer.json()["layout"] == "conversations"
    work_off()
    dataset = api.get(f"/datasets/{answer.json()['id']}").json()
    assert dataset["state"] == "ready" and dataset["rows"] > 10, dataset
    assert dataset["source"] == {"kind": "starter", "part": "dialogues", "minutes": 0.2, "languages": ["en"], "seed": 3}


@pytest.mark.parametrize("body, field", [
    ({}, "source"), ({"source": "starter"}, "source"),
    ({"source": {"kind": "starter", "part": "poems"}}, "source.part"),
    ({"source": {"kind": "starter", "minutes": -1}}, "source.minutes"),
    ({"source": {"kind": "starter", "languages": ["xx"]}}, "source.languages.0"),
    ({"source": {"kind": "starter", "colour": 1}}, "source.colour"),
    ({"source": {"kind": "path", "path": "/etc/passwd"}}, "source.kind"),
    ({"source": {"kind": "hub", "id": "x/y"}}, "source.kind"),
    ({"source": {"kind": "ftp"}}, "source.kind"),
    ({"source": {"kind": "starter"}, "name": ""}, "name"),
])
def test_sources_that_cannot_be(api: Api, body: dict, field: str) -> None:
    assert field in problems(api.post("/datasets", body))
    assert api.get("/datasets").json()["items"] == [] and api.get("/jobs").json()["items"] == []


@pytest.mark.parametrize("body, status", [
    (b"", 422), (END, 422), (b"nonsense", 422), (part('name="file"; filename="a"'), 422),  # no end
    (part('name="file"; filename="a"')[:-20] + b"\x00\xff", 422),
    (part('name="layout"', b"poems") + part('name="file"; filename="a"') + END, 422),
    (part('name="layout"', b"text") + END, 422),
    (part('name="file"; filename="a"') * 2 + END, 422),
    (part('name="other"; filename="a"') + END, 422),
    (part('name="other"') + END, 422),
    (part('name="name"', b"\xff") + part('name="file"; filename="a"') + END, 422),
    (part('name="name"', b"x" * 300) + part('name="file"; filename="a"') + END, 422),
    (part('name="name"', b"x" * 70_000) + END, 413),
    (part('name="name"') * 30 + END, 422),
    (part('filename="a"') + END, 422),
    (f"--{BOUNDARY}\r\n{'x' * 20_000}: y\r\n\r\n".encode(), 422),
    (f"--{BOUNDARY}\r\n{'x: y' * 1000}\r\n".encode() * 10, 422),
    (f"--{BOUNDARY}\r\n".encode() + b"".join(b"x-%d: %s\r\n" % (i, b"y" * 4000) for i in range(9)), 422),
])
def test_broken_uploads_leave_nothing(api: Api, body: bytes, status: int) -> None:
    answer = raw(api, body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"][0].isupper()
    assert left_behind(api) == [] and api.get("/datasets").json()["items"] == []


def test_a_body_of_another_kind_is_refused(api: Api) -> None:
    assert raw(api, ROWS, "text/plain").status_code == 415
    assert raw(api, b"file=x", "application/x-www-form-urlencoded").status_code == 415
    assert raw(api, b"{", "application/json").status_code == 422
    assert raw(api, b"[" * 50_000, "application/json").status_code == 422
    assert raw(api, b" " * 300_000, "application/json").status_code == 413
    assert raw(api, ROWS, "multipart/form-data").status_code == 422, "no boundary"
    for path in ("datasets", "tokenizers"):
        large = raw(api, b" " * (guard.MAX_BODY_BYTES + 1), "application/json", path)
        assert large.status_code == 413, "only a multipart body goes to the disk as it comes"


def test_uploads_are_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.datasets.routes.MAX_UPLOAD_BYTES", 1000)
    answer = send(api)
    assert answer.status_code == 413 and answer.json()["error"]["field"] == "file"
    assert left_behind(api) == []
    monkeypatch.setattr("app.auth.guard.MAX_UPLOAD_BYTES", 500)
    assert send(api).status_code == 413, "by its Content-Length, before a byte is read"

    def endless():
        while True:
            yield b"x" * 100

    chunked = api.http.post("/api/v1/datasets", content=(c for _, c in zip(range(20), endless(), strict=False)),
                            headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
    assert chunked.status_code in (413, 422)


def test_a_full_disk_is_said(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 10 << 20

    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda path: Full)
    answer = send(api)
    assert answer.status_code == 507 and answer.json()["error"]["code"] == "DISK_FULL"


def test_the_disk_fills_up_in_the_middle(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, data: bytes, start: int, end: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads._Receiver, "_data", full)
    answer = send(api)
    assert answer.status_code == 507 and "disk" in answer.json()["error"]["message"].lower()
    assert left_behind(api) == [] and api.get("/datasets").json()["items"] == []


def test_what_a_killed_process_left_is_swept(api: Api) -> None:
    wanted = send(api).json()
    directory = api.data_dir / "uploads"
    old, new, folder = directory / "old", directory / "new", directory / "tokenizer-old"
    for path in (old, new):
        path.write_bytes(b"x")
    folder.mkdir()
    for path in directory.iterdir():
        if path != new:
            os.utime(path, (1, 1))
    assert sweep_uploads() == 2
    assert new.exists() and not old.exists() and not folder.exists()
    work_off()
    assert api.get(f"/datasets/{wanted['id']}").json()["state"] == "ready"


@pytest.mark.parametrize("sent, shown", [
    ("../../etc/passwd", "passwd"), ("..\\..\\boot.ini", "boot.ini"), ("a\x01b.jsonl", "ab.jsonl"), ("/", "upload"),
    ("ünï😀.jsonl", "ünï😀.jsonl"), ("x" * 5000, "x" * 200), ("<img src=x>.jsonl", "<img src=x>.jsonl"),
])
def test_a_filename_is_only_a_text(api: Api, sent: str, shown: str) -> None:
    assert uploads.shown_name(sent) == shown
    if "\x01" not in sent and len(sent) < 1000:
        dataset = send(api, filename=sent).json()
        assert dataset["name"] == dataset["source"]["filename"] == shown
        (only,) = (api.data_dir / "uploads").iterdir()
        assert only.name.isalnum() and only.read_bytes() == ROWS


def test_the_same_upload_twice_is_one_dataset(api: Api) -> None:
    def keyed(content: bytes = ROWS):
        return api.http.post("/api/v1/datasets", files={"file": ("a.jsonl", content)},
                             headers={"Idempotency-Key": "k"})

    first, again = keyed(), keyed()  # with another multipart boundary each
    assert first.status_code == again.status_code == 201 and first.json() == again.json()
    assert keyed(ROWS + b"\n").status_code == 422
    assert len(list((api.data_dir / "uploads").iterdir())) == 1


def test_preview_and_tokens(api: Api) -> None:
    rows = [{"text": f"row {i}"} for i in range(5)] + [{"text": "x" * 5000, "more": [{"deep": "<b>" + "y" * 9000}]}]
    dataset = imported(api, b"\n".join(json.dumps(r).encode() for r in rows))
    first = api.get(f"/datasets/{dataset['id']}/preview", limit=4).json()
    assert [r["row"] for r in first["items"]] == rows[:4] and [r["line"] for r in first["items"]] == [1, 2, 3, 4]
    rest = api.get(f"/datasets/{dataset['id']}/preview", cursor=first["next_cursor"]).json()
    assert rest["items"][0]["row"] == rows[4] and rest["next_cursor"] is None
    cut = rest["items"][1]
    assert cut["is_cut"] and len(cut["row"]["text"]) == 4001 and len(cut["row"]["more"][0]["deep"]) == 4001

    assert "tokenizer" in problems(api.get(f"/datasets/{dataset['id']}/tokens"))
    assert "tokenizer" in problems(api.get(f"/datasets/{dataset['id']}/tokens", tokenizer="nope"))
    trained = api.post("/tokenizers", {"name": "t", "dataset_id": dataset["id"], "vocab_size": 300})
    assert trained.status_code == 201 and trained.json()["state"] == "training"
    work_off()
    tokenizer = api.get(f"/tokenizers/{trained.json()['id']}").json()
    assert tokenizer["state"] == "ready", tokenizer
    counted = api.get(f"/datasets/{dataset['id']}/tokens", tokenizer=tokenizer["id"]).json()
    loaded = Tokenizer.load(api.data_dir / "tokenizers" / tokenizer["id"])
    assert counted["tokens"] == sum(len(loaded.encode(r["text"])) + 2 for r in rows) and counted["is_exact"]
    assert api.get(f"/datasets/{dataset['id']}").json()["tokens"] == counted["tokens"]


def test_half_a_surrogate_pair_is_shown_as_something_else(api: Api) -> None:
    dataset = imported(api, rb'{"text": "a\ud800b", "\udfff": ["\ud800"]}' + b"\n")
    (row,) = api.get(f"/datasets/{dataset['id']}/preview").json()["items"]
    assert row["row"]["text"] == "a?b"


def test_a_large_dataset_is_counted_in_part(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.datasets.service.COUNTED_CHARS", 500)
    monkeypatch.setattr("app.datasets.service._COUNTED_AT_ONCE", 5)
    dataset = imported(api, ROWS)
    tokenizer = api.post("/tokenizers", {"dataset_id": dataset["id"], "vocab_size": 300}).json()
    work_off()
    counted = api.get(f"/datasets/{dataset['id']}/tokens", tokenizer=tokenizer["id"]).json()
    loaded = Tokenizer.load(api.data_dir / "tokenizers" / tokenizer["id"])
    exact = sum(len(loaded.encode(json.loads(line)["text"])) + 2 for line in ROWS.splitlines())
    assert not counted["is_exact"] and abs(counted["tokens"] - exact) < 0.1 * exact
    assert api.get(f"/datasets/{dataset['id']}").json()["tokens"] is None, "an estimate is not kept"
    dialogues = imported(api, b"\n".join([json.dumps(DIALOGUE).encode()] * 3))
    assert api.get(f"/datasets/{dialogues['id']}/tokens", tokenizer=tokenizer["id"]).json()["tokens"] > 30


def test_a_row_without_end_is_shown_in_part(api: Api) -> None:
    deep = json.loads('{"a":' * 300 + "1" + "}" * 300)
    rows = [{"deep": deep, "text": "a"}, {"text": "b", "many": list(range(300))},
            {**{f"k{i}": i for i in range(300)}, "text": "c"}, {"text": "d", "many": list(range(200))}]
    dataset = imported(api, b"\n".join(json.dumps(r).encode() for r in rows))
    shown = api.get(f"/datasets/{dataset['id']}/preview").json()["items"]
    assert [r["row"]["text"] for r in shown] == list("abcd") and [r["is_cut"] for r in shown] == [True] * 3 + [False]
    assert "…" in json.dumps(shown[0]["row"], ensure_ascii=False)
    assert (len(shown[1]["row"]["many"]), len(shown[2]["row"])) == (200, 201)


def test_the_last_page_that_a_cursor_reaches_is_the_last(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.datasets.service.MAX_PREVIEW_ROW", 5)
    dataset = imported(api, ROWS)
    path = f"/datasets/{dataset['id']}/preview"
    assert api.get(path, limit=5).json()["next_cursor"] == "5"
    assert api.get(path, limit=5, cursor=5).json()["next_cursor"] is None


ALPACA = [{"instruction": f"Who is {i}?", "input": "", "output": f"I am {{{{name}}}}, number {i}."} for i in range(12)]
TABLE = "department,ask,words\n" + "".join(f"内科,高血压能吃党参吗{i}？,可以口服，没有问题。\n" for i in range(12))


def look(api: Api, content: bytes, filename: str, **fields: str) -> dict:
    answer = api.http.post("/api/v1/datasets/inspect", files={"file": (filename, content)}, data=fields)
    assert answer.status_code == 200, answer.text
    assert left_behind(api) == []
    return answer.json()


def test_a_foreign_file_is_looked_at_and_converted(api: Api) -> None:
    content = json.dumps(ALPACA, indent=1).encode()
    seen = look(api, content, "alpaca.json")
    assert (seen["layout"], seen["canonical"], seen["container"], seen["encoding"], seen["counted"]) == (
        "alpaca", "conversations", "json", "utf-8", 12)
    assert seen["is_certain"] and seen["problems"] == [] and seen["placeholders"] == ["{{name}}"]
    assert seen["columns"] == ["instruction", "input", "output"] and len(seen["rows"]) == 5
    assert seen["rows"][1] == {"line": 7, "is_cut": False, "row": {"conversations": [
        {"role": "user", "content": "Who is 1?"}, {"role": "assistant", "content": "I am {{name}}, number 1."}]}}
    part = look(api, content[:700], "alpaca.json", is_partial="true")
    assert part["rows"] == seen["rows"] and part["counted"] is None and part["problems"] == []
    mapping = json.dumps({**seen["mapping"], "replace": {"{{name}}": "Mini"}})
    dataset = imported(api, content, filename="alpaca.json", mapping=mapping)
    assert (dataset["state"], dataset["layout"], dataset["rows"], dataset["warnings"]) == (
        "ready", "conversations", 12, [])
    assert dataset["source"]["detected"] == {
        "layout": "alpaca", "container": "json", "encoding": "utf-8", "mapping": json.loads(mapping), "rows_read": 12,
        "left_out": 0}
    shown = api.get(f"/datasets/{dataset['id']}/preview").json()["items"]
    assert shown[0]["row"]["conversations"][1]["content"] == "I am Mini, number 0."


def test_a_table_in_gbk_needs_its_columns_named(api: Api) -> None:
    content = TABLE.encode("gbk")
    unsure = look(api, content, "medical.csv")
    assert not unsure["is_certain"] and unsure["encoding"] == "gb18030" and "GB18030" in unsure["warnings"][0]
    assert unsure["columns"] == ["department", "ask", "words"] and unsure["problems"] and unsure["rows"] == []
    mapping = {"layout": "pairs", "question": "ask", "answer": "words"}
    seen = look(api, content, "medical.csv", mapping=json.dumps(mapping))
    assert seen["rows"][0]["row"]["conversations"][0]["content"] == "高血压能吃党参吗0？"
    wrong = look(api, content, "medical.csv", mapping=json.dumps({**mapping, "answer": "nope"}))
    assert wrong["problems"][0]["field"] == "mapping.answer" and wrong["columns"] == unsure["columns"]
    dataset = imported(api, content, filename="medical.csv", mapping=json.dumps(mapping))
    assert dataset["state"] == "ready" and "GB18030" in dataset["warnings"][0]
    failed = imported(api, content, filename="medical.csv")
    assert failed["state"] == "failed" and "department, ask, words" in failed["error"]["message"]


@pytest.mark.parametrize("mapping, field", [
    ("{", "mapping"), ("[]", "mapping"), ('{"layout": "poems"}', "mapping.layout"),
    ('{"layout": "pairs", "qestion": "a"}', "mapping.qestion"), ('{"replace": 5}', "mapping.replace"),
    ('"' + "x" * 20_000 + '"', "mapping"),
])
def test_mappings_that_cannot_be(api: Api, mapping: str, field: str) -> None:
    assert field in problems(send(api, mapping=mapping))
    assert left_behind(api) == [] and api.get("/datasets").json()["items"] == []
    assert field in problems(api.http.post("/api/v1/datasets/inspect", files={"file": ("a.json", b"[]")},
                                           data={"mapping": mapping}))
    assert left_behind(api) == []


def test_what_cannot_be_looked_at(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/api/v1/datasets/inspect"
    assert api.http.post(path, json={}).status_code == 415
    assert api.http.post(path, data={"layout": "auto"}, files={"x": b""}).status_code == 422
    assert "layout" in problems(api.http.post(path, files={"file": ("a", b"x")}, data={"layout": "poems"}))
    for content in (b"", b"\x00\x01", b"PK\x03\x04", b"[{]", b"\xff" * 10, b'{"a": ' * 9999):
        assert look(api, content, "a.json")["problems"][0]["message"]
    monkeypatch.setattr("app.datasets.routes.MAX_INSPECTED_BYTES", 100)
    assert api.http.post(path, files={"file": ("a.txt", b"x" * 101)}).status_code == 413
    assert left_behind(api) == []


def test_a_long_row_is_looked_at_in_part(api: Api) -> None:
    (row,) = look(api, json.dumps([{"question": "a", "answer": "x" * 9000}]).encode(), "a.json")["rows"]
    assert row["is_cut"] and len(row["row"]["conversations"][1]["content"]) == 4001


def test_what_is_used_stays(api: Api) -> None:
    used, in_line, importing = add_dataset(), add_dataset(), send(api).json()["id"]
    run = new_run(api, dataset_id=used)
    line = api.post("/pipelines", {"name": "l", "stages": [
        {"stage": "pretrain", "config": {"max_steps": 1}},
        {"stage": "pretrain", "config": {"max_steps": 1}, "dataset_id": in_line}]}).json()

    def status(id: str) -> int:
        return api.http.delete(f"/api/v1/datasets/{id}").status_code

    assert (status(used), status(in_line), status(importing)) == (409, 409, 409)
    api.post(f"/runs/{run['id']}/cancel")
    assert status(used) == 409, "the run could not be repeated without it"
    assert api.http.delete(f"/api/v1/runs/{run['id']}").status_code == 204
    api.post(f"/pipelines/{line['id']}/cancel")
    with transaction() as session:
        assert session.get(Pipeline, line["id"]).state == "cancelled"
    job = api.get(f"/datasets/{importing}").json()["job_id"]
    assert api.post(f"/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert api.post(f"/jobs/{job}/cancel").status_code == 202
    assert (status(used), status(in_line), status(importing)) == (204, 204, 204)
    assert left_behind(api) == []
    with reading() as session:
        assert session.query(Dataset).count() == 0
    assert status(used) == 404


def test_tokenizer_files_are_taken_in(api: Api, tmp_path: Path) -> None:
    files = {p.name: p.read_bytes() for p in Tokenizer.train(["the ferry left"] * 5, 300).save(tmp_path / "mine")}

    def take(file: bytes, config: bytes | None = files["tokenizer_config.json"], **fields: str):
        sent = {"file": ("tokenizer.json", file)} | ({"config": ("c.json", config)} if config else {})
        return api.http.post("/api/v1/tokenizers", files=sent, data=fields)

    answer = take(files["tokenizer.json"], name="mine")
    assert answer.status_code == 201, answer.text
    row, mine = answer.json(), Tokenizer.load(tmp_path / "mine")
    assert (row["state"], row["name"], row["vocab_size"]) == ("ready", "mine", mine.vocab_size)
    assert row["fingerprint"] == mine.fingerprint
    assert row["fingerprint"] == Tokenizer.load(api.data_dir / "tokenizers" / row["id"]).fingerprint
    run = new_run(api, config={"max_steps": 1, "tokenizer": row["id"]})
    assert run["tokenizer_id"] == run["config"]["tokenizer"] == row["id"]
    for broken in (b"", b"{}", b"\xff", b"[]", b'{"model": {}}', b"[" * 9999, files["tokenizer.json"][:-50]):
        refused = take(broken)
        assert refused.status_code == 422 and str(api.data_dir) not in refused.text, refused.text
    assert take(files["tokenizer.json"], b'{"bos_token": "nope"}').status_code == 422
    assert api.http.post("/api/v1/tokenizers", data={"name": "x"}).status_code == 422
    assert [t["id"] for t in api.get("/tokenizers").json()["items"]] == [row["id"]]
    assert left_behind(api) == [] and [p.name for p in (api.data_dir / "tokenizers").iterdir()] == [row["id"]]


@pytest.mark.parametrize("body, field", [
    ({}, "dataset_id"), ({"dataset_id": "nope"}, "dataset_id"), ({"dataset_id": "x", "vocab_size": 10}, "vocab_size"),
    ({"dataset_id": "x", "vocab_size": "many"}, "vocab_size"), ({"dataset_id": "x", "y": 1}, "y"),
])
def test_tokenizers_that_cannot_be(api: Api, body: dict, field: str) -> None:
    assert field in problems(api.post("/tokenizers", body))
    add_tokenizer(state="failed")
    assert len(api.get("/tokenizers", state="failed").json()["items"]) == 1
