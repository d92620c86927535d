"""What data come in: forms of JSON, tables, encodings, archives; what cannot be read is named by file and line."""

from __future__ import annotations

import errno
import gzip
import json
import zipfile
from pathlib import Path

import pytest

from minimind.data import foreign, layouts
from minimind.data.foreign import members
from minimind.data.foreign.encodings import detect_encoding
from minimind.errors import DataError
from tests import broken_zips

ZH = "高血压患者能吃党参吗？我有高血压，这两天女婿来的时候给我拿了些党参泡水喝。"
QA = {"conversations": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]}


def test_lines_of_an_array_are_the_real_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n{"question": "a",\n "answer": "b"},\n\n{"question": "c", "answer": "d"}]')
    assert [line for line, _ in layouts.iter_rows(path)] == [2, 5]


@pytest.mark.parametrize(("text", "rows"), [
    ('{"x1": {"question": "a", "answer": "b"}, "x2": {"question": "c", "answer": "d"}}', 2),
    ('{\n "x1": {"question": "a", "answer": "b"}\n}', 1),
    ('{"version": 1, "data": [{"question": "a", "answer": "b"}], "end": {}}', 1),
    ('{\n "version": "1.0",\n "data": [\n  {"question": "a", "answer": "b"}]}', 1),
    ('{\n "question": "a",\n "answer": "b"\n}\n{\n "question": "c",\n "answer": "d"\n}', 2),
    ('{"question": "a", "answer": "b"}\n\n{"question": "c", "answer": "d"}\n', 2),
    ('{"question": "a", "answer": "b"}', 1),
])
def test_forms_of_json(tmp_path: Path, text: str, rows: int) -> None:
    (tmp_path / "a.json").write_text(text)
    assert layouts.scan(tmp_path / "a.json").rows == rows


