"""Which GPUs a host has, as NVML tells it: by number and UUID, with failing ones, parts of one, and old drivers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from app.core.devices import choose, left_alone
from app.core.models import Host
from worker import gpus, nvml

GIB = 1 << 30


class NvmlError(Exception):
    pass


class NVMLError_GpuIsLost(NvmlError):
    pass


class NVMLError_NotSupported(NvmlError):
    pass


class NVMLError_NotFound(NvmlError):
    pass


class FakeNvml:
    """A driver with some GPUs; a test changes ``gpus`` while it is watched."""

    NVMLError = NvmlError

    def __init__(self, *found: dict[str, Any]):
        self.gpus = list(found)
        self.is_away = False
        self.inits = 0

    def nvmlInit(self) -> None:
        self.inits += 1
        if self.is_away:
            raise NvmlError("driver/library version mismatch")

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        if self.gpus[index].get("lost") == "at once":
            raise NVMLError_GpuIsLost("GPU is lost")
        return self.gpus[index]

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> str:
        return handle["name"]

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> bytes:
        return handle["uuid"].encode()

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> SimpleNamespace:
        if handle.get("lost"):
            raise NVMLError_GpuIsLost("GPU is lost")
        if handle["memory"] is None:
            raise NVMLError_NotSupported("Not Supported")
        return SimpleNamespace(total=handle["memory"], used=GIB)

    def nvmlDeviceGetCudaComputeCapability(self, handle: dict[str, Any]) -> tuple[int, int]:
        return (9, 0)

    def nvmlDeviceGetTotalEccErrors(self, handle: dict[str, Any], error_type: int, counter: int) -> int:
        assert (error_type, counter) == (1, 0), "uncorrected, since the driver was loaded"
        return handle.get("ecc", 0)

    def nvmlDeviceGetRemappedRows(self, handle: dict[str, Any]) -> tuple[int, int, int, int]:
        return (0, 0, 0, handle.get("worn", 0))

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> tuple[int, int]:
        if "parts" not in handle:
            raise NVMLError_NotSupported("Not Supported")
        return (1, 1)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], number: int) -> dict[str, Any]:
        if number >= len(handle["parts"]):
            raise NVMLError_NotFound("Not Found")
        return handle["parts"][number]


def gpu(letter: str, **more: Any) -> dict[str, Any]:
    return {"name": "Fake GPU", "uuid": f"GPU-{letter * 8}-0000", "memory": 80 * GIB, **more}


def part(letter: str, number: int) -> dict[str, Any]:
    return {"name": "part", "uuid": f"MIG-{letter * 8}-{number}", "memory": 10 * GIB}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake = FakeNvml(gpu("a"), gpu("b"), gpu("c"))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    gpus.forget()
    yield fake
    gpus.forget()


def look() -> gpus.Inventory:
    return gpus.inventory(max_age_s=0)


def ids(found: Any) -> list[str]:
    return [each["id"] for each in found]


def test_what_is_told_of_each(driver: FakeNvml) -> None:
    found = look()
    assert found.answered and found.failing == () and gpus.gpus() == list(found.devices)
    assert found.devices[1] == {"id": "cuda:1", "index": 1, "uuid": "GPU-bbbbbbbb-0000", "name": "Fake GPU",
                                "memory_bytes": 80 * GIB, "mig": False, "compute_capability": "9.0"}


def test_it_is_asked_again_now_and_then(driver: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(gpus.time, "monotonic", lambda: clock[0])
    for _ in range(5):
        assert len(gpus.inventory().devices) == 3
    assert driver.inits == 1
    driver.gpus.append(gpu("d"))
    clock[0] += gpus.LOOK_EVERY_S
    assert ids(gpus.inventory().devices) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"] and driver.inits == 2


@pytest.mark.parametrize("lost", ["at once", "when asked"])
def test_a_gpu_that_is_lost_is_left_out_and_said(driver: FakeNvml, lost: str) -> None:
    look()
    driver.gpus[1]["lost"] = lost
    found = look()
    assert ids(found.devices) == ["cuda:0", "cuda:2"]
    [failing] = found.failing
    assert (failing["id"], failing["uuid"], failing["name"]) == ("cuda:1", "GPU-bbbbbbbb-0000", "Fake GPU")
    assert "fallen off the bus" in failing["reason"]
    assert [g["device"] for g in gpus.gpu_load()] == ["cuda:0", "cuda:2"]
    gpus.require(["cuda:0", "cpu:1"])
    with pytest.raises(gpus.DeviceGone, match=r"cuda:1 of this machine cannot be used. It has fallen off the bus"):
        gpus.require(["cuda:0", "cuda:1"])
    del driver.gpus[1]["lost"]
    assert len(look().devices) == 3 and look().failing == ()


def test_a_gpu_that_is_lost_before_the_first_look_has_no_name(driver: FakeNvml) -> None:
    driver.gpus[0]["lost"] = "at once"
    [failing] = look().failing
    assert (failing["id"], failing["uuid"], failing["name"]) == ("cuda:0", None, None)
    assert [d.get("problem") is not None for d in gpus.host_devices()] == [True, False, False]


def test_the_heartbeat_keeps_failing_ones_with_their_problem(driver: FakeNvml) -> None:
    driver.gpus[:] = [gpu("a")]
    look()
    driver.gpus[0]["lost"] = "at once"
    look()
    [told] = gpus.host_devices()
    assert told["memory_bytes"] == 80 * GIB and "fallen off" in told["problem"] and "reason" not in told
    host = Host(cpu_slots=2, devices=[told], bad_devices=None)
    assert choose("auto", cpu_slots=2, gpus=["cuda:0"], taken=(), bad=left_alone(host, 0.0)) is None, \
        "a run for a GPU does not become one for the CPU"


def test_gpus_that_vanish_and_drivers_that_stop_to_answer(driver: FakeNvml) -> None:
    look()
    gone = driver.gpus.pop()
    assert ids(look().failing) == ["cuda:2"] and look().failing[0]["reason"] == "It is not there any more."
    driver.gpus.append(gone)
    assert look().failing == ()
    driver.is_away = True
    found = look()
    assert not found.answered and not found.devices and ids(found.failing) == ["cuda:0", "cuda:1", "cuda:2"]
    with pytest.raises(gpus.DeviceGone, match="The NVIDIA driver does not answer any more"):
        gpus.require(["cuda:0"])


def test_a_host_where_nobody_can_be_asked_claims_nothing(driver: FakeNvml) -> None:
    driver.is_away = True
    assert look() == gpus.Inventory()
    gpus.require(["cuda:0"])
    assert gpus.uuids() == {} and gpus.host_devices() == []


@pytest.mark.parametrize(("broken", "said"), [
    ({"ecc": 2}, "2 errors that could not be corrected"), ({"worn": 1}, "has to be replaced")])
def test_broken_memory(driver: FakeNvml, broken: dict[str, int], said: str) -> None:
    driver.gpus[0] |= broken
    found = look()
    assert ids(found.devices) == ["cuda:1", "cuda:2"] and said in found.failing[0]["reason"]


def test_a_gpu_without_memory_of_its_own(driver: FakeNvml) -> None:
    driver.gpus[0]["memory"] = None
    assert look().devices[0]["memory_bytes"] > 0 and not look().failing


def test_a_package_or_driver_that_knows_less(driver: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvmlDeviceGetUUID", "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetTotalEccErrors",
                 "nvmlDeviceGetRemappedRows", "nvmlDeviceGetMigMode"):
        monkeypatch.delattr(FakeNvml, name)
    assert look().devices[0] == {"id": "cuda:0", "index": 0, "uuid": None, "name": "Fake GPU", "mig": False,
                                 "memory_bytes": 80 * GIB, "compute_capability": None}
    assert gpus.visible_to_ranks(["cuda:2", "cuda:1"]) == "2,1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aaaa")  # which one is meant is CUDA's to know
    assert len(look().devices) == 3


@pytest.mark.parametrize(("visible", "seen"), [
    ("0,2", ["cuda:0", "cuda:2"]), ("2", ["cuda:2"]), (" 1 , 0 ", ["cuda:0", "cuda:1"]), ("", []), ("-1", []),
    ("0,-1,2", ["cuda:0"]), ("NoDevFiles", []), ("GPU-bbbb", ["cuda:1"]), ("gpu-BBBBBBBB-0000", ["cuda:1"]),
    ("GPU-aaaaaaaa-0000,GPU-c", ["cuda:0", "cuda:2"]), ("GPU-ffff", []), ("7", []),
])
def test_what_cuda_visible_devices_leaves(driver: FakeNvml, monkeypatch, visible: str, seen: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ids(look().devices) == seen and look().failing == ()


def test_ranks_get_uuids(driver: FakeNvml) -> None:
    assert gpus.visible_to_ranks(["cuda:2", "cuda:0"]) == "GPU-cccccccc-0000,GPU-aaaaaaaa-0000"
    assert gpus.visible_to_ranks(["cuda:0", "cuda:9"]) == "0,9", "never some by UUID and some by number"
    driver.gpus[0]["lost"] = "at once"
    assert gpus.uuids()["cuda:0"] == "GPU-aaaaaaaa-0000", "its lock keeps its name"


@pytest.mark.parametrize(("visible", "uuid"), [
    (None, "MIG-bbbbbbbb-0"), ("1", "MIG-bbbbbbbb-0"), ("MIG-bbbbbbbb-1", "MIG-bbbbbbbb-1"),
    ("MIG-GPU-bbbbbbbb-0000/1/0", "MIG-bbbbbbbb-0"), ("GPU-bbbb", "MIG-bbbbbbbb-0"), ("MIG-none", None)])
def test_a_gpu_in_parts(driver: FakeNvml, monkeypatch, visible: str | None, uuid: str | None) -> None:
    driver.gpus[1]["parts"] = [part("b", 0), part("b", 1)]
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = [each for each in look().devices if each["mig"]]
    assert [each["uuid"] for each in found] == ([uuid] if uuid else [])
    if uuid:
        assert found[0]["id"] == "cuda:1" and found[0]["gpu_uuid"] == "GPU-bbbbbbbb-0000"
        assert found[0]["memory_bytes"] == 10 * GIB and gpus.visible_to_ranks(["cuda:1"]) == uuid


def test_a_gpu_in_no_parts_cannot_be_used(driver: FakeNvml) -> None:
    driver.gpus[0]["parts"] = []
    assert "no instance" in look().failing[0]["reason"] and ids(look().devices) == ["cuda:1", "cuda:2"]


def test_nvidia_smi_where_the_package_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho asked >> $0.log\necho 'a warning'\n"
                       "echo '0, GPU-1111, 81559, NVIDIA H100, 80GB'\necho '1, GPU-2222, [N/A], NVIDIA GB10'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gpus.forget()
    found = look().devices
    assert [(d["id"], d["uuid"], d["name"]) for d in found] == [
        ("cuda:0", "GPU-1111", "NVIDIA H100, 80GB"), ("cuda:1", "GPU-2222", "NVIDIA GB10")]
    assert found[0]["memory_bytes"] == 81559 << 20 and found[1]["memory_bytes"] > 0
    assert gpus.gpus() == list(found) and (tmp_path / "nvidia-smi.log").read_text() == "asked\n", "and not each time"
    assert nvml.loads() == []
    gpus.forget()
