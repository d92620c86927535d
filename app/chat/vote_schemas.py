"""Votes as the API reads and shows them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from app.chat.messages import CheckpointId, Said
from app.chat.schemas import SamplingChoice
from app.core.models import Vote
from app.core.rest import RequestBody, rfc3339

MAX_TURNS = 200
#: prompt and answers of one vote as JSON in UTF-8
MAX_VOTE_BYTES = 1 << 20

#: which answer is better, the first (a) or the second (b); or both are as good, or both are bad
Verdict = Literal["a", "b", "tie", "bad"]


class Turn(RequestBody):
    """A message as docs/data.md knows it: what a model thought stands apart from what it said."""

    role: Literal["system", "user", "assistant"]
    content: Said
    reasoning_content: Said | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Turn:
        if self.role == "user" and not self.content.strip():
            raise ValueError("a message of the user needs a text")
        if self.role != "assistant" and self.reasoning_content is not None:
            raise ValueError("only an assistant has reasoning_content")
        return self


def _prompt(messages: list[Turn]) -> list[Turn]:
    if messages[-1].role != "user":
        raise ValueError("a prompt ends with a message of the user")
    if any(m.role == "system" for m in messages[1:]):
        raise ValueError("only the first message may be the system's")
    return messages


def _answer(messages: list[Turn]) -> list[Turn]:
    """Assistant, user, assistant, ...: whoever votes on a later turn compares everything behind the prompt."""
    wanted = ["assistant", "user"] * len(messages)
    if len(messages) % 2 == 0 or [m.role for m in messages] != wanted[:len(messages)]:
        raise ValueError("an answer is a message of the assistant, and maybe further turns that end with one")
    return messages


class Answer(RequestBody):
    """What one of the two said behind the prompt. ``mode`` text: it went on with the prompt instead of answering."""

    checkpoint_id: CheckpointId
    adapter_checkpoint_id: CheckpointId | None = None
    sampling: SamplingChoice = SamplingChoice()
    mode: Literal["chat", "text"] = "chat"
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_TURNS), AfterValidator(_answer)]


class VoteCreate(RequestBody):
    """Two answers to one prompt, and which one is better."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_TURNS), AfterValidator(_prompt)]
    answers: Annotated[list[Answer], Field(min_length=2, max_length=2)]
    verdict: Verdict
    is_blind: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _one_prompt(self) -> VoteCreate:
        first, second = ([m.content for m in a.messages if m.role == "user"] for a in self.answers)
        if first != second:
            raise ValueError("answers: both are asked the same, in later turns too")
        if len(json.dumps(self.model_dump(mode="json"), ensure_ascii=False).encode()) > MAX_VOTE_BYTES:
            raise ValueError(f"a vote holds at most {MAX_VOTE_BYTES >> 20} MiB; begin a new comparison")
        return self


class AnswerOut(Answer):
    """``model``: as a request to /v1 names it. ``name``: what it was called when the vote was given; null: it was gone
    by then."""

    model: str
    name: str | None


class VoteOut(BaseModel):
    id: str
    created_at: str
    messages: list[Turn]
    answers: list[AnswerOut]
    verdict: Verdict
    is_blind: bool

    @classmethod
    def of(cls, row: Vote) -> VoteOut:
        return cls(id=row.id, created_at=rfc3339(row.created_at), verdict=row.verdict, is_blind=row.is_blind,
                   messages=[Turn(**m) for m in row.messages], answers=[AnswerOut(**a) for a in row.answers])


class Standing(BaseModel):
    """How two models did against each other. ``wins_a`` of ``model_a``; ``share``: of the votes that name a winner;
    ``low`` and ``high``: between them lies the true share with 95 % confidence, null without such votes."""

    model_a: str
    model_b: str
    name_a: str | None
    name_b: str | None
    wins_a: int
    wins_b: int
    ties: int
    bad: int
    share: float | None
    low: float | None
    high: float | None

    @property
    def votes(self) -> int:
        return self.wins_a + self.wins_b + self.ties + self.bad


class Standings(BaseModel):
    """``decided``: votes that name a winner, out of which pairs for DPO can be made; ``of_one_model``: among all
    ``votes`` those between two answers of one model; ``base_checkpoint_id``: who was voted on most and is still
    there."""

    votes: int
    decided: int
    of_one_model: int
    base_checkpoint_id: str | None
    items: list[Standing]


def plain(value: BaseModel) -> dict[str, Any]:
    """As the database keeps it: what is null is left out."""
    return value.model_dump(mode="json", exclude_none=True)
