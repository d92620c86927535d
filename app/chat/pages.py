"""Pages of chat: a new conversation with a checkpoint, and those that were kept."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import select

from app.auth.deps import User
from app.chat import conversations
from app.chat.messages import branch
from app.chat.schemas import ConversationItem, ConversationOut
from app.checkpoints import adapters, queries
from app.core.db import Session, reading
from app.core.models import Checkpoint, Run
from app.core.rest import Paging, find
from app.rendering import page
from minimind.events import finite

router = APIRouter(include_in_schema=False)

#: checkpoints to choose from, the newest: more would be no choice but a search
CHECKPOINTS_OFFERED = 500
CONVERSATIONS_LISTED = 50


class Choice(BaseModel):
    """A checkpoint that can be talked to. ``fits``: equal for models and adapters that go together; None where that is
    not known. ``base_checkpoint_id``: what its run started from."""

    id: str
    run_id: str
    run_name: str
    stage: str
    step: int
    eval_loss: float | None
    continues_text: bool
    is_adapter: bool
    fits: str | None
    base_checkpoint_id: str | None


@dataclass(frozen=True)
class Choices:
    """``listed``: runs with the newest checkpoint first, within a run the newest first. ``adapter`` is laid over
    ``chosen``."""

    listed: list[Choice]
    chosen: Choice | None
    #: what was asked for is not there (any more): ``chosen`` stands in for it
    is_substitute: bool
    adapter: Choice | None = None
    #: the adapter that was asked for is not there, or does not fit
    lacks_adapter: bool = False

    @property
    def continues_text(self) -> bool:
        return self.chosen is not None and self.chosen.continues_text and self.adapter is None

    @property
    def adapters(self) -> list[Choice]:
        """What can be laid over ``chosen``, those that were trained on it first."""
        return adapters_for(self.listed, self.chosen)

    @property
    def by_run(self) -> list[tuple[str, list[Choice]]]:
        return [(group[0].run_name, group) for _, found in groupby(self.listed, key=lambda c: c.run_id)
                for group in [list(found)]]


@router.get("/chat")
def new_chat(request: Request, user: User, checkpoint: Annotated[str, Query(max_length=100)] = "",
             adapter: Annotated[str, Query(max_length=100)] = "") -> Response:
    """A conversation that begins with its first message. ``checkpoint`` is who answers, ``adapter`` the one whose
    adapter is laid over it."""
    with reading() as session:
        return _page(request, session, user.user_id, checkpoint or None, adapter or None, None)


@router.get("/chat/{id}")
def kept_chat(id: str, request: Request, user: User) -> Response:
    with reading() as session:
        talk = ConversationOut.of(conversations.get(session, user.user_id, id))
        return _page(request, session, user.user_id, talk.checkpoint_id, talk.adapter_checkpoint_id, talk)


def _page(request: Request, session: Session, user_id: str, checkpoint_id: str | None, adapter_id: str | None,
          talk: ConversationOut | None) -> Response:
    choices = choices_for(session, checkpoint_id, adapter_id)
    rows, cursor = conversations.own(session, user_id, Paging(limit=CONVERSATIONS_LISTED))
    kept = [ConversationItem.of(row) for row in rows]
    continues_text = talk.mode == "text" if talk and talk.mode else choices.continues_text
    view = {"conversation": talk and talk.model_dump(mode="json"), "user_id": user_id,
            "checkpoints": [choice.model_dump(mode="json") for choice in choices.listed],
            "checkpoint_id": choices.chosen and choices.chosen.id,
            "adapter_checkpoint_id": choices.adapter and choices.adapter.id}
    return page(request, "pages/chat.html", talk=talk, kept=kept, cursor=cursor, choices=choices, view=view,
                said=branch(talk.messages, talk.head) if talk else [], continues_text=continues_text)


def choices_for(session: Session, wanted: str | None, wanted_adapter: str | None = None) -> Choices:
    """Who can answer, and who does: the one that is wanted, else the newest that was taught to answer, else the
    newest at all."""
    columns = select(Checkpoint, Run.name, Run.base_checkpoint_id).join(
        Run, Run.id == Checkpoint.run_id).where(Checkpoint.state == "ready")
    rows = session.execute(columns.order_by(Checkpoint.created_at.desc(), Checkpoint.step.desc())
                           .limit(CHECKPOINTS_OFFERED)).all()
    for id in (wanted, wanted_adapter):
        if id is not None and all(row.id != id for row, *_ in rows) and find(session, Checkpoint, id):
            rows += session.execute(columns.where(Checkpoint.id == id)).all()
    any_adapter = any(row.stage == adapters.STAGE for row, *_ in rows)  # else nobody asks what would fit
    newest_first = [_choice(row, name, base, any_adapter) for row, name, base in rows]
    found = next((c for c in newest_first if c.id == wanted), None)
    default = next((c for c in newest_first if not c.continues_text), newest_first[0] if newest_first else None)
    place = {run_id: at for at, run_id in reversed(list(enumerate(c.run_id for c in newest_first)))}
    # a later attempt supersedes what earlier ones saved, also at a higher step
    order = {row.id: (place[row.run_id], -row.attempt, -row.step) for row, *_ in rows}
    listed, chosen = sorted(newest_first, key=lambda c: order[c.id]), found or default
    adapter = next((c for c in adapters_for(listed, chosen) if c.id == wanted_adapter), None)
    return Choices(listed, chosen, is_substitute=wanted is not None and found is None, adapter=adapter,
                   lacks_adapter=wanted_adapter is not None and adapter is None)


def adapters_for(listed: list[Choice], model: Choice | None) -> list[Choice]:
    """Adapters that can be laid over ``model``, those that were trained on it first. One with an adapter of its own
    takes no second one here."""
    if model is None or model.is_adapter or model.fits is None:
        return []
    return sorted((c for c in listed if c.is_adapter and c.fits == model.fits),
                  key=lambda c: c.base_checkpoint_id != model.id)


def _choice(row: Checkpoint, run_name: str, base_id: str | None, is_asked_what_fits: bool) -> Choice:
    facts = adapters.facts_of(row) if is_asked_what_fits else None
    return Choice(id=row.id, run_id=row.run_id, run_name=run_name, stage=row.stage, step=row.step,
                  eval_loss=finite(row.eval_loss), continues_text=row.stage in queries.CONTINUES_TEXT,
                  is_adapter=row.stage == adapters.STAGE, fits=facts and facts.key, base_checkpoint_id=base_id)