def test_a_large_array_is_read_in_pieces(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": "å" * (i % 7) * 50_000 + "b", "n": i} for i in range(60)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps({str(r["n"]): r for r in rows}, ensure_ascii=False), encoding="utf-8")
    for name in ("a.json", "b.json"):
        read = [row["conversations"][1]["content"] for _, row in layouts.iter_rows(tmp_path / name)]
        assert read == [row["answer"] for row in rows]


@pytest.mark.parametrize(("name", "text", "question", "line"), [
    ("a.csv", 'question,answer\n"Who, me?\nOr ""you""?",Me.\nNext?,No.\n', 'Who, me?\nOr "you"?', 4),
    ("a.tsv", "prompt\tresponse\nWho, me?\tMe.\n\nNext?\tNo.\n", "Who, me?", 4),
    ("a.csv", "question;answer\nWho, me?;Me.\nNext?;No.\n", "Who, me?", 3),
    ("a.csv", "\ufeffid|question|answer\r\n1|Who?|Me.\r\n2|Next?|No.\r\n", "Who?", 3),
])
def test_tables(tmp_path: Path, name: str, text: str, question: str, line: int) -> None:
    (tmp_path / name).write_bytes(text.encode())
    rows = list(layouts.iter_rows(tmp_path / name))
    assert rows[0][1]["conversations"][0]["content"] == question
    assert rows[1] == (line, {"conversations": [{"role": "user", "content": "Next?"},
                                                {"role": "assistant", "content": "No."}]})


def test_a_table_without_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("What is the first question?,An answer.\nWho?,Me.\n")
    with foreign.Source(path, mapping={"layout": "pairs", "question": "column1", "answer": "column2"}) as source:
        assert len(list(source.rows())) == 2 and "as data, not as names" in source.report.warnings[0]
    with pytest.raises(DataError, match="no layout that is known; its columns are column1, column2") as caught:
        layouts.scan(path)
    assert '"question": "column1"' in caught.value.hint
    path.write_text("Who,Me\nYou,Her\n")
    with foreign.Source(path, mapping={"layout": "pairs", "question": "column1", "answer": "column2",
                                       "header": False}) as source:
        assert len(list(source.rows())) == 2 and not source.report.warnings


@pytest.mark.parametrize(("encoding", "said"), [
    ("utf-8", None), ("utf-8-sig", None), ("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("gb18030", "GB18030"),
    ("gbk", "GB18030"), ("big5", "BIG5")])
@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.txt", "a.jsonl"])
def test_encodings(tmp_path: Path, encoding: str, said: str | None, name: str) -> None:
    zh = ZH if encoding != "big5" else "高血壓患者能吃黨參嗎？我有高血壓，這兩天女婿來的時候給我拿了些黨參泡水喝。"
    text = {"a.csv": f"ask,answer\n{zh},{zh}\n", "a.json": json.dumps([{"ask": zh, "answer": zh}], ensure_ascii=False),
            "a.jsonl": json.dumps({"text": zh}, ensure_ascii=False) + "\n", "a.txt": zh + "\n\n" + zh + "\n"}[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    found = layouts.scan(tmp_path / name)
    assert zh in str(next(layouts.iter_rows(tmp_path / name))[1])
    assert [w for w in found.warnings if "was read as" in w] == [w for w in found.warnings if said and said in w]
    assert bool(found.warnings) == (said is not None)


@pytest.mark.parametrize(("text", "encoding"), [
    ("Der Müller fährt über die große Brücke. Ärger und Öl für alle Mädchen.", "cp1252"),
    ("São Paulo não é pequena; a avó da irmã tem coração.", "latin-1"), ("Привет, как дела?", "koi8-r"),
    ("これは日本語の文章です。東京へ行きました。", "shift_jis")])
def test_other_encodings_are_not_guessed(tmp_path: Path, text: str, encoding: str) -> None:
    with pytest.raises(DataError, match="x line 2 is not UTF-8.*encoding"):
        try:
            detect_encoding(b"first\n" + text.encode(encoding), "x")
        except DataError as error:
            raise DataError(str(error)) from None
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    with foreign.Source(path, mapping={"encoding": encoding}) as source:
        assert [row for _, _, row in source.rows()] == [{"text": text}]


def test_one_broken_row_of_a_chinese_file_is_named(tmp_path: Path) -> None:
    """And not the first row that is no UTF-8."""
    path = tmp_path / "a.csv"
    rows = ["ask,answer\n", *[f"{ZH},{ZH}\n"] * 9]
    path.write_bytes("".join(rows).encode("gbk") + b"\xff\xff,x\n")
    with pytest.raises(DataError, match="a.csv line 11 is not GB18030") as caught:
        layouts.scan(path)
    assert caught.value.line == 11


def test_the_end_of_ascii_is_far_away(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"ask,answer\n" + (b"Who?," + b"M" * 100_000 + b"e.\n") * 40 + f"{ZH},{ZH}\n".encode("gbk"))
    assert layouts.scan(path).rows == 41
    path.write_bytes(path.read_bytes()[:-1] + b"\xff\xff\n")
    with pytest.raises(DataError, match="a.csv line 42 is not GB18030"):
        layouts.scan(path)


def test_packed_files(tmp_path: Path) -> None:
    plain = json.dumps([{"instruction": "Who?", "input": "", "output": "Me."}] * 2).encode()
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(plain))
    assert layouts.scan(tmp_path / "a.json.gz").rows == 2
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 3))
    assert layouts.scan(tmp_path / "t.jsonl.gz").layout == "text"
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/two.json", plain)
        archive.writestr("b/one.jsonl.gz", gzip.compress(json.dumps(QA).encode()))
        archive.writestr("__MACOSX/b/._two.json", b"junk")
        archive.writestr("b/README.md", b"# read")
        archive.writestr("b/info.json", json.dumps([{"url": "x", "licence": "y"}]))
    found = layouts.scan(tmp_path / "z.zip")
    assert (found.layout, found.rows) == ("conversations", 3) and "info.json in z.zip" in found.warnings[0]
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        archive.writestr("a.json", plain)
        archive.writestr("b.txt", "A text.")
    with pytest.raises(DataError, match="several layouts.*a.json in mixed.zip.*b.txt"):
        layouts.detect_layout(tmp_path / "mixed.zip")


