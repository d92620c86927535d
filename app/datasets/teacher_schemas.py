"""What is asked of a teacher, as the API reads it, and what it shows of keys: that there are some."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, SecretStr

from app.core.rest import Name, RequestBody, Text
from minimind.data import starter

Url = Annotated[str, Field(min_length=1, max_length=2000)]
Id = Annotated[str, Field(min_length=1, max_length=64)]


class StarterQuestions(RequestBody):
    """Questions about the starter corpus's world; the same three numbers as its other parts talk about one world."""

    minutes: Annotated[float, Field(gt=0, le=24 * 60, allow_inf_nan=False)] = 5
    languages: Annotated[list[Literal[tuple(starter.LANGUAGES)]], Field(min_length=1, max_length=3)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] = 42


class EndpointTeacher(RequestBody):
    """An OpenAI-compatible server. Its key, where it wants one, is kept with PUT /secrets/teacher beforehand."""

    url: Url
    model: Name


class TeacherSource(RequestBody):
    """Answers of a teacher: of ``checkpoint_id`` or ``endpoint``, to the questions of ``questions_dataset_id`` or
    ``starter`` (neither: the starter's, by default).

    ``temperature`` null: 0.7 for a checkpoint, the server's own for an endpoint. ``max_tokens``: an answer that is
    cut off there is left out. ``limit``: only the first questions. ``keep_system``: the system prompt becomes part
    of the rows.
    """

    kind: Literal["teacher"]
    questions_dataset_id: Id | None = None
    starter: StarterQuestions | None = None
    checkpoint_id: Id | None = None
    endpoint: EndpointTeacher | None = None
    system: Text = ""
    keep_system: bool = False
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1024
    limit: Annotated[int, Field(strict=True, ge=1, le=2**53)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] | None = None
    concurrency: Annotated[int, Field(strict=True, ge=1, le=32)] = 4


class TeacherCreate(RequestBody):
    """A dataset that a teacher writes."""

    name: Name | None = None
    source: TeacherSource


def _printable(key: SecretStr) -> SecretStr:
    text = key.get_secret_value().strip()
    if not text or len(text) > 4096 or not (text.isascii() and text.isprintable()):
        raise ValueError("must be 1 to 4096 printable ASCII characters")
    return SecretStr(text)


class KeyIn(RequestBody):
    """A key and the server that it is for; it is sent to no other one, and never shown again."""

    url: Url
    key: Annotated[SecretStr, AfterValidator(_printable)]


class KeyOut(BaseModel):
    """``url``: scheme, host and port of the server that a key of yours is for."""

    url: str
    kept_at: str


class KeyList(BaseModel):
    items: list[KeyOut]
