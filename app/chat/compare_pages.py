"""Pages that compare models: side by side, through time, and what was voted. Included before ``app.chat.pages``, whose
``/chat/{id}`` would take their addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.auth.deps import User
from app.chat import travel, votes
from app.chat.pages import Choice, Choices, adapters_for, choices_for
from app.chat.vote_schemas import Verdict, VoteOut
from app.core.db import Session, reading
from app.core.models import Run
from app.core.rest import Paging, find
from app.rendering import page

router = APIRouter(include_in_schema=False)

#: columns side by side: more would be too narrow to read
FEWEST, MOST = 2, 4
VOTES_SHOWN = 30
#: in an address a plus is a space
_PLUS = re.compile(r"[+ ]")


@dataclass(frozen=True)
class Column:
    """Who answers in one column, maybe with another one's adapter over it."""

    model: Choice
    adapter: Choice | None = None

    @property
    def name(self) -> str:
        return " + ".join(f"{c.run_name}, {c.step:,}" for c in (self.model, self.adapter) if c is not None)


@router.get("/chat/compare")
def compare_page(request: Request, user: User, checkpoint: Annotated[list[str], Query(max_length=20)] = (),
                 blind: str = "") -> Response:
    """``checkpoint``: two to four of them, each ``ID`` or ``BASE+ADAPTER``. ``blind``: who is who is hidden."""
    with reading() as session:
        listed, columns, lacks = _columns(session, [c[:100] for c in checkpoint if c])
    is_blind = blind not in ("", "0") and len(columns) == FEWEST
    view = {"checkpoints": [choice.model_dump(mode="json") for choice in listed], "is_blind": is_blind,
            "user_id": user.user_id,
            "columns": [{"model": c.model.id, "adapter": c.adapter and c.adapter.id} for c in columns]}
    return page(request, "pages/chat_compare.html", columns=columns, lacks=lacks, is_blind=is_blind, view=view,
                most=MOST, groups=Choices(listed, chosen=None, is_substitute=False).by_run)


def _columns(session: Session, asked: list[str]) -> tuple[list[Choice], list[Column], int]:
    """Everybody who can be chosen, who was, and how many are not there (any more). Filled up to two columns: with
    what the first one is compared with best, the checkpoint before it."""
    pairs = [_PLUS.split(ids, maxsplit=1) for ids in asked][:MOST]
    wanted = [id for pair in pairs for id in pair]
    first = choices_for(session, wanted[0] if wanted else None)
    listed = {choice.id: choice for choice in first.listed}
    for id in wanted:
        if id not in listed:  # older than those that are offered
            listed |= {c.id: c for c in choices_for(session, id).listed}
    found: list[Column] = []
    lacks = 0
    for id, *over in pairs:
        model = listed.get(id)
        adapter = next((c for c in adapters_for(list(listed.values()), model) if [c.id] == over), None)
        lacks += model is None or (bool(over) and adapter is None)
        if model is not None:
            found.append(Column(model, adapter))
    if not found and first.chosen is not None:
        found.append(Column(first.chosen))
    if len(found) == 1:
        found.append(Column(_beside(list(listed.values()), found[0].model)))
    return list(listed.values()), found, lacks


def _beside(listed: list[Choice], model: Choice) -> Choice:
    """The checkpoint before ``model`` in its run, else what that started from, else the newest other, else itself."""
    earlier = [c for c in listed if c.run_id == model.run_id and c.step < model.step]
    base = [c for c in listed if c.id == model.base_checkpoint_id]
    return next(iter([*earlier, *base, *(c for c in listed if c.id != model.id), model]))


@router.get("/chat/votes")
def votes_page(request: Request, user: User, verdict: Annotated[str, Query(max_length=10)] = "",
               cursor: Annotated[str | None, Query(max_length=200)] = None) -> Response:
    known = verdict if verdict in Verdict.__args__ else None
    with reading() as session:
        rows, following = votes.own(session, user.user_id, Paging(cursor=cursor, limit=VOTES_SHOWN), known)
        shown = [VoteOut.of(row) for row in rows]
        standings = votes.standings(session, user.user_id)
    return page(request, "pages/chat_votes.html", votes=shown, standings=standings, verdict=known or "",
                next_cursor=following, cursor=cursor)


@router.get("/chat/travel")
def travel_page(request: Request, user: User, run: Annotated[str, Query(max_length=100)] = "") -> Response:
    """Without ``run`` the newest one that has checkpoints."""
    with reading() as session:
        offers = travel.offered(session)
        row = find(session, Run, run or (offers[0].id if offers else None))
        way = travel.way(session, row) if row is not None else None
    return page(request, "pages/chat_travel.html", offers=offers, way=way, is_missing=bool(run) and row is None,
                user_id=user.user_id)
