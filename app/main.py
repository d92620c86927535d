"""The web process: ``uvicorn app.main:create_app --factory`` (``./studio web`` does it).

It answers quickly or not at all: long work is a row that a worker takes up. It never loads torch.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from fastapi import APIRouter, FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from app import live, web
from app.auth import routes as auth_routes
from app.auth.guard import Guard
from app.chat import routes as chat_routes
from app.chat import tool_routes, travel_routes, vote_routes
from app.checkpoints import export_routes, import_routes
from app.checkpoints import routes as checkpoints_routes
from app.compression import Compression
from app.core import answers, logging
from app.datasets import format_check, teacher_routes
from app.datasets import routes as datasets_routes
from app.datasets.service import sweep_uploads
from app.jobs import routes as jobs_routes
from app.live_hub import Hub
from app.openai import log_routes
from app.openai import routes as openai_routes
from app.pipelines import routes as pipelines_routes
from app.runs import routes as runs_routes
from app.system import routes as system_routes
from app.system.service import VERSION
from app.tokenizers import routes as tokenizers_routes

DESCRIPTION = """Train small language models from nothing, watch them learn, talk to them.

Send a session cookie or `Authorization: Bearer TOKEN` (`./studio token create NAME` makes one). Every POST may carry
an `Idempotency-Key`. Errors are `{"error": {message, code, field?, hint?, problems?}}`. Lists are
`{items, next_cursor}`. Times are RFC 3339 in UTC. `/api/v1/live` is a websocket that tells what happens."""


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    hub = app.state.hub = Hub()
    hub.start()
    await run_in_threadpool(_tidy)
    yield
    await hub.stop()
    for name in ("inference", "request_log"):
        if (used := getattr(app.state, name, None)) is not None:
            setattr(app.state, name, None)
            await used.close()


def _tidy() -> None:
    try:
        sweep_uploads()
    except (SQLAlchemyError, OSError) as error:  # of no use to anybody, so of no harm either
        logging.get_logger(__name__).warning("uploads_not_swept", error=str(error).splitlines()[0])


def create_app(*, own_process: bool = True) -> FastAPI:
    """The whole application; it looks at the settings of this process with each request.

    ``own_process``: take over logging too (a test that makes several applications does without).
    """
    if own_process:
        logging.setup("web")
    app = FastAPI(title="MiniMind Studio", version=VERSION, description=DESCRIPTION, lifespan=_lifespan,
                  openapi_url="/api/v1/openapi.json", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.sockets = Counter()
    answers.install(app)
    api = APIRouter(prefix="/api/v1")
    for feature in (system_routes, runs_routes, pipelines_routes, datasets_routes, format_check, teacher_routes,
                    tokenizers_routes, checkpoints_routes, export_routes, import_routes, chat_routes, vote_routes,
                    travel_routes, tool_routes, log_routes, jobs_routes, auth_routes, live):
        api.include_router(feature.router)
    app.include_router(openai_routes.router)  # first: routes are tried in turn, and it is asked the most often
    app.include_router(api)
    app.include_router(system_routes.root_router)
    web.install(app)
    app.add_middleware(Compression)
    app.add_middleware(Guard, studio=app)
    return app
