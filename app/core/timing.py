"""How long the studio waits for what: leases, heartbeats, fences, polls. Environment variables ``STUDIO_...``, seconds.

Nearly everything follows from the lease: a host that wants to hear of a dead one sooner sets ``STUDIO_LEASE_S`` alone
(tests: 2), and the rest shrinks with it down to what processes need to start and a busy database to answer. All
processes of an installation must be told the same.
"""

from __future__ import annotations

import functools

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Timing(BaseSettings):
    """One process's times; ``get_timing()`` gives the one instance."""

    model_config = SettingsConfigDict(env_prefix="STUDIO_", extra="ignore")

    #: a holder that does not renew its lease for this long is looked into
    lease_s: float = Field(60.0, ge=1.0, le=3600.0)
    #: how often a holder renews it (a sixth of the lease)
    renew_every_s: float = Field(0.0, ge=0.0)
    #: how often a worker says that its host lives, and what it has (a twelfth)
    heartbeat_every_s: float = Field(0.0, ge=0.0)
    #: a host that was not heard of for this long counts as away (half)
    host_silent_s: float = Field(0.0, ge=0.0)
    #: a living runner that lost its lease may come back within this time (half)
    come_back_s: float = Field(0.0, ge=0.0)
    #: runs of another host that is silent are given up this long after their lease (twice the lease)
    host_grace_s: float = Field(0.0, ge=0.0)
    #: a claim whose runner does not even exist after this long was left by a claimer that died (a quarter)
    runner_start_s: float = Field(0.0, ge=0.0)

    #: how often a worker looks for work and for what has died, without having been rung
    poll_s: float = Field(2.0, gt=0.0)
    #: how often a runner reads its row (a ring is quicker), and stores what its trainer has said
    look_every_s: float = Field(1.5, gt=0.0)
    ingest_every_s: float = Field(1.0, gt=0.0)
    #: how often the web process looks for events of which no bell has told
    live_poll_s: float = Field(1.0, gt=0.0)

    #: a pause that is not saved after this long is given up; the run goes on
    pause_limit_s: float = Field(600.0, gt=0.0)
    #: a run that makes no progress for this long hangs: at least so long in a step (or ``stall_step_factor`` times
    #: the median step), in reading and tokenizing data, in building and compiling the model, in saving
    stall_step_s: float = Field(600.0, gt=0.0)
    stall_step_factor: float = Field(50.0, gt=1.0)
    stall_data_s: float = Field(3600.0, gt=0.0)
    stall_compile_s: float = Field(1800.0, gt=0.0)
    stall_save_s: float = Field(1200.0, gt=0.0)

    #: wait before the next attempt after one that made no progress; four times as long each time, at most the second
    retry_first_s: float = Field(3.0, ge=0.0)
    retry_limit_s: float = Field(600.0, ge=0.0)

    @model_validator(mode="after")
    def _follow_the_lease(self) -> Timing:
        lease = self.lease_s
        for name, value in (("renew_every_s", lease / 6), ("heartbeat_every_s", max(0.5, lease / 12)),
                            ("host_silent_s", max(3.0, lease / 2)), ("come_back_s", lease / 2),
                            ("host_grace_s", 2 * lease), ("runner_start_s", max(5.0, lease / 4))):
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if self.renew_every_s > lease / 2:
            raise ValueError(f"STUDIO_RENEW_EVERY_S = {self.renew_every_s:g} must be at most half of STUDIO_LEASE_S = "
                             f"{lease:g}: one lost renewal must not lose the lease")
        return self


@functools.cache
def get_timing() -> Timing:
    """The times of this process, read once; tests call ``get_timing.cache_clear()``."""
    return Timing()
