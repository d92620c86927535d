"""Datasets that a teacher writes: what may be asked of whom. The asking itself is the job's work."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from app.checkpoints import queries
from app.core.db import Session, now
from app.core.errors import Invalid, Problems
from app.core.models import Checkpoint, Dataset, Run, new_id
from app.core.queue import enqueue_job
from app.core.rest import find, hold
from app.core.settings import get_settings
from app.datasets.teacher_schemas import StarterQuestions, TeacherCreate, TeacherSource
from minimind.teach.address import Address, parse_address
from minimind.teach.teachers import TeacherError

#: layouts that questions can be taken from
QUESTION_LAYOUTS = ("questions", "conversations", "txt")
#: how many of each the page offers, the newest
OFFERED = 100


def create(session: Session, user_id: str, asked: TeacherCreate) -> Dataset:
    """Queue the asking. Raises ``Invalid`` with every problem at once."""
    source, problems = asked.source, Problems()
    questions = _questions(session, source, problems)
    teacher = _teacher(session, source, problems)
    if problems:
        raise Invalid.of(problems)
    id = new_id()
    said = source.model_dump(mode="json", exclude={"concurrency"})
    if source.endpoint is not None:
        said["endpoint"]["url"] = parse_address(source.endpoint.url).url
    if source.questions_dataset_id is None and source.starter is None:
        said["starter"] = StarterQuestions().model_dump()
    payload = {k: v for k, v in said.items() if k != "kind"} | {
        "dataset_id": id, "concurrency": source.concurrency,
        "aside": str(get_settings().datasets_dir / f".{id}.importing")}
    job = enqueue_job(session, "teacher_answers", payload, user_id=user_id)
    dataset = Dataset(
        id=id, name=asked.name or f"{questions or 'starter questions'} answered by {teacher}"[:200], user_id=user_id,
        layout="conversations", state="importing", warnings=[], job_id=job.id, created_at=now(session),
        source={**said, "teacher_name": teacher, "questions_name": questions})
    session.add(dataset)
    session.flush()
    return dataset


def _questions(session: Session, source: TeacherSource, problems: Problems) -> str | None:
    """The name of the dataset that is asked from; None for the starter's questions."""
    if source.questions_dataset_id is None:
        return None
    field = "source.questions_dataset_id"
    if source.starter is not None:
        problems.say(field, "Questions come from a dataset or from the starter corpus, not from both.",
                     "Leave one of them out.")
        return None
    dataset = hold(session, Dataset, source.questions_dataset_id)
    if dataset is None:
        problems.say(field, "There is no dataset of this id.", "GET /api/v1/datasets lists them.")
        return None
    if dataset.state != "ready":
        problems.say(field, f"The dataset {dataset.name} is {dataset.state}.",
                     "Wait until it is ready." if dataset.state == "importing" else "Import it again.")
    elif dataset.layout not in QUESTION_LAYOUTS:
        problems.say(field, f"The dataset {dataset.name} has the layout {dataset.layout}, which holds no questions.",
                     f"Choose one of the layouts {', '.join(QUESTION_LAYOUTS)}.")
    return dataset.name


def _teacher(session: Session, source: TeacherSource, problems: Problems) -> str:
    """What the teacher is called."""
    if (source.checkpoint_id is None) == (source.endpoint is None):
        problems.say("source.checkpoint_id", "A teacher is a checkpoint or an endpoint, exactly one of them.",
                     'Give checkpoint_id, or endpoint {"url", "model"}.')
        return ""
    if source.endpoint is not None:
        try:
            parse_address(source.endpoint.url)
        except TeacherError as error:
            problems.say("source.endpoint.url", error.message, error.hint)
        return source.endpoint.model
    row = find(session, Checkpoint, source.checkpoint_id)
    if row is None or row.state != "ready":
        problems.say("source.checkpoint_id", "There is no checkpoint of this id." if row is None else
                     f"This checkpoint is {row.state}.", "GET /api/v1/checkpoints lists those that can answer.")
        return ""
    run = session.get(Run, row.run_id)
    return f"{run.name if run else row.run_id}, step {row.step}"


def address_of(url: str) -> Address:
    """Raises ``Invalid`` for an address that no teacher may have."""
    try:
        return parse_address(url)
    except TeacherError as error:
        raise Invalid(error.message, field="url", hint=error.hint) from None


def choices(session: Session) -> dict[str, list[dict[str, Any]]]:
    """What the page offers to ask from and whom: ``{"questions": [{id, name, rows}], "checkpoints": [{id, name,
    stage, step}]}``, the newest first."""
    datasets = session.execute(
        select(Dataset.id, Dataset.name, Dataset.rows)
        .where(Dataset.state == "ready", Dataset.layout.in_(QUESTION_LAYOUTS))
        .order_by(Dataset.created_at.desc(), Dataset.id.desc()).limit(OFFERED))
    checkpoints = session.execute(
        select(Checkpoint.id, Run.name, Checkpoint.stage, Checkpoint.step).join(Run, Run.id == Checkpoint.run_id)
        .where(Checkpoint.state == "ready", Checkpoint.stage.not_in(queries.CONTINUES_TEXT))
        .order_by(Checkpoint.created_at.desc(), Checkpoint.id.desc()).limit(OFFERED))
    return {"questions": [row._asdict() for row in datasets], "checkpoints": [row._asdict() for row in checkpoints]}
