"""A line of stages: the next run is created with the completion of the one before, once."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import select

from app.core import db, lines, queue, states
from app.core.errors import Conflict
from app.core.models import Checkpoint, Event, Pipeline, Run, TokenizerRow, new_id
from app.core.settings import get_settings
from minimind.run_dir import write_json
from tests.database_rig import HOST, add_host

STAGES = [{"stage": "tokenizer", "config": {}}, {"stage": "pretrain", "config": {"max_steps": 5}},
          {"stage": "sft", "config": {}, "dataset_id": None, "devices": {"kind": "cpu", "count": 2}}]


@pytest.fixture
def line(database):
    add_host()

    def make(stages=STAGES) -> str:
        with db.transaction() as session:
            pipeline = Pipeline(id=new_id(), name="line", state="running", stages=stages, user_id="local", next_seq=1)
            lines.start(session, pipeline)
            return pipeline.id

    return make


def finish(state: str = "completed", *, eval_loss: float | None = None, error: dict | None = None,
           evaluations: list[dict] | None = None, leaves: bool = True) -> str:
    """Claim the one queued run and bring it to ``state``, with a checkpoint if it ``leaves`` one; its id."""
    with db.transaction() as session:
        claim = queue.claim_run(session, HOST)
        run = session.get(Run, claim.run_id)
        states.move(session, run, "running")
        for step, data in enumerate(evaluations or []):
            states.append_event(session, f"run:{run.id}", "eval", step=step, data=data)
        if leaves:
            leave_checkpoint(session, run, eval_loss)
        session.flush()
        states.move(session, run, state, error=error)
        return run.id


def leave_checkpoint(session: db.Session, run: Run, eval_loss: float | None = None) -> None:
    made = get_settings().data_dir / run.id
    made.mkdir()
    if run.stage == "tokenizer":
        session.add(TokenizerRow(id=run.id, name="t", user_id="local", state="ready", path=str(made), source={},
                                 created_at=0))
    else:
        write_json(made / "manifest.json", {"version": 1})
        session.add(Checkpoint(id=f"c-{run.id}", run_id=run.id, attempt=1, stage=run.stage, step=5, tokens=1, bytes=1,
                               loss=1.0, eval_loss=eval_loss, path=str(made), state="ready", created_at=0))
    session.flush()


def look(pipeline_id: str) -> tuple[str, list[Run]]:
    with db.reading() as session:
        return session.get(Pipeline, pipeline_id).state, lines.runs_of(session, pipeline_id)


def test_each_stage_starts_from_the_one_before(line):
    pipeline_id = line()
    for _ in STAGES:
        finish()
    state, (tokenizer, pretrain, sft) = look(pipeline_id)
    assert state == "completed"
    assert pretrain.tokenizer_id == tokenizer.id and pretrain.base_checkpoint_id is None
    assert sft.base_checkpoint_id == f"c-{pretrain.id}" and sft.tokenizer_id is None
    assert sft.devices == {"kind": "cpu", "count": 2} and pretrain.devices == "auto"
    assert [r.pipeline_position for r in (tokenizer, pretrain, sft)] == [0, 1, 2]
    with db.reading() as session:
        events = session.scalars(select(Event).where(Event.topic == f"pipeline:{pipeline_id}")
                                 .order_by(Event.seq)).all()
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert [e.data["state"] for e in events if e.type == "state"] == ["running", "completed"]


def test_nothing_follows_a_completion_that_is_rolled_back(line):
    pipeline_id = line()
    with db.transaction() as session:
        claim = queue.claim_run(session, HOST)
        states.move(session, session.get(Run, claim.run_id), "running")
    with pytest.raises(ZeroDivisionError), db.transaction() as session:
        states.move(session, session.get(Run, claim.run_id), "completed")
        raise ZeroDivisionError
    assert len(look(pipeline_id)[1]) == 1


def test_a_failed_stage_fails_the_line_and_resume_tries_it_again(line):
    pipeline_id = line()
    finish()
    finish("failed", error={"class": "DATA", "message": "bad", "hint": None})
    with db.transaction() as session:
        pipeline = session.get(Pipeline, pipeline_id)
        assert pipeline.state == "failed" and pipeline.error["message"] == "bad" and pipeline.ended_at
        lines.request_resume_line(session, pipeline)
    state, runs = look(pipeline_id)
    assert state == "running" and [r.stage for r in runs] == ["tokenizer", "pretrain", "pretrain"]
    assert runs[1].pipeline_position is None and runs[2].tokenizer_id == runs[0].id
    finish()
    finish()
    assert look(pipeline_id)[0] == "completed"


def test_a_gate_stops_the_line_and_resume_trains_on_top(line):
    pipeline_id = line([{"stage": "pretrain", "config": {}, "gate": {"eval_loss": 2.0}},
                        {"stage": "sft", "config": {}}])
    finish(eval_loss=3.0)
    state, runs = look(pipeline_id)
    assert state == "paused" and len(runs) == 1
    with db.transaction() as session:
        pipeline = session.get(Pipeline, pipeline_id)
        assert pipeline.error["class"] == "GATE" and "3" in pipeline.error["message"]
        lines.request_resume_line(session, pipeline)
    assert look(pipeline_id)[1][1].base_checkpoint_id == f"c-{runs[0].id}"
    finish(eval_loss=1.5)
    assert [r.stage for r in look(pipeline_id)[1]] == ["pretrain", "pretrain", "sft"]


def test_a_try_that_fails_behind_a_gate_loses_nothing_of_the_one_below(line):
    pipeline_id = line([{"stage": "pretrain", "config": {}}, {"stage": "sft", "config": {}, "gate": {"eval_loss": 2}}])

    def resume() -> str | None:
        with db.transaction() as session:
            lines.request_resume_line(session, session.get(Pipeline, pipeline_id))
        return look(pipeline_id)[1][-1].base_checkpoint_id

    finish()
    first = finish(eval_loss=3.0)
    assert resume() == f"c-{first}"
    second = finish("failed", error={"class": "OOM", "message": "no", "hint": None})
    assert resume() == f"c-{first}" and second != first
    finish(eval_loss=1.0)
    assert look(pipeline_id)[0] == "completed"


def test_a_number_that_nobody_measured_stops_the_line_and_says_so(line):
    pipeline_id = line([{"stage": "pretrain", "config": {}, "gate": {"eval_loss": 2}}, {"stage": "sft", "config": {}}])
    finish(eval_loss=None)
    with db.reading() as session:
        error = session.get(Pipeline, pipeline_id).error
    assert "eval_loss is unknown" in error["message"] and "Nobody measured it" in error["hint"]


STUDENT = [{"stage": "tokenizer", "config": {}},
           {"stage": "pretrain", "config": {}, "title": "Teacher"},
           {"stage": "sft", "config": {}},
           {"stage": "pretrain", "config": {}, "from_stage": -1},
           {"stage": "distill", "config": {}, "teacher_stage": 2},
           {"stage": "sft", "config": {}, "from_stage": 2}]


def test_a_stage_starts_from_what_it_names_and_new_weights_share_the_vocabulary(line):
    pipeline_id = line(STUDENT)
    for _ in STUDENT:
        finish()
    state, runs = look(pipeline_id)
    assert state == "completed"
    vocabulary, teacher, taught, student, distilled, other = runs
    made = [None, *(f"c-{run.id}" for run in runs[1:])]
    assert [run.base_checkpoint_id for run in runs] == [None, None, made[1], None, made[3], made[2]]
    assert [run.teacher_checkpoint_id for run in runs] == [None, None, None, None, made[2], None]
    assert [run.tokenizer_id for run in runs] == [None, vocabulary.id, None, vocabulary.id, None, None]
    assert [run.name for run in runs[:3]] == ["line: tokenizer", "line: Teacher", "line: sft"]


def test_a_stage_that_is_tried_again_stands_on_the_same(line):
    pipeline_id = line(STUDENT)
    for _ in range(4):
        finish()
    finish("failed", error={"class": "DATA", "message": "bad", "hint": None})
    with db.transaction() as session:
        lines.request_resume_line(session, session.get(Pipeline, pipeline_id))
    runs = look(pipeline_id)[1]
    first, again = runs[-2:]
    assert again.base_checkpoint_id == first.base_checkpoint_id == f"c-{runs[3].id}"
    assert again.teacher_checkpoint_id == first.teacher_checkpoint_id == f"c-{runs[2].id}"
    assert (first.pipeline_position, again.pipeline_position) == (None, 4)


def test_a_gate_of_an_evaluation_asks_for_enough_and_tells_what_it_saw(line):
    pipeline_id = line([{"stage": "sft", "config": {}}, {"stage": "dpo", "config": {},
                                                          "gate": {"reward_accuracy": 0.9, "eval_loss": 1.0}}])
    finish()
    seen = [{"eval_loss": 0.7, "eval_reward_accuracy": 0.95}, {"eval_loss": 0.5, "eval_reward_accuracy": 0.85}]
    first = finish(eval_loss=0.5, evaluations=seen)
    with db.transaction() as session:
        pipeline = session.get(Pipeline, pipeline_id)
        assert pipeline.state == "paused"
        assert "reward_accuracy is 0.85, asked for at least 0.9" in pipeline.error["message"]
        assert lines.measured(session, {first: ["reward_accuracy"]}) == {first: {"reward_accuracy": 0.85}}
        lines.request_resume_line(session, pipeline)
    assert look(pipeline_id)[1][-1].base_checkpoint_id == f"c-{first}"
    finish(eval_loss=0.5, evaluations=[{"eval_loss": 0.5, "eval_reward_accuracy": 0.9}])
    assert look(pipeline_id)[0] == "completed"


@pytest.mark.parametrize("seen", [[], [{"eval_loss": 0.5}], [{"eval_reward_accuracy": None}]])
def test_what_was_not_measured_passes_no_gate(line, seen):
    pipeline_id = line([{"stage": "dpo", "config": {}, "gate": {"reward_accuracy": 0.0}}])
    finish(evaluations=seen)
    assert look(pipeline_id)[0] == "paused"


def test_a_line_does_not_go_on_from_nothing(line):
    """Without the weights it was to start from, a stage would begin with random ones and nobody would notice."""
    pipeline_id = line(STAGES[1:])
    finish(leaves=False)
    with db.reading() as session:
        pipeline = session.get(Pipeline, pipeline_id)
        assert pipeline.state == "failed" and "no usable checkpoint" in pipeline.error["message"]
    assert [run.state for run in look(pipeline_id)[1]] == ["completed"]


def test_a_line_whose_next_data_are_gone_fails_and_its_stage_stays_done(line):
    """It could be deleted in the moment in which the line was made; the completion must not be undone by that."""
    pipeline_id = line([STAGES[1], {**STAGES[2], "dataset_id": "gone"}])
    finish()
    with db.reading() as session:
        pipeline = session.get(Pipeline, pipeline_id)
        assert pipeline.state == "failed" and "dataset of the next stage" in pipeline.error["message"]
    assert [run.state for run in look(pipeline_id)[1]] == ["completed"]


def test_pause_resume_and_cancel_reach_the_live_run(line):
    pipeline_id = line()
    with db.transaction() as session:
        lines.request_pause_line(session, session.get(Pipeline, pipeline_id))
    state, (run,) = look(pipeline_id)
    assert (state, run.state) == ("paused", "paused")
    with db.transaction() as session:
        lines.request_resume_line(session, session.get(Pipeline, pipeline_id))
    state, (run,) = look(pipeline_id)
    assert (state, run.state) == ("running", "queued")
    with db.transaction() as session:
        lines.request_cancel_line(session, session.get(Pipeline, pipeline_id))
    state, (run,) = look(pipeline_id)
    assert (state, run.state) == ("cancelled", "cancelled")
    with db.transaction() as session:
        with pytest.raises(Conflict):
            lines.request_resume_line(session, session.get(Pipeline, pipeline_id))


def test_a_stage_that_completes_in_a_paused_line_is_followed_by_a_paused_run(line):
    pipeline_id = line()
    with db.transaction() as session:
        claim = queue.claim_run(session, HOST)
        states.move(session, session.get(Run, claim.run_id), "running")
        lines.request_pause_line(session, session.get(Pipeline, pipeline_id))
    with db.transaction() as session:  # success was faster than the pause
        states.move(session, session.get(Run, claim.run_id), "completed")
    state, (_, following) = look(pipeline_id)
    assert (state, following.state, following.desired) == ("paused", "paused", "pause")
    with db.transaction() as session:
        lines.request_resume_line(session, session.get(Pipeline, pipeline_id))
    assert look(pipeline_id)[1][1].state == "queued"


def test_pausing_the_run_pauses_its_line_and_cancelling_it_cancels_it(line):
    pipeline_id = line()
    with db.transaction() as session:
        states.request_pause(session, lines.runs_of(session, pipeline_id)[0])
    assert look(pipeline_id)[0] == "paused"
    with db.transaction() as session:
        states.request_resume(session, lines.runs_of(session, pipeline_id)[0])
    assert look(pipeline_id)[0] == "running"
    with db.transaction() as session:
        states.request_cancel(session, lines.runs_of(session, pipeline_id)[0])
    assert look(pipeline_id)[0] == "cancelled"


@pytest.mark.parametrize("wish, state", [(lines.request_pause_line, "paused"), (lines.request_cancel_line, "cancelled"),
                                         (lines.request_resume_line, "queued")])
def test_a_wish_that_meets_the_end_of_a_stage_finds_the_next_run(line, wish, state):
    """PostgreSQL: whoever waits for the lock of the completing run must see the run that it makes."""
    pipeline_id = line([{"stage": "pretrain", "config": {}}, {"stage": "sft", "config": {}}])
    with db.transaction() as session:
        claim = queue.claim_run(session, HOST)
        states.move(session, session.get(Run, claim.run_id), "running")
    held, wished = threading.Event(), []

    def complete() -> None:
        with db.transaction() as session:
            leave_checkpoint(session, session.get(Run, claim.run_id))
            states.move(session, session.get(Run, claim.run_id), "completed")
            held.set()
            time.sleep(0.5)

    def ask() -> None:
        assert held.wait(10)
        with db.transaction() as session:
            wish(session, session.get(Pipeline, pipeline_id))
        wished.append(True)

    threads = [threading.Thread(target=work) for work in (complete, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    _, (first, second) = look(pipeline_id)
    assert wished and (first.state, second.state) == ("completed", state)


def test_of_several_who_resume_at_once_one_makes_the_try(line):
    """PostgreSQL: each of them sees that no run is live, and waits for the line."""
    pipeline_id = line(STAGES[1:])
    finish("failed")
    together = threading.Barrier(4)

    def resume() -> None:
        together.wait(10)
        with db.transaction() as session:
            lines.request_resume_line(session, session.get(Pipeline, pipeline_id))

    threads = [threading.Thread(target=resume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    state, runs = look(pipeline_id)
    assert state == "running" and [run.state for run in runs] == ["failed", "queued"]


def test_a_line_whose_next_stage_lacked_its_teacher_makes_that_one_when_it_is_back(line):
    """The stage that is done is not trained once more for it."""
    pipeline_id = line(STUDENT)
    ids = [finish() for _ in STUDENT[:3]]
    with db.transaction() as session:
        session.get(Checkpoint, f"c-{ids[2]}").state = "deleted"
    finish()
    state, runs = look(pipeline_id)
    assert state == "failed" and len(runs) == 4
    with pytest.raises(Conflict, match="has no usable checkpoint"), db.transaction() as session:
        lines.request_resume_line(session, session.get(Pipeline, pipeline_id))
    assert look(pipeline_id)[0] == "failed"
    with db.transaction() as session:
        session.get(Checkpoint, f"c-{ids[2]}").state = "ready"
        lines.request_resume_line(session, session.get(Pipeline, pipeline_id))
    state, runs = look(pipeline_id)
    assert (state, runs[-1].stage, runs[-1].pipeline_position) == ("running", "distill", 4)
    assert runs[-1].teacher_checkpoint_id == f"c-{ids[2]}" and len(runs) == 5
