"""The queue played forward: who begins when on which devices, and what nobody can know."""

from __future__ import annotations

import math

import pytest

from app.core.devices import HOLD_BACK_AFTER_S
from app.runs.forecast import HORIZON, UNKNOWN, Machine, Measured, Plan, Slot, Want, measured, play, seconds

AT = 1000.0
GPU, TWO = {"kind": "cuda", "count": 1}, {"kind": "cuda", "count": 2}


def gpus(count: int, id: str = "a", **held: float | None) -> Machine:
    """``held``: cuda0=1100.0 is a GPU that is free again then."""
    return Machine(id, 4, tuple(f"cuda:{n}" for n in range(count)), {f"cuda:{k[-1]}": v for k, v in held.items()})


def times(machines: list[Machine], wants: list[Want], lasts: dict[str, float | None] | float) -> dict[str, tuple]:
    found = play(AT, machines, wants,
                 lambda id, machine, devices: lasts if isinstance(lasts, float) else lasts.get(id))
    return {id: (slot.start, slot.end) for id, slot in found.items()}


def test_what_fits_begins_at_once_and_the_rest_one_after_the_other() -> None:
    wants = [Want(id, "auto") for id in "abcd"]
    found = play(AT, [gpus(2)], wants, lambda id, machine, devices: {"a": 100.0, "b": 30.0}.get(id, 50.0))
    assert found == {"a": Slot(AT, AT + 100, True), "b": Slot(AT, AT + 30, True), "c": Slot(AT + 30, AT + 80),
                     "d": Slot(AT + 80, AT + 130)}


def test_a_run_that_fits_passes_one_that_does_not() -> None:
    found = times([gpus(2, cuda0=AT + 60)], [Want("two", TWO), Want("one", GPU)], 20.0)
    assert found == {"two": (AT + 60, AT + 80), "one": (AT, AT + 20)}


def test_a_run_that_was_passed_for_long_keeps_devices_free() -> None:
    held = {"cuda0": AT + 60}
    waited = Want("two", TWO, since=AT - HOLD_BACK_AFTER_S)
    assert times([gpus(2, **held)], [waited, Want("one", GPU)], 20.0) == {
        "two": (AT + 60, AT + 80), "one": (AT + 80, AT + 100)}
    assert times([gpus(2, **held)], [Want("two", TWO, since=AT - 10), Want("one", GPU)], 20.0)["one"][0] == AT


def test_what_waits_behind_the_unknown_is_unknown() -> None:
    wants = [Want("a", GPU), Want("b", GPU), Want("cpu", {"kind": "cpu", "count": 1})]
    unknown, at_once = (None, None), (AT, AT + 5)
    assert times([gpus(1)], wants, {"b": 5.0, "cpu": 5.0}) == {"a": (AT, None), "b": unknown, "cpu": at_once}
    assert times([gpus(1, cuda0=None)], wants, 5.0) == {"a": unknown, "b": unknown, "cpu": at_once}
    # the other GPU is free at a known time, but perhaps the first one is so before: no promise
    assert times([gpus(2, cuda0=None, cuda1=AT + 9)], wants[:1], 5.0) == {"a": unknown}
    # and what follows such a run is no better known
    assert times([gpus(2, cuda0=None, cuda1=AT + 9)], [wants[0], Want("named", ["cuda:1"])], 5.0)["named"] == unknown


def test_named_devices_and_several_machines() -> None:
    machines = [gpus(1, "a", cuda0=AT + 10), gpus(2, "b", cuda0=AT + 50, cuda1=AT + 99)]
    found = times(machines, [Want("named", ["cuda:1"]), Want("any", GPU), Want("none", ["cuda:7"])], 30.0)
    assert found == {"named": (AT + 99, AT + 129), "any": (AT + 10, AT + 40), "none": (None, None)}


def test_a_back_off_and_a_device_that_is_left_alone() -> None:
    found = times([gpus(1)], [Want("later", GPU, not_before=AT + 7), Want("now", GPU)], {"now": 5.0, "later": 2.0})
    assert found == {"later": (AT + 7, AT + 9), "now": (AT, AT + 5)}
    assert times([gpus(1, cuda0=math.inf)], [Want("a", GPU)], 5.0) == {"a": (None, None)}
    assert times([gpus(2, cuda0=math.inf, cuda1=AT + 3)], [Want("a", GPU)], 5.0) == {"a": (AT + 3, AT + 8)}


def test_the_work_is_bounded() -> None:
    wants = [Want(str(n), GPU) for n in range(3 * HORIZON)]
    found = play(AT, [gpus(1)], wants, lambda *_: 10.0)
    assert len(found) == HORIZON and found[str(HORIZON - 1)].start == AT + 10 * (HORIZON - 1)
    different = [Want(str(n), [f"cuda:{n}"]) for n in range(HORIZON)]
    machines = [gpus(HORIZON, str(n), **{"cuda0": AT + 1}) for n in range(100)]
    for machine in machines:
        machine.held = {d: AT + n for n, d in enumerate(machine.gpus)}
    assert UNKNOWN in play(AT, machines, different, lambda *_: 10.0).values()


def test_seconds_from_what_was_measured() -> None:
    # 100 steps of 1,000 tokens at 500 tokens/s are 200 s of 230: the rest was the start
    known = measured(100, 230.0, tokens=100_000, tokens_per_s=500.0)
    assert known == Measured(30.0, 2.0)
    assert measured(100, 200.0) == Measured(0.0, 2.0)
    slow = measured(100, 1000.0, tokens=100_000, tokens_per_s=500.0)  # saves and evaluations grow with the steps
    assert slow == Measured(120.0, 8.8)
    assert measured(0, 10.0) is None and measured(10, 0.0) is None
    assert seconds(Plan(10, None), known) == 50.0
    assert seconds(Plan(1000, 60.0), known) == 90.0, "the budget of time ends it sooner"
    assert seconds(Plan(None, 60.0), None) == 60.0
    assert seconds(Plan(10, None), None) is None and seconds(Plan(None, None), known) is None
    assert seconds(Plan(10, None), known, same_s=44.0) == 44.0
    assert seconds(Plan(5, None, has_begun=True), known, same_s=44.0) == 40.0


@pytest.mark.parametrize(("request_", "usable"), [
    ("auto", {"cuda:0", "cuda:1"}), (GPU, {"cuda:0", "cuda:1"}), (["cuda:1"], {"cuda:1"}), (["cuda:9"], set()),
    ({"kind": "cpu", "count": 2}, {f"cpu:{n}" for n in range(4)}), ({"kind": "cuda", "count": 3}, set())])
def test_what_a_run_could_use(request_: object, usable: set[str]) -> None:
    assert gpus(2).usable(request_) == usable
