"""What a trainer is told: a run's row, with ids turned into places on this machine."""

from __future__ import annotations

import pytest

from app.core.db import transaction
from app.core.models import Checkpoint, Run, TokenizerRow
from app.core.settings import get_settings
from minimind.errors import MiniMindError
from minimind.manifest import MANIFEST_VERSION
from minimind.run_dir import RunDir, read_json, write_json
from tests.database_rig import add_run
from worker.prepare import prepare


@pytest.fixture
def places(database: str, tmp_path) -> dict[str, str]:
    """Checkpoints ``base`` and ``teacher`` and the tokenizer ``words``, as far as anybody looks."""
    origin = add_run()
    found = {}
    with transaction() as session:
        for step, id in enumerate(("base", "teacher"), 1):
            found[id] = str(tmp_path / id)
            (tmp_path / id).mkdir()
            write_json(tmp_path / id / "manifest.json", {"version": MANIFEST_VERSION})
            session.add(Checkpoint(id=id, run_id=origin, attempt=1, stage="sft", step=step, tokens=1, bytes=1,
                                   path=found[id], state="ready", created_at=0))
        found["words"] = str(tmp_path / "words")
        (tmp_path / "words").mkdir()
        session.add(TokenizerRow(id="words", name="words", user_id="local", state="ready", path=found["words"],
                                 source={}, created_at=0))
    return found


def told(**values: object) -> dict:
    """``run.json`` of a new run."""
    id = add_run(**values)
    directory = RunDir(get_settings().runs_dir / id)
    with transaction() as session:
        prepare(session, session.get(Run, id), directory, get_settings())
    return read_json(directory.config)


def test_a_student_of_random_weights_has_its_teachers_tokenizer(places: dict[str, str]) -> None:
    config = told(stage="distill", teacher_checkpoint_id="teacher")
    assert (config["teacher_weight"], config["from_weight"], config["tokenizer"]) == (
        places["teacher"], None, places["teacher"])
    chosen = told(stage="distill", teacher_checkpoint_id="teacher", tokenizer_id="words")
    assert (chosen["teacher_weight"], chosen["tokenizer"]) == (places["teacher"], places["words"])


def test_a_student_with_a_base_keeps_its_own(places: dict[str, str]) -> None:
    config = told(stage="distill", teacher_checkpoint_id="teacher", base_checkpoint_id="base")
    assert (config["teacher_weight"], config["from_weight"], config["tokenizer"]) == (
        places["teacher"], places["base"], None)


@pytest.mark.parametrize("stage", ["lora", "dpo"])
def test_a_base_becomes_a_place(places: dict[str, str], stage: str) -> None:
    config = told(stage=stage, base_checkpoint_id="base", config={"beta": 0.3} if stage == "dpo" else {"lora_rank": 4})
    assert (config["stage"], config["from_weight"]) == (stage, places["base"])
    assert config["beta"] == 0.3 if stage == "dpo" else config["lora_rank"] == 4


def test_a_teacher_that_went_is_said(places: dict[str, str]) -> None:
    with transaction() as session:
        session.get(Checkpoint, "teacher").state = "deleted"
    with pytest.raises(MiniMindError, match="The teacher 'teacher' of this run is not there any more") as error:
        told(stage="distill", teacher_checkpoint_id="teacher")
    assert error.value.field == "teacher_checkpoint_id" and error.value.hint


def test_a_run_that_goes_on_is_told_of_no_base_that_is_gone(places: dict[str, str]) -> None:
    id = add_run(stage="dpo", base_checkpoint_id="base", attempt=1)
    with transaction() as session:
        session.add(Checkpoint(id="own", run_id=id, attempt=1, stage="dpo", step=3, tokens=1, bytes=1,
                               path=places["teacher"], state="ready", created_at=0))
        session.delete(session.get(Checkpoint, "base"))
    directory = RunDir(get_settings().runs_dir / id)
    with transaction() as session:
        prepare(session, session.get(Run, id), directory, get_settings())
    assert read_json(directory.config)["from_weight"] is None
