"""Datasets as the API reads and shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.core.models import Dataset
from app.core.rest import Name, RequestBody, rfc3339
from minimind.data import foreign, starter
from minimind.data.layouts import LAYOUTS

#: our own, and those that are converted at import
Layout = Literal[("auto", *dict.fromkeys((*LAYOUTS, *foreign.LAYOUTS)))]


class StarterSource(RequestBody):
    """The starter corpus, written by a seeded generator; its size follows from ``minutes`` of training."""

    kind: Literal["starter"]
    part: Literal[starter.PARTS] = "text"
    minutes: Annotated[float, Field(gt=0, le=24 * 60, allow_inf_nan=False)] = 5
    languages: Annotated[list[Literal[tuple(starter.LANGUAGES)]], Field(min_length=1, max_length=3)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] = 42


class DatasetCreate(RequestBody):
    """A dataset that the server makes; a file is sent as multipart instead."""

    name: Name | None = None
    source: StarterSource


class VotesSource(RequestBody):
    """Your own votes that name a better answer, as preference pairs."""

    kind: Literal["votes"]


class VotesCreate(RequestBody):
    """A dataset of the layout dpo."""

    name: Name | None = None
    source: VotesSource


class UploadFields(RequestBody):
    """What may stand beside ``file`` in the multipart body. ``mapping``: JSON text, see docs/data.md."""

    name: Name | None = None
    layout: Layout = "auto"
    mapping: Annotated[str, Field(max_length=16 << 10)] | None = None


class InspectFields(RequestBody):
    """``is_partial``: the file is only the beginning of one (not of a zip, whose list of files is at its end)."""

    layout: Layout = "auto"
    mapping: Annotated[str, Field(max_length=16 << 10)] | None = None
    is_partial: bool = False


class InspectedRow(BaseModel):
    line: int
    row: dict[str, Any]
    is_cut: bool


class Inspection(BaseModel):
    """What was recognised in a file, before it is imported.

    ``layout``: as its authors wrote it; ``canonical``: what its rows become, the layout of the dataset; ``columns``:
    of its first rows; ``mapping``: as understood, to be corrected and sent with the upload; ``is_certain``: false where
    it is a proposal that an import would not make by itself; ``counted``: its rows, null where not all were read;
    ``placeholders``: words such as ``{{name}}`` that its rows hold.
    """

    layout: str | None
    canonical: str | None
    container: str | None
    encoding: str | None
    columns: list[str]
    mapping: dict[str, Any]
    is_certain: bool
    rows: list[InspectedRow]
    counted: int | None
    placeholders: list[str]
    problems: list[dict[str, Any]]
    warnings: list[str]


class DatasetOut(BaseModel):
    """``rows``, ``bytes`` and ``warnings`` are known once ``state`` is ready, ``error`` once it is failed."""

    id: str
    name: str
    layout: str
    state: Literal["importing", "ready", "failed"]
    source: dict[str, Any]
    rows: int | None
    bytes: int | None
    tokens: int | None
    sha256: str | None
    error: dict[str, Any] | None
    warnings: list[str]
    job_id: str | None
    created_at: str

    @classmethod
    def of(cls, row: Dataset) -> DatasetOut:
        plain = {name: getattr(row, name) for name in (
            "id", "name", "layout", "state", "source", "rows", "bytes", "tokens", "sha256", "warnings", "job_id")}
        error = None if row.error is None else {"message": "", "line": None, "field": None, "hint": None} | row.error
        return cls(**plain, error=error, created_at=rfc3339(row.created_at))


class PreviewToken(BaseModel):
    """``is_target``: it is learnt. ``is_partial``: a character begins in it that a later token ends and shows; the
    texts of a row's tokens, joined, are its text."""

    text: str
    id: int
    is_target: bool
    is_special: bool
    is_partial: bool


class PreviewRow(BaseModel):
    """``line`` counts from 1; long texts are cut (``is_cut``).

    ``tokens`` is null unless a tokenizer was named; of a preference pair it is the chosen side. ``tokens_cut``: there
    are more than shown (the first 2,000 of each side; none of a dialogue of more than 200,000 characters).
    """

    line: int
    row: dict[str, Any]
    is_cut: bool
    tokens: list[PreviewToken] | None = None
    rejected_tokens: list[PreviewToken] | None = None
    tokens_cut: bool = False


class TokenCount(BaseModel):
    """Tokens of one pass over the data; ``is_exact`` is false where a part was counted and scaled up."""

    tokenizer_id: str
    tokens: int
    rows: int
    is_exact: bool
