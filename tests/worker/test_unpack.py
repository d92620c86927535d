"""Archives of models: what is wrong with one is said in a sentence, and what the disk says stays what it is."""

from __future__ import annotations

import errno
import io
import tarfile
import zipfile

import pytest

from minimind.errors import CheckpointError
from tests import broken_zips
from worker.unpack import unpack


@pytest.fixture
def target(tmp_path):
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


@pytest.mark.parametrize("kind", broken_zips.KINDS)
def test_a_zip_that_cannot_be_read_is_one_sentence(tmp_path, target, kind):
    broken_zips.write(tmp_path / "z.zip", kind, "config.json", b'{"hidden_size": 32}' * 50)
    with pytest.raises(CheckpointError, match="The archive cannot be unpacked: ") as caught:
        unpack(tmp_path / "z.zip", target)
    assert caught.value.hint


def test_a_tar_that_is_cut_off_is_one_sentence(tmp_path, target):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("config.json")
        info.size = 5000
        archive.addfile(info, io.BytesIO(b"x" * 5000))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="The archive cannot be unpacked: unexpected end of data"):
        unpack(tmp_path / "a.tar", target)


def test_our_own_refusals_keep_their_words(tmp_path, target):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a/config.json", "{}")
        archive.writestr("b/config.json", "{}")
    with pytest.raises(CheckpointError, match="^The archive has two files named config.json"):
        unpack(tmp_path / "z.zip", target)


def test_names_are_those_that_are_looked_for(tmp_path, target):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in ("../../a/config.JSON", "c:\\b\\model.Safetensors", "notes.pdf", "模型.pth"):
            archive.writestr(name, "{}")
    unpack(tmp_path / "z.zip", target)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors", "weights.pth"]
    assert {path.name for path in tmp_path.iterdir()} == {"z.zip", "target"}


def test_a_full_disk_is_not_the_archives_fault(tmp_path, target, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("config.json", "{}")
    monkeypatch.setattr("worker.unpack._write", fails)
    with pytest.raises(OSError, match="No space left"):
        unpack(tmp_path / "z.zip", target)


def test_what_is_no_model_is_refused_before_it_fills_the_disk(tmp_path, target, monkeypatch):
    monkeypatch.setattr("worker.unpack.RATIO_FROM_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.safetensors", bytes(1 << 20))
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(1001):
            archive.writestr(f"{number}.json", "")
    for name, said in (("bomb", "more than 250 times its size"), ("many", "more than 1,000 files")):
        with pytest.raises(CheckpointError, match=said):
            unpack(tmp_path / f"{name}.zip", target)
    assert not (target / "model.safetensors").exists()


def header(name: str, kind: bytes, size: int) -> bytearray:
    """One of a tar, with a size that its content does not have."""
    info = tarfile.TarInfo(name)
    info.type = kind
    made = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    made[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    return made


def sealed(made: bytearray) -> bytes:
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made) + bytes(1024)


@pytest.mark.parametrize("size", [2**45, 2**70])
def test_a_tar_with_a_name_of_terabytes_is_damaged(tmp_path, target, size):
    (tmp_path / "a.tar").write_bytes(sealed(header("x", b"x", size)))
    with pytest.raises(CheckpointError, match="The archive cannot be unpacked: "):
        unpack(tmp_path / "a.tar", target)


def test_a_file_of_holes_alone_is_left_out(tmp_path, target):
    made = header("model.safetensors", b"S", 0)
    for place in (386, 398):  # offset and length of its one part
        made[place:place + 12] = tarfile.itn(0, 12, tarfile.GNU_FORMAT)
    made[483:495] = tarfile.itn(10**6, 12, tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(sealed(made))
    unpack(tmp_path / "a.tar", target)
    assert list(target.iterdir()) == []
