"""Checkpoints as the API shows them."""

from __future__ import annotations

from pydantic import BaseModel

from app.checkpoints.sizes import export_bytes
from app.core.models import Checkpoint
from app.core.rest import rfc3339
from minimind.events import finite


class CheckpointOut(BaseModel):
    """A saved state of a run; ``path`` is its directory on the machine that trains. People know it by the run's name
    and the step. ``state`` is ``ready``, or ``corrupt`` with its ``problem`` as a sentence: such a one cannot be used.
    ``save_s``: how long training waited for it, null where that is not known. ``export_bytes``: about how large each
    export of it would be, by format (``pth``, ``hf:float32``, ``gguf:q8_0``)."""

    id: str
    run_id: str
    run_name: str
    stage: str
    attempt: int
    step: int
    tokens: int
    bytes: int
    loss: float | None
    eval_loss: float | None
    path: str
    tokenizer_fingerprint: str | None
    state: str
    problem: str | None
    save_s: float | None
    export_bytes: dict[str, int]
    created_at: str

    @classmethod
    def of(cls, row: Checkpoint) -> CheckpointOut:
        plain = {name: getattr(row, name) for name in (
            "id", "run_id", "stage", "attempt", "step", "tokens", "bytes", "path", "tokenizer_fingerprint", "state",
            "problem", "save_s")}
        return cls(**plain, run_name=row.run.name, loss=finite(row.loss), eval_loss=finite(row.eval_loss),
                   export_bytes=export_bytes(row) if row.state == "ready" else {},
                   created_at=rfc3339(row.created_at))
