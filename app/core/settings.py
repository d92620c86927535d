"""What this process was told about its place: environment variables with the prefix ``STUDIO_``.

The supervisor passes them to its children; a role started alone (``./studio worker``) reads them from its
own environment. Secrets come through the environment, never through ``argv``, which other users can read.
"""

from __future__ import annotations

import functools
import re
import socket
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def _default_host_id() -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64] or "localhost"


class Settings(BaseSettings):
    """One process's settings; ``get_settings()`` gives the one instance."""

    model_config = SettingsConfigDict(env_prefix="STUDIO_", extra="ignore")

    #: everything of this installation lies here (D in the docs)
    data_dir: Path = Field(Path("data"), validate_default=True)
    #: empty = SQLite in ``data_dir``
    database_url: str = ""
    #: empty = the embedded broker's socket in ``data_dir``; the form that redis-py reads
    redis_url: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    #: opens local-admin sessions until this start stops; empty = none
    login_token: str = ""
    #: in front of every key and channel, so that installations can share one server
    redis_prefix: str = "studio"
    #: names this machine in leases
    host_id: str = Field(default_factory=_default_host_id, min_length=1, max_length=64)
    #: further names under which browsers may reach the web process, comma-separated
    allowed_hosts: str = ""
    #: browsers come over https through a proxy that ends TLS: session cookies are marked Secure
    behind_tls: bool = False
    #: directories that a server-path import may read, separated as in PATH; empty = none
    import_roots: str = ""
    #: answers of ``/v1`` that one user may have running or waiting at a time; 0 = any number
    api_concurrency: int = Field(128, ge=0)
    #: requests to ``/v1`` that one user may send within a minute; 0 = any number
    api_requests_per_minute: int = Field(0, ge=0)
    #: the request log keeps what was asked and answered too
    log_request_content: bool = False
    #: the worker pauses and requeues its runs when it is asked to end (``./studio up``, ``worker --drain``)
    drain: bool = False

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @property
    def sqlalchemy_url(self) -> str:
        """The database as SQLAlchemy wants it named."""
        return self.database_url or f"sqlite:///{self.data_dir / 'studio.db'}"

    @property
    def broker_url(self) -> str:
        """The Redis-protocol server as redis-py wants it named."""
        return self.redis_url or f"unix://{self.data_dir / 'broker' / 'broker.sock'}"

    @property
    def celery_broker_url(self) -> str:
        """The same server as Celery wants it named (``redis+socket`` for a unix socket)."""
        url = self.broker_url
        return "redis+socket://" + url.removeprefix("unix://") if url.startswith("unix://") else url

    @property
    def runs_dir(self) -> Path:
        return self.data_dir / "runs"

    @property
    def datasets_dir(self) -> Path:
        return self.data_dir / "datasets"

    @property
    def tokenizers_dir(self) -> Path:
        return self.data_dir / "tokenizers"

    @property
    def exports_dir(self) -> Path:
        return self.data_dir / "exports"

    @property
    def uploads_dir(self) -> Path:
        return self.data_dir / "uploads"

    @property
    def cache_dir(self) -> Path:
        return self.data_dir / "cache"

    @property
    def logs_dir(self) -> Path:
        return self.data_dir / "logs"


@functools.cache
def get_settings() -> Settings:
    """The settings of this process, read once; tests call ``get_settings.cache_clear()``."""
    return Settings()
