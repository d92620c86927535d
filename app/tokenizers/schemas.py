"""Tokenizers as the API reads and shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.core.models import TokenizerRow
from app.core.rest import Name, RequestBody, rfc3339
from minimind.tokenizer import SMALLEST_VOCABULARY


class TokenizerTrain(RequestBody):
    """A vocabulary learnt from a dataset; existing files are sent as multipart instead."""

    name: Name | None = None
    dataset_id: str
    vocab_size: Annotated[int, Field(strict=True, ge=SMALLEST_VOCABULARY, le=200_000)] = 2048


class TokenizerOut(BaseModel):
    id: str
    name: str
    state: Literal["training", "ready", "failed"]
    vocab_size: int | None
    fingerprint: str | None
    source: dict[str, Any]
    error: dict[str, Any] | None
    job_id: str | None
    created_at: str

    @classmethod
    def of(cls, row: TokenizerRow) -> TokenizerOut:
        plain = {name: getattr(row, name) for name in (
            "id", "name", "state", "vocab_size", "fingerprint", "source", "error", "job_id")}
        return cls(**plain, created_at=rfc3339(row.created_at))
