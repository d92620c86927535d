"""Wishes that come while another one is being answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimind.control import ControlReader, write_control
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


def test_the_next_attempt_ends_this_one(tmp_path: Path) -> None:
    stopper = Stopper(SignalFlag(), ControlReader(tmp_path / "control.json"), tmp_path / "2")
    stopper.check()
    (tmp_path / "2").mkdir()
    write_control(tmp_path / "control.json", "pause")
    with pytest.raises(Superseded, match="taken this run over"):
        stopper.check()
    with pytest.raises(Superseded):
        refuse_superseded(agreed(stopper.code(), 1))
