from __future__ import annotations

import pytest

from app.core.devices import (
    HOLD_BACK_AFTER_S,
    Room,
    can_ever_fit,
    check_request,
    choose,
    holds_back,
    left_alone,
    world_size,
)
from app.core.models import Host
from minimind.errors import MiniMindError

GPUS = ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(("request_", "gpus", "taken", "expected"), [
    ("auto", [], set(), ("cpu:0", "cpu:1", "cpu:2", "cpu:3")),
    ("auto", [], {"cpu:2"}, None),
    ("auto", GPUS, {"cuda:0"}, ("cuda:1",)),
    ("auto", GPUS, set(GPUS), None),
    ({"kind": "cpu", "count": 2}, GPUS, {"cpu:0"}, ("cpu:1", "cpu:2")),
    ({"kind": "cpu", "count": 9}, [], set(), ("cpu:0", "cpu:1", "cpu:2", "cpu:3")),
    ({"kind": "cpu", "count": 16}, [], set(), ("cpu:0", "cpu:1", "cpu:2", "cpu:3")),
    ({"kind": "cpu", "count": 17}, [], set(), None),  # that many processes would take the machine down
    ({"kind": "cuda", "count": 2}, GPUS, set(), ("cuda:0", "cuda:1")),
    ({"kind": "cuda", "count": 2}, GPUS, {"cuda:0"}, None),
    ({"kind": "cuda", "count": 1}, [], set(), None),
    (["cuda:1"], GPUS, set(), ("cuda:1",)),
    (["cuda:1"], GPUS, {"cuda:1"}, None),
    (["cuda:7"], GPUS, set(), None),
])
def test_what_a_request_gets(request_, gpus, taken, expected):
    assert choose(request_, cpu_slots=4, gpus=gpus, taken=taken) == expected


@pytest.mark.parametrize(("request_", "bad", "expected"), [
    ("auto", {"cuda:0"}, ("cuda:1",)),
    ("auto", set(GPUS), None),  # and not the CPU
    ({"kind": "cuda", "count": 1}, {"cuda:0"}, ("cuda:1",)),
    ({"kind": "cuda", "count": 2}, {"cuda:0"}, None),
    (["cuda:0"], {"cuda:0"}, None),
    (["cpu:1"], {"cuda:0"}, ("cpu:1",)),
])
def test_devices_that_have_failed_are_left_alone(request_, bad, expected):
    assert choose(request_, cpu_slots=4, gpus=GPUS, taken=set(), bad=bad) == expected


def test_which_devices_are_left_alone():
    host = Host(cpu_slots=2, devices=[{"id": "cuda:0"}, {"id": "cuda:1", "problem": "It has fallen off the bus."}],
                bad_devices=[{"id": "cuda:0", "reason": "A run failed.", "until": 100.0}])
    assert left_alone(host, 99.0) == {"cuda:0", "cuda:1"} and left_alone(host, 100.0) == {"cuda:1"}
    assert left_alone(Host(cpu_slots=2, devices=[], bad_devices=None), 0.0) == set()


LONG = HOLD_BACK_AFTER_S
FOUR = [f"cuda:{i}" for i in range(4)]


@pytest.mark.parametrize(("request_", "waited_s", "taken", "expected"), [
    ({"kind": "cuda", "count": 4}, LONG, {"cuda:2"}, {"cuda:0", "cuda:1", "cuda:3"}),
    ({"kind": "cuda", "count": 4}, LONG - 1, {"cuda:2"}, set()),  # not yet
    ({"kind": "cuda", "count": 2}, LONG, {"cuda:2"}, set()),  # it fits
    ({"kind": "cuda", "count": 5}, LONG, {"cuda:2"}, set()),  # it never does
    (["cuda:2", "cuda:3"], LONG, {"cuda:2"}, {"cuda:3"}),  # the others are free for all
    (["cuda:2"], LONG, {"cuda:2"}, set()),
    ({"kind": "cpu", "count": 2}, LONG, {"cpu:0"}, {"cpu:1"}),
    ("auto", LONG, set(FOUR), set()),
])
def test_what_a_run_that_has_waited_long_holds_back(request_, waited_s, taken, expected):
    here = Room("here", cpu_slots=2, gpus=FOUR, taken=taken)
    assert holds_back(request_, waited_s, here) == expected


def test_one_host_alone_holds_back_that_where_it_lacks_least():
    request = {"kind": "cuda", "count": 4}
    near, far = Room("near", 2, FOUR, taken={"cuda:0"}), Room("far", 2, FOUR, taken={"cuda:0", "cuda:1"})
    small, ready = Room("small", 64, ["cuda:0"]), Room("ready", 2, FOUR)
    assert holds_back(request, LONG, near, [far, small]) == {"cuda:1", "cuda:2", "cuda:3"}
    assert holds_back(request, LONG, far, [near, small]) == set()
    assert holds_back(request, LONG, near, [ready]) == set(), "it starts there in a moment"
    twin = Room("nearer", 2, FOUR, taken={"cuda:3"})
    assert sorted(map(bool, (holds_back(request, LONG, near, [twin]), holds_back(request, LONG, twin, [near])))) == [
        False, True]
    broken = Room("broken", 2, FOUR, bad={"cuda:0"})
    assert holds_back(request, LONG, broken) == set(), "a device that is left alone is not waited for"


def test_a_run_for_the_whole_host_starts_though_small_ones_come_all_the_time():
    """As a claim does it, best first; a small run ends each minute, and two more small ones come."""
    queue = [(0, {"kind": "cuda", "count": 4})]
    running = {gpu: 60 + 15 * i for i, gpu in enumerate(FOUR)}  # device -> second at which it is free
    for second in range(0, 7200, 15):
        running = {gpu: end for gpu, end in running.items() if end > second}
        queue += [(second, {"kind": "cuda", "count": 1})] * 2
        held: set[str] = set()
        for at, request in list(queue):
            got = choose(request, cpu_slots=2, gpus=FOUR, taken={*running, *held})
            if got is not None:
                queue.remove((at, request))
                running |= dict.fromkeys(got, second + 60)
                if len(got) == 4:
                    assert LONG <= second <= LONG + 60
                    return
            else:
                held |= holds_back(request, second - at, Room("here", 2, FOUR, taken=set(running)))
    pytest.fail("it has starved")


def test_ranks():
    assert [world_size(r) for r in ("auto", {"kind": "cpu", "count": 3}, ["cuda:0", "cuda:1"])] == [1, 3, 2]


def test_a_request_that_no_host_can_ever_fill():
    hosts = [Host(cpu_slots=2, devices=[]), Host(cpu_slots=1, devices=[{"id": "cuda:0"}])]
    assert can_ever_fit(hosts, {"kind": "cuda", "count": 1})
    assert not can_ever_fit(hosts, {"kind": "cuda", "count": 2})
    assert not can_ever_fit(hosts[:1], ["cuda:0"])
    assert not can_ever_fit([], "auto")


@pytest.mark.parametrize("wrong", ["gpu", {}, {"kind": "tpu", "count": 1}, {"kind": "cpu", "count": 0},
                                   {"kind": "cpu", "count": True}, {"kind": "cpu", "count": 1, "x": 1}, [], ["cuda"],
                                   ["cuda:0", "cuda:0"], ["cpu:0", "cuda:0"], 3, None])
def test_a_malformed_request_is_one_sentence(wrong):
    with pytest.raises(MiniMindError) as raised:
        check_request(wrong)
    assert raised.value.field == "devices" and raised.value.hint
