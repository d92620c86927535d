"""Lines of stages: checked as a whole before the first one starts."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import select

from app.core import lines
from app.core.db import Session
from app.core.errors import Invalid
from app.core.models import Pipeline, Run, new_id
from app.core.rest import Paging, get_or_404, newest_first
from app.pipelines.schemas import PipelineCreate, PipelineOut, StageAsked
from app.runs.checks import Checked, check
from app.runs.preflight import refuse_if_disk_is_too_small
from minimind.config import STAGES


def get_pipeline(session: Session, id: str) -> Pipeline:
    return get_or_404(session, Pipeline, id, "pipeline")


def create(session: Session, user_id: str, asked: PipelineCreate) -> Pipeline:
    """Check every stage (all problems of all stages at once), then start the line."""
    problems = asked.problems
    checked: list[Checked] = []
    for position, stage in enumerate(asked.stages):
        before = asked.stages[position - 1].stage if position else None
        try:
            checked.append(check(session, stage=stage.stage, config=stage.config, dataset_id=stage.dataset_id,
                                 devices=stage.devices, problems=stage.problems, follows=STAGES.get(before)))
        except Invalid as error:
            problems += [{**p, "field": f"stages.{position}.{p['field']}"} for p in error.problems or []]
    if problems:
        raise Invalid.of(problems)
    for each in checked:
        refuse_if_disk_is_too_small(each)
    pipeline = Pipeline(id=new_id(), name=asked.name, user_id=user_id, next_seq=1,
                        stages=[_stored(a, c) for a, c in zip(asked.stages, checked, strict=True)])
    lines.start(session, pipeline)
    return pipeline


def _stored(asked: StageAsked, checked: Checked) -> dict:
    stored = {"stage": asked.stage, "config": checked.config.api_dict(), "dataset_id": asked.dataset_id,
              "gate": asked.gate, "devices": asked.devices}
    return stored | ({"tokenizer_id": checked.tokenizer.id} if checked.tokenizer else {})


def shown(session: Session, pipeline: Pipeline) -> PipelineOut:
    session.flush()
    return PipelineOut.of(pipeline, lines.runs_of(session, pipeline.id))


def list_pipelines(session: Session, paging: Paging, state: list[str] | None) -> tuple[list[PipelineOut], str | None]:
    query = select(Pipeline)
    if state:
        query = query.where(Pipeline.state.in_(state))
    rows, cursor = newest_first(session, query, Pipeline, paging)
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in session.scalars(select(Run).where(Run.pipeline_id.in_([p.id for p in rows]))
                               .order_by(Run.created_at, Run.id)):
        runs[run.pipeline_id].append(run)
    return [PipelineOut.of(p, runs[p.id]) for p in rows], cursor
