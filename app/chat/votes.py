"""Votes: which of two answers somebody prefers. Each is its user's own, as conversations are.

Each function works in the caller's transaction.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, func, select

from app.chat.vote_schemas import Answer, Standing, Standings, VoteCreate, plain
from app.core.db import Session, now
from app.core.errors import NotFound
from app.core.models import Checkpoint, Run, Vote, new_id
from app.core.rest import Paging, is_id, newest_first

#: verdicts that name a winner
DECIDED = ("a", "b")
#: of a normal distribution, 95 % lie within so many standard deviations
Z_95 = 1.959964
#: votes read at once
_BATCH = 200


def own(session: Session, user_id: str, paging: Paging, verdict: str | None = None) -> tuple[list[Vote], str | None]:
    """A page of a user's votes, the newest first."""
    query = select(Vote).where(Vote.user_id == user_id)
    if verdict is not None:
        query = query.where(Vote.verdict == verdict)
    return newest_first(session, query, Vote, paging)


def get(session: Session, user_id: str, id: str) -> Vote:
    """A vote of this user; raises ``NotFound``, also for another's."""
    query = select(Vote).where(Vote.id == id, Vote.user_id == user_id)
    row = session.scalar(query) if is_id(id) else None
    if row is None:
        raise NotFound("There is no vote of this id.", hint="It may have been deleted; look at the list.")
    return row


def create(session: Session, user_id: str, asked: VoteCreate) -> Vote:
    row = Vote(id=new_id(), user_id=user_id, created_at=now(session), verdict=asked.verdict, is_blind=asked.is_blind,
               messages=[plain(m) for m in asked.messages],
               answers=[_kept(session, answer) for answer in asked.answers])
    session.add(row)
    session.flush()
    return row


def remove(session: Session, user_id: str, id: str) -> None:
    session.delete(get(session, user_id, id))


def _kept(session: Session, answer: Answer) -> dict[str, Any]:
    """An answer with the name of its model, which may be gone when the vote is looked at."""
    ids = [id for id in (answer.checkpoint_id, answer.adapter_checkpoint_id) if id is not None]
    names = [name_of(session, id) for id in ids]
    name = None if None in names else " + ".join(names)
    return plain(answer) | {"model": "+".join(ids), "name": name}


def name_of(session: Session, checkpoint_id: str) -> str | None:
    """Such as ``First model, step 200``; None where it is not known."""
    found = session.execute(select(Run.name, Checkpoint.step).join(Run, Run.id == Checkpoint.run_id)
                            .where(Checkpoint.id == checkpoint_id)).first()
    return f"{found.name}, step {found.step}" if found else None


# -- who wins -----------------------------------------------------------------------------------------------------


def standings(session: Session, user_id: str) -> Standings:
    """Every pair of models that a user has voted on, the one with the most votes first. Reads no answer."""
    counted: dict[tuple[str, str], Counter] = {}
    names: dict[str, str | None] = {}
    of_one = total = decided = 0
    for a, b, name_a, name_b, verdict, count in session.execute(_counts(user_id)):
        total += count
        decided += count if verdict in DECIDED else 0
        names[a], names[b] = name_a or names.get(a), name_b or names.get(b)
        if a == b:
            of_one += count
            continue
        if a > b:  # one pair, whichever stood first
            a, b, verdict = b, a, {"a": "b", "b": "a"}.get(verdict, verdict)
        counted.setdefault((a, b), Counter())[verdict] += count
    items = [_standing(pair, counts, names) for pair, counts in counted.items()]
    items.sort(key=lambda s: (-s.votes, s.model_a, s.model_b))
    return Standings(votes=total, decided=decided, of_one_model=of_one, items=items,
                     base_checkpoint_id=_most_voted(session, user_id))


def _counts(user_id: str) -> Select[Any]:
    """``(model, model, name, name, verdict, how often)``."""
    seen = select(
        Vote.answers[0]["model"].as_string().label("a"), Vote.answers[1]["model"].as_string().label("b"),
        Vote.answers[0]["name"].as_string().label("name_a"), Vote.answers[1]["name"].as_string().label("name_b"),
        Vote.verdict.label("verdict")).where(Vote.user_id == user_id).subquery()
    return select(*seen.c, func.count()).group_by(*seen.c).order_by(*seen.c)


def _standing(pair: tuple[str, str], counts: Counter, names: dict[str, str | None]) -> Standing:
    """The one that won more often stands first."""
    (first, second), wins, losses = pair, counts["a"], counts["b"]
    if losses > wins:
        first, second, wins, losses = second, first, losses, wins
    low, high = wilson(wins, wins + losses)
    return Standing(model_a=first, model_b=second, name_a=names.get(first), name_b=names.get(second), wins_a=wins,
                    wins_b=losses, ties=counts["tie"], bad=counts["bad"], low=low, high=high,
                    share=wins / (wins + losses) if wins + losses else None)


def wilson(wins: int, votes: int) -> tuple[float | None, float | None]:
    """Wilson's score interval (1927) for a share: true with 95 % confidence also where votes are few."""
    if not votes:
        return None, None
    share, z2 = wins / votes, Z_95 ** 2
    middle = (share + z2 / (2 * votes)) / (1 + z2 / votes)
    half = Z_95 / (1 + z2 / votes) * math.sqrt(share * (1 - share) / votes + z2 / (4 * votes ** 2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _most_voted(session: Session, user_id: str) -> str | None:
    """The checkpoint that most of the decided votes are on and that can still be trained on."""
    seen: Counter = Counter()
    for place in (0, 1):
        ids = select(Vote.answers[place]["checkpoint_id"].as_string().label("id")).where(
            Vote.user_id == user_id, Vote.verdict.in_(DECIDED)).subquery()
        seen.update(dict(session.execute(select(ids.c.id, func.count()).group_by(ids.c.id)).all()))
    ranked = sorted(seen, key=lambda id: (-seen[id], id))
    ready = set(session.scalars(select(Checkpoint.id).where(
        Checkpoint.id.in_(ranked[:_BATCH]), Checkpoint.state == "ready")))
    return next((id for id in ranked if id in ready), None)


# -- pairs for DPO ------------------------------------------------------------------------------------------------


@dataclass
class Pairs:
    """``rows()`` of the layout ``dpo``, and what was left out of them, counted while they are read."""

    session: Session
    user_id: str
    made: int = 0
    left_out: Counter = field(default_factory=Counter)

    def rows(self) -> Iterator[dict[str, list[dict]]]:
        """Oldest vote first. Left out: ``equal`` answers, answers that ``text`` was continued with instead of being
        given, and where the better one is ``empty``."""
        query = select(Vote.messages, Vote.answers, Vote.verdict).where(
            Vote.user_id == self.user_id, Vote.verdict.in_(DECIDED)).order_by(Vote.created_at, Vote.id)
        for messages, answers, verdict in self.session.execute(query.execution_options(yield_per=_BATCH)):
            better, worse = answers if verdict == "a" else answers[::-1]
            if reason := _unusable(better, worse):
                self.left_out[reason] += 1
                continue
            self.made += 1
            yield {"chosen": messages + better["messages"], "rejected": messages + worse["messages"]}

    def lines(self) -> Iterator[str]:
        """The rows as the lines of a file."""
        return (json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())


def _unusable(better: dict, worse: dict) -> str | None:
    if "text" in (better["mode"], worse["mode"]):
        return "text"
    said, other = ([(m["content"].strip(), (m.get("reasoning_content") or "").strip()) for m in answer["messages"]]
                   for answer in (better, worse))
    if said == other:
        return "equal"
    return None if any(said[-1]) else "empty"
