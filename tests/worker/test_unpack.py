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


def test_a_full_disk_is_not_the_archives_fault(tmp_path, target, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("config.json", "{}")
    monkeypatch.setattr("worker.unpack._write", fails)
    with pytest.raises(OSError, match="No space left"):
        unpack(tmp_path / "z.zip", target)
