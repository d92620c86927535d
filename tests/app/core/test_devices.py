from __future__ import annotations

import pytest

from app.core.devices import can_ever_fit, check_request, choose, world_size
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
