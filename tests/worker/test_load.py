"""How busy a host is, as its heartbeat tells: with GPUs, without, and with GPUs that do not answer."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest

from app.core import db
from app.core.models import Host
from tests.database_rig import HOST
from worker import gpus, load
from worker.reconciler import Reconciler

GIB = 1 << 30


class FakeNvml:
    """Two GPUs; the second one, being cut into parts, knows no utilisation."""

    class NVMLError(Exception):
        pass

    NVML_TEMPERATURE_GPU = 0

    def __init__(self, fails_at: str = ""):
        self.fails_at, self.open = fails_at, 0

    def _may_fail(self, name: str) -> None:
        if name == self.fails_at:
            raise self.NVMLError(name)

    def nvmlInit(self) -> None:
        self._may_fail("init")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1
        self._may_fail("shutdown")

    def nvmlDeviceGetCount(self) -> int:
        self._may_fail("count")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._may_fail("handle")
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"Fake GPU"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        self._may_fail("use")
        if handle == 1:
            raise self.NVMLError("not supported")
        return SimpleNamespace(gpu=93, memory=10)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        self._may_fail("memory")
        return SimpleNamespace(used=3 * GIB, total=80 * GIB, free=77 * GIB)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 61 + handle


FIRST = {"device": "cuda:0", "percent": 93, "memory_used_bytes": 3 * GIB, "memory_total_bytes": 80 * GIB,
         "temperature_c": 61}
SECOND = FIRST | {"device": "cuda:1", "percent": None, "temperature_c": 62}


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    gpus.forget()
    yield fake
    gpus.forget()


def test_gpus_and_their_load(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus.gpu_load() == [FIRST, SECOND]
    for visible, seen in (("1", [SECOND]), ("", []), ("0,1", [FIRST, SECOND])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        gpus.forget()
        assert gpus.gpu_load() == seen and [g["id"] for g in gpus.gpus()] == [g["device"] for g in seen]
    assert nvml.open == 0


@pytest.mark.parametrize("fails_at, found", [
    ("init", []), ("count", []), ("handle", []), ("shutdown", [FIRST, SECOND]),
    ("use", [FIRST | {"percent": None}, SECOND]),
    ("memory", [g | {"memory_used_bytes": None, "memory_total_bytes": None} for g in (FIRST, SECOND)]),
])
def test_gpus_that_do_not_answer(nvml: FakeNvml, fails_at: str, found: list) -> None:
    nvml.fails_at = fails_at
    assert gpus.gpu_load() == found and nvml.open == 0


def test_a_host_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it was not installed
    gpus.forget()
    assert gpus.gpu_load() == []


def test_the_load_of_a_host(nvml: FakeNvml) -> None:
    load.begin()
    until = time.monotonic() + 0.2
    while time.monotonic() < until:  # one core is busy
        pass
    began = time.monotonic()
    seen = load.host_load()
    assert time.monotonic() - began < 0.2, "nothing is waited for"
    assert 0 < seen["cpu_percent"] <= 100
    assert 0 < seen["memory_used_bytes"] < seen["memory_total_bytes"] == psutil.virtual_memory().total
    assert seen["gpus"] == [FIRST, SECOND]


def test_what_cannot_be_read_is_none(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError("there is no /proc")

    nvml.fails_at = "init"
    monkeypatch.setattr(psutil, "cpu_percent", fail)
    monkeypatch.setattr(psutil, "virtual_memory", fail)
    assert load.host_load() == {"cpu_percent": None, "memory_used_bytes": None, "memory_total_bytes": None, "gpus": []}


def test_a_heartbeat_tells_it(database: str, nvml: FakeNvml) -> None:
    reconciler = Reconciler()

    def host() -> Host:
        with db.reading() as session:
            return session.get(Host, HOST)

    reconciler.heartbeat(worker_pid=7)
    first = host()
    assert first.load["gpus"] == [FIRST, SECOND] and first.load["memory_total_bytes"] > 0
    nvml.fails_at = "init"
    reconciler.heartbeat(draining=True)
    assert host().load["gpus"] == [] and host().draining
    assert [d["id"] for d in host().devices] == ["cuda:0", "cuda:1"], "what it has does not change with it"
