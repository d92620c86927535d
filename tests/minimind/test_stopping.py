"""Wishes that come while another one is being answered."""

from __future__ import annotations

from pathlib import Path

from minimind.control import ControlReader, write_control
from minimind.stopping import SignalFlag, Stopper, agreed


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
