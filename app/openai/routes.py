"""``/v1``: the part of OpenAI's API that a model of one's own can serve."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from app.auth.deps import User, require_user
from app.chat.service import InferenceClient
from app.core.errors import AppError
from app.core.settings import get_settings
from app.openai import service
from app.openai.call import Call
from app.openai.chat import ChatCompletion
from app.openai.completion import Completion
from app.openai.schemas import ChatRequest, CompletionRequest, parse
from app.openai.text import TextCompletion

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[Depends(require_user)])


async def inference_client(request: Request) -> InferenceClient:
    """The web process's one client, made at its first use."""
    state = request.app.state
    if getattr(state, "inference", None) is None:
        state.inference = InferenceClient(get_settings().broker_url, get_settings().redis_prefix)
    return state.inference


Client = Annotated[InferenceClient, Depends(inference_client)]


@router.get("/models")
def list_models() -> dict[str, Any]:
    return {"object": "list", "data": service.list_models()}


@router.get("/models/{model_id}")
def get_model(model_id: str) -> dict[str, Any]:
    return service.get_model(model_id)


@router.post("/chat/completions")
async def chat_completions(request: Request, user: User, client: Client) -> Response:
    """The next turn of a conversation, streamed or whole. OpenAI's fields, and min_p, top_k, repetition_penalty,
    ignore_eos, continue_final_message and chat_template_kwargs (open_thinking) as other servers of open models know
    them; unknown ones are ignored."""
    return await Call(request, user).answer(_chat, client)


@router.post("/completions")
async def completions(request: Request, user: User, client: Client) -> Response:
    """A text, several, or their token ids continued with nothing added. With echo and logprobs, the probability of
    every token of the prompt too."""
    return await Call(request, user).answer(_text, client)


def _chat(body: Any, client: InferenceClient) -> Completion:
    wanted = parse(ChatRequest, body)
    model = service.find_model(wanted.model)
    thinks = service.opens_thinking(model.checkpoint, wanted.open_thinking)
    return ChatCompletion(client, wanted, model, thinks=thinks)


def _text(body: Any, client: InferenceClient) -> Completion:
    wanted = parse(CompletionRequest, body)
    return TextCompletion(client, wanted, service.find_model(wanted.model))


@router.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
def unknown(path: str) -> Response:
    raise AppError(404, "unknown_url", f"/v1/{path} does not exist on this server. It serves /v1/models, "
                                       "/v1/models/ID, /v1/chat/completions and /v1/completions.")