@pytest.mark.parametrize(("make", "said"), [
    (lambda z: z.writestr("../../evil.jsonl", "{}"), "leads out"),
    (lambda z: z.writestr("/etc/evil.jsonl", "{}"), "leads out"),
    (lambda z: z.writestr("a/..\\..\\evil.jsonl", "{}"), "leads out"),
    (lambda z: z.writestr("C:evil.jsonl", "{}"), "leads out"),
    (lambda z: z.writestr("notes.md", "x"), "holds no data file"),
    (lambda z: z.writestr("a.zip", "x"), "holds no data file, only other archives"),
    (lambda z: z.writestr("a.jsonl", gzip.compress(b"x")), "a.jsonl in z.zip is packed twice"),
    (lambda z: z.writestr("zeros.txt", b"\n" * (3 << 20)), "far more than data"),
    (lambda z: [z.writestr(f"{i}.txt", "") for i in range(20)], "20 files; 10 is the most"),
])
def test_archives_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make, said: str) -> None:
    monkeypatch.setattr(members, "MAX_ENTRIES", 10)
    monkeypatch.setattr(members, "RATIO_FROM_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        make(archive)
    with pytest.raises(DataError, match=said) as caught:
        layouts.detect_layout(tmp_path / "z.zip")
    assert "z.zip" in caught.value.message and caught.value.hint
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["z.zip"]


@pytest.mark.parametrize("kind", broken_zips.KINDS)
def test_a_zip_that_cannot_be_read_is_one_sentence(tmp_path: Path, kind: str) -> None:
    broken_zips.write(tmp_path / "z.zip", kind, "a.jsonl", b'{"text": "The tide is out."}\n' * 50)
    with pytest.raises(DataError) as caught:
        layouts.scan(tmp_path / "z.zip")
    said = {"locked": "z.zip is locked with a password"} | dict.fromkeys(
        ("unknown version", "cut off", "name that is no UTF-8"), "z.zip is not a zip archive that can be read")
    assert caught.value.message.startswith(said.get(kind, "a.jsonl in z.zip cannot be unpacked")) and caught.value.hint


def test_the_disks_own_error_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.jsonl", '{"text": "a"}\n')
    monkeypatch.setattr(zipfile.ZipExtFile, "read", fails)
    with pytest.raises(OSError, match="Input/output error"):
        layouts.scan(tmp_path / "z.zip")


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "z.zip"
    link = zipfile.ZipInfo("link.jsonl")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="holds a link"):
        layouts.detect_layout(path)


def test_bombs_in_gzip_and_liars_in_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "a.jsonl.gz"
    monkeypatch.setattr(members, "RATIO_FROM_BYTES", 1 << 20)
    bomb.write_bytes(gzip.compress((b'{"text": "' + b"a" * 100_000 + b'"}\n') * 50))
    with pytest.raises(DataError, match="far more than data"):
        layouts.scan(bomb)
    monkeypatch.setattr(members, "MAX_UNPACKED_BYTES", 1 << 20)
    honest = tmp_path / "b.jsonl.gz"
    honest.write_bytes(gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(200_000))))
    with pytest.raises(DataError, match="unpacks to more"):
        layouts.scan(honest)
    honest.write_bytes(gzip.compress(b'{"text": "a"}\n' * 5000)[:-20])
    with pytest.raises(DataError, match="ends in the middle"):
        layouts.scan(honest)


def test_a_table_with_an_open_quote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minimind.data.foreign.tables.MAX_LINE_CHARS", 5000)
    (tmp_path / "a.csv").write_text('question,answer\nWho?,Me.\n"Why,no\n' + "Who?,Me.\n" * 2000)
    with pytest.raises(DataError, match="a.csv line 3 is not a row of a table.*limit") as caught:
        layouts.scan(tmp_path / "a.csv")
    assert "quote" in caught.value.hint


def test_parquet_without_pyarrow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1....PAR1")
    with pytest.raises(DataError, match="pyarrow is not installed"):
        layouts.detect_layout(tmp_path / "a.parquet")
