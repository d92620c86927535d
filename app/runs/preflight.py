"""What a run will need, said before it is started; and a refusal where its checkpoints can never be saved."""

from __future__ import annotations

import shutil
from typing import Any

from pydantic import BaseModel
from sqlalchemy import select

from app.core.db import Session
from app.core.errors import DiskFull, Invalid
from app.core.models import Host
from app.core.settings import get_settings
from app.runs.checks import Checked, check
from app.runs.schemas import RunCreate
from minimind.preflight import Preflight, preflight

#: two checkpoints must fit: the one being written and the one it will replace
CHECKPOINTS_AT_ONCE = 2
SPARE_BYTES = 64 << 20


class PreflightRequest(RunCreate):
    """As for ``POST /runs``."""

    measure: bool = False


class PreflightOut(BaseModel):
    """Numbers computed from the request alone; null where they depend on what is not known yet.

    ``memory`` is bytes on each rank; ``time_s`` is known only to a measured preflight.
    """

    stage: str
    preset: str | None
    model: dict[str, Any] | None
    parameters: int | None
    active_parameters: int | None
    trainable_parameters: int | None
    teacher_parameters: int | None
    sequences_per_example: int
    tokens_per_step: int | None
    total_steps: int | None
    total_tokens: int | None
    flops_per_token: float | None
    total_flops: float | None
    teacher_flops: float | None
    reference_flops: float | None
    memory: dict[str, int]
    memory_bytes: int | None
    checkpoint_bytes: int | None
    disk_bytes: int | None
    disk_free_bytes: int
    time_s: float | None
    world_size: int
    warnings: list[str]


def answer(session: Session, asked: PreflightRequest) -> PreflightOut:
    """Compute what ``asked`` would need; raises ``Invalid`` as the run itself would."""
    if asked.measure:
        raise Invalid("A measured preflight is not part of this version.", field="measure",
                      hint="Leave measure out: everything except the time is computed.")
    checked = check(session, stage=asked.stage, config=asked.config, dataset_id=asked.dataset_id,
                    base_checkpoint_id=asked.base_checkpoint_id, teacher_checkpoint_id=asked.teacher_checkpoint_id,
                    devices=asked.devices, nodes=asked.nodes, problems=asked.problems)
    needs = estimate(checked, list(session.scalars(select(Host))))
    return PreflightOut(**needs.as_dict(), disk_free_bytes=_free_bytes(), time_s=_seconds(checked),
                        world_size=checked.world_size)


def estimate(checked: Checked, hosts: list[Host] | None = None) -> Preflight:
    """``minimind.preflight`` fed with what the database knows."""
    dataset, hosts = checked.dataset, hosts or []
    base_model, teacher_model = ((m or {}).get("model") for m in (checked.base_manifest, checked.teacher_manifest))
    return preflight(
        checked.config, world_size=checked.world_size, has_gpu=_uses_gpu(checked.devices, hosts),
        cores=max((h.cpu_slots for h in hosts), default=None), own_data=dataset is not None,
        dataset_tokens=dataset.tokens if dataset else None,
        tokenizer_vocab=checked.tokenizer.vocab_size if checked.tokenizer else None, base_model=base_model,
        teacher_model=teacher_model)


def _uses_gpu(devices: Any, hosts: list[Host]) -> bool:
    if devices == "auto":
        return any(h.devices for h in hosts)
    kind = devices["kind"] if isinstance(devices, dict) else devices[0].partition(":")[0]
    return kind == "cuda"


def _seconds(checked: Checked) -> float | None:
    """With a budget in minutes the time of the training steps is what was asked for; else it must be measured."""
    minutes = getattr(checked.config, "max_minutes", None)
    return None if minutes is None else minutes * 60.0


def refuse_if_disk_is_too_small(checked: Checked) -> None:
    """Raises ``DiskFull`` where not even two checkpoints of this run fit on the disk as it is now."""
    needed = CHECKPOINTS_AT_ONCE * (estimate(checked).checkpoint_bytes or 0) + SPARE_BYTES
    free = _free_bytes()
    if free < needed:
        raise DiskFull(f"This run needs at least {needed / 1e9:.1f} GB of disk for its checkpoints and "
                       f"{free / 1e9:.1f} GB are free.",
                       hint="Free some space in the data directory, or train a smaller model.")


def _free_bytes() -> int:
    directory = get_settings().data_dir
    directory.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(directory).free
