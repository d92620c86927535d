"""The database schema: the only truth of the studio.

Times are unix seconds (float) from the *database's* clock (``unix_now()``), so that hosts with wrong
clocks cannot expire each other's leases; the API turns them into RFC 3339. Ids are made by us
(``new_id``), never by a client.
"""

from __future__ import annotations

from app.core.models.accounts import ApiToken, IdempotentAnswer, Installation, LoginSession, User
from app.core.models.base import (
    DESIRED,
    JOB_STATES,
    LEASED_STATES,
    LOCAL_ADMIN_ID,
    PIPELINE_STATES,
    ROLES,
    RUN_STATES,
    TERMINAL_STATES,
    Base,
    new_id,
    unix_now,
)
from app.core.models.files import Checkpoint, Dataset, TokenizerRow
from app.core.models.jobs import Job
from app.core.models.machines import DeviceLease, Host
from app.core.models.runs import Attempt, Event, MetricChunk, Pipeline, Run, RunMove
from app.core.models.talks import ChatPreset, Conversation, RequestLog, Vote

__all__ = ["ApiToken", "Attempt", "Base", "ChatPreset", "Checkpoint", "Conversation", "DESIRED", "Dataset",
           "DeviceLease", "Event", "Host", "IdempotentAnswer", "Installation", "JOB_STATES", "Job", "LEASED_STATES",
           "LOCAL_ADMIN_ID", "LoginSession", "MetricChunk", "PIPELINE_STATES", "Pipeline", "ROLES", "RUN_STATES",
           "RequestLog", "Run", "RunMove", "TERMINAL_STATES", "TokenizerRow", "User", "Vote", "new_id", "unix_now"]
