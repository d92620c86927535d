"""Finds the checkpoint that a model id means, and says what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.checkpoints.adapters import misfit
from app.core.db import reading
from app.core.errors import AppError
from app.core.models import Checkpoint, Run
from app.core.rest import is_id
from minimind.answers import THINK
from minimind.chat_format import render
from minimind.errors import MiniMindError
from minimind.manifest import Manifest
from minimind.tokenizer import Tokenizer

OWNER = "minimind-studio"
#: checkpoints that ``/v1/models`` names, newest first: clients show the whole list in a menu
MAX_LISTED = 1000
#: between a model and the checkpoint whose adapter is laid over it
PLUS = "+"


@dataclass(frozen=True)
class Model:
    """Who answers: a checkpoint (one of the stage lora with its own base), maybe with another one's adapter over it."""

    checkpoint: Checkpoint
    adapter: Checkpoint | None = None

    @property
    def places(self) -> dict[str, str | None]:
        """As ``InferenceClient.replies`` wants them."""
        return {"checkpoint": self.checkpoint.path, "adapter": self.adapter.path if self.adapter else None}


def list_models() -> list[dict[str, Any]]:
    with reading() as session:
        rows = session.scalars(select(Checkpoint).where(Checkpoint.state == "ready")
                               .order_by(Checkpoint.created_at.desc(), Checkpoint.step.desc()).limit(MAX_LISTED))
        return [_model_object(row.id, Model(row)) for row in rows]


def get_model(model_id: str) -> dict[str, Any]:
    """Raises ``AppError`` as ``find_model``."""
    return _model_object(model_id, find_model(model_id))


def find_model(model_id: str) -> Model:
    """``ID``, or ``BASE+ADAPTER``: the adapter of one checkpoint over another. Raises ``AppError``: 404 where one is
    not there, 400 where they do not go together."""
    base, plus, adapter = model_id.partition(PLUS)
    if not plus:
        return Model(find_checkpoint(model_id))
    if PLUS in adapter:
        raise AppError(400, "invalid_value", "One adapter can be laid over a model: BASE+ADAPTER.", "model")
    model = Model(find_checkpoint(base), find_checkpoint(adapter))
    problem = misfit(model.checkpoint, model.adapter)
    if problem is not None:
        raise AppError(400, "adapter_misfit", problem, "model")
    return model


def find_checkpoint(model_id: str) -> Checkpoint:
    """The checkpoint of that id, or the latest one of the run of that id. Raises ``AppError`` 404."""
    if not is_id(model_id):  # nothing else is ever asked of the database
        raise AppError(404, "model_not_found", "There is no checkpoint or run of this name. GET /v1/models lists the "
                                               "checkpoints.", "model")
    with reading() as session:
        found = session.get(Checkpoint, model_id)
        if found is not None and found.state == "ready":
            return found
        # a later attempt supersedes what earlier ones saved, also at a higher step
        of_run = select(Checkpoint).where(Checkpoint.run_id == model_id, Checkpoint.state == "ready")
        latest = session.scalars(of_run.order_by(Checkpoint.attempt.desc(), Checkpoint.step.desc()).limit(1)).first()
        if latest is not None:
            return latest
        if found is not None:
            reason = f"The checkpoint {model_id!r} is {found.state}; choose another one of run {found.run_id}."
        elif session.get(Run, model_id) is not None:
            reason = f"The run {model_id!r} has no checkpoint yet."
        else:
            reason = f"There is no checkpoint or run {model_id!r}. GET /v1/models lists the checkpoints."
    raise AppError(404, "model_not_found", reason, "model")


def _model_object(model_id: str, model: Model) -> dict[str, Any]:
    row = model.checkpoint
    return {"id": model_id, "object": "model", "created": int(row.created_at), "owned_by": OWNER,
            "checkpoint": row.id, "run": row.run_id, "stage": row.stage, "step": row.step,
            "adapter": model.adapter.id if model.adapter else None, "max_model_len": context_length(row)}


def context_length(checkpoint: Checkpoint) -> int | None:
    """Tokens of prompt and answer together; None where its files cannot be read by this process."""
    try:
        return _positions(checkpoint.path)
    except (MiniMindError, KeyError, TypeError, ValueError):
        return None


@lru_cache(maxsize=5000)  # a checkpoint never changes; one that cannot be read is tried again
def _positions(path: str) -> int:
    return int(Manifest.read(Path(path)).model["max_position_embeddings"])


def opens_thinking(checkpoint: Checkpoint, wanted: bool) -> bool:
    """Whether the chat template ends a prompt inside a think block. Where it cannot be read by this process: whether
    that was ``wanted``, which is what MiniMind's template makes of it."""
    try:
        return _ends_in_block(checkpoint.path, wanted)
    except (MiniMindError, OSError):
        return wanted


@lru_cache(maxsize=1000)
def _ends_in_block(path: str, wanted: bool) -> bool:
    prompt = render(Tokenizer.load(path), [{"role": "user", "content": "Hello"}], add_generation_prompt=True,
                    open_thinking=wanted)
    return prompt.rstrip().endswith(THINK)
