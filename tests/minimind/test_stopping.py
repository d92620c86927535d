"""Wishes that come while another one is being answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimind.control import ControlReader, write_control, write_sample_wish
from minimind.stopping import SignalFlag, Stopper, Superseded, agreed, refuse_superseded


def test_a_wish_that_comes_during_a_failing_save_is_heard(tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    stopper = Stopper(SignalFlag(), ControlReader(control))
    write_control(control, "pause")
    assert agreed(stopper.code(), 0).command == "pause"
    write_control(control, "stop")  # the user cancels while the pause is being saved
    stopper.answered()  # it could not be saved
    assert agreed(stopper.code(), 0).command == "stop"


def test_a_wish_that_could_not_be_granted_is_not_tried_at_every_step(tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    stopper = Stopper(SignalFlag(), ControlReader(control))
    write_control(control, "pause")
    stopper.code()
    stopper.answered()
    assert agreed(stopper.code(), 0).command == "none"
    write_control(control, "pause")
    assert agreed(stopper.code(), 0).command == "pause"


def test_a_wish_written_by_hand_is_heard_and_nonsense_is_not(tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    for text, command in (('{"command": "pause", "save": true}', "pause"), ('{"command": "stop", "id": "k"}', "stop"),
                          ('{"command": "none"}', "none"), ('{"command": "dance", "id": 1}', "none"), ("[]", "none"),
                          ('{"command": "pause", "id": null}', "pause"), ("{", "none")):
        control.write_text(text)
        assert agreed(Stopper(SignalFlag(), ControlReader(control)).code(), 0).command == command, text


def test_a_wish_to_hear_the_model_is_no_new_command(tmp_path: Path) -> None:
    """A pause that could not be granted is not tried again because somebody asks for samples."""
    control = tmp_path / "control.json"
    stopper = Stopper(SignalFlag(), ControlReader(control))
    assert not stopper.wants_sample()
    write_sample_wish(control, 1)
    assert agreed(stopper.code(), 0).command == "none" and stopper.wants_sample()
    stopper.spoken()
    assert not stopper.wants_sample()
    write_control(control, "pause")
    assert not stopper.wants_sample(), "a pause is no wish to hear it again"
    assert json.loads(control.read_text()) == {"command": "pause", "save": True, "id": 1, "sample": 1}
    stopper.code()
    stopper.answered()
    write_sample_wish(control, 3)
    assert agreed(stopper.code(), 0).command == "none" and stopper.wants_sample()
    stopper.spoken()
    write_control(control, "stop")
    assert agreed(stopper.code(), 0).command == "stop" and not stopper.wants_sample()


@pytest.mark.parametrize("sample", ["k", None, True, [1], -1])
def test_nonsense_asks_for_no_samples(tmp_path: Path, sample: object) -> None:
    (tmp_path / "control.json").write_text(json.dumps({"command": "none", "id": 0, "sample": sample}))
    assert not Stopper(SignalFlag(), ControlReader(tmp_path / "control.json")).wants_sample()


def test_the_next_attempt_ends_this_one(tmp_path: Path) -> None:
    stopper = Stopper(SignalFlag(), ControlReader(tmp_path / "control.json"), tmp_path / "2")
    stopper.check()
    (tmp_path / "2").mkdir()
    write_control(tmp_path / "control.json", "pause")
    with pytest.raises(Superseded, match="taken this run over"):
        stopper.check()
    with pytest.raises(Superseded):
        refuse_superseded(agreed(stopper.code(), 1))
