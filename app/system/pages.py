"""Pages of the studio itself: the system, the API's documentation, and every visual component on one page."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app.auth.deps import User
from app.core.db import reading
from app.core.models import JOB_STATES, RUN_STATES
from app.docs_page import paragraphs, schemas, sections
from app.i18n import gettext as _
from app.pipelines.view import Gate
from app.rendering import page
from app.system import service
from app.system.view import view

router = APIRouter(include_in_schema=False)
#: the order in which the API is described: what people come for first
TAGS = ("runs", "pipelines", "datasets", "tokenizers", "checkpoints", "jobs", "openai", "system", "auth")


@router.get("/system")
def system_page(request: Request, user: User, part: Annotated[str, Query(max_length=10)] = "") -> Response:
    """Machines, queue, jobs, disk, versions. ``part=live`` is what changes, for a page that is open."""
    with reading() as session:
        seen = view(session)
    seen.facts.update(service.broker_status())
    template = "pages/system_live.html" if part == "live" else "pages/system.html"
    return page(request, template, view=seen, facts=seen.facts)


@router.get("/api/docs")
def docs_page(request: Request, user: User) -> Response:
    """The API as a readable page, made from its OpenAPI description."""
    api = request.app.openapi()
    by_tag = sections(api, TAGS)
    examples = {f"{o.method} {o.path}": body.example for operations in by_tag.values() for o in operations
                for body in o.bodies if body.media_type == "application/json"}
    return page(request, "pages/docs.html", info=api["info"], about=paragraphs(api["info"]["description"]),
                sections=by_tag, examples=examples, schemas=schemas(api), labels=_tag_labels(),
                base_url=f"{request.url.scheme}://{request.url.netloc}")


def _tag_labels() -> dict[str, str]:
    return {"runs": _("Runs"), "pipelines": _("Pipelines"), "datasets": _("Datasets"), "tokenizers": _("Tokenizers"),
            "checkpoints": _("Checkpoints"), "jobs": _("Jobs"), "openai": _("Chat (OpenAI-compatible)"),
            "system": _("System"), "auth": _("Access"), "conversations": _("Conversations")}


@router.get("/patterns")
def patterns_page(request: Request, user: User) -> Response:
    """Every visual component in every state, for those who work on the pages."""
    def station(stage: str, state: str | None, **more: Any) -> dict[str, Any]:
        progress = {"step": 40, "total_steps": 100}
        run = None if state is None else {"id": state, "name": stage, "state": state, "progress": progress}
        return {"stage": stage, "title": None, "run": run, "gates": [], "earlier_tries": 0, "before": None,
                "teacher": None} | more

    open_gate, shut_gate = Gate("eval_loss", 2.5, 1.25, True), Gate("reward_accuracy", 0.9, 0.85, True)
    stations = [station("tokenizer", "completed"), station("pretrain", "completed", gates=[open_gate]),
                station("dpo", "completed", gates=[shut_gate]), station("sft", "failed", earlier_tries=2),
                station("distill", None, title="Student: distillation", before=-1, teacher=1,
                        gates=[Gate("eval_loss", 2.5, None, False)])]
    return page(request, "pages/patterns.html", run_states=RUN_STATES, job_states=JOB_STATES,
                dataset_states=("importing", "ready", "failed"), stations=stations)
