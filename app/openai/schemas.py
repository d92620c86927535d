"""What OpenAI clients send and read. Unknown fields are ignored; null means "not given"."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app.core.errors import AppError, BadRequest
from app.core.inference import Sampling

Body = TypeVar("Body", bound=BaseModel)

#: OpenAI's default for plain completions
COMPLETION_TOKENS = 16


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        """Clients send null for what they leave open: the default then holds."""
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values


class Message(_Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = ""
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        texts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") not in ("text", "input_text"):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise ValueError(f"content parts of type {kind!r} are not supported; send text parts")
            if not isinstance(part.get("text"), str):
                raise ValueError("a text part needs a string in its field text")
            texts.append(part["text"])
        return "".join(texts)

    @field_validator("content")
    @classmethod
    def _unicode(cls, content: str) -> str:
        try:
            content.encode()
        except UnicodeEncodeError:
            raise ValueError("content holds half of a surrogate pair, which is not Unicode text") from None
        return content

    def for_template(self) -> dict[str, str]:
        """As the chat template knows it: ``developer`` is a newer name of ``system``."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class StreamOptions(_Lenient):
    include_usage: bool = False


class SamplingFields(_Lenient):
    """Fields that chat and plain completions share."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    temperature: float = Field(0.7, ge=0, le=2)
    top_p: float = Field(0.92, ge=0, le=1)
    top_k: int = Field(0, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    stop: list[Annotated[str, Field(max_length=1000)]] = Field(default=[], max_length=16)
    seed: int | None = None
    n: int = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @field_validator("n")
    @classmethod
    def _one_choice(cls, n: int) -> int:
        if n != 1:
            raise ValueError(f"n is {n}; this server makes one choice per request: send n = 1 or leave it out")
        return n

    def sampling(self) -> Sampling:
        # OpenAI allows top_p 0, which leaves the likeliest token alone: greedy
        greedy = self.top_p == 0
        return Sampling(temperature=0 if greedy else self.temperature, top_p=1 if greedy else self.top_p,
                        top_k=self.top_k, max_tokens=self.max_tokens, stop=[s for s in self.stop if s],
                        seed=self.seed)


class ChatRequest(SamplingFields):
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Any] = []
    tool_choice: Any = "auto"
    logprobs: bool = False
    response_format: dict[str, Any] = {"type": "text"}
    chat_template_kwargs: dict[str, Any] = {}

    @model_validator(mode="after")
    def _supported(self) -> ChatRequest:
        # These change what an answer means: better refused than silently left out.
        if self.tools and self.tool_choice != "none":
            raise ValueError("tools: this server does not call tools yet; leave the field out")
        if self.logprobs:
            raise ValueError("logprobs: this server does not report log probabilities yet; leave the field out")
        if self.response_format.get("type", "text") != "text":
            raise ValueError("response_format: this server answers in plain text only; leave the field out")
        return self

    def sampling(self) -> Sampling:
        sampling = super().sampling()
        limit = self.max_completion_tokens or self.max_tokens
        return sampling.model_copy(update={"max_tokens": limit})

    def open_thinking(self) -> bool:
        """MiniMind's and Qwen3's switch for a visible train of thought."""
        switches = self.chat_template_kwargs
        return bool(switches.get("open_thinking") or switches.get("enable_thinking"))


class CompletionRequest(SamplingFields):
    prompt: Annotated[str, Field(min_length=1)]
    max_tokens: int | None = Field(COMPLETION_TOKENS, ge=1)
    echo: bool = False
    logprobs: int | None = None
    suffix: str = ""

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_text(cls, prompt: Any) -> Any:
        return prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt

    @model_validator(mode="after")
    def _supported(self) -> CompletionRequest:
        if self.echo:
            raise ValueError("echo: this server does not repeat the prompt yet; leave the field out")
        if self.logprobs is not None:
            raise ValueError("logprobs: this server does not report log probabilities yet; leave the field out")
        if self.suffix:
            raise ValueError("suffix: this server only continues text; leave the field out")
        return self


def parse(cls: type[Body], body: Any) -> Body:
    """Validate a request body; raises ``AppError`` 400 that names the first wrong field."""
    if not isinstance(body, dict):
        raise BadRequest("The request body must be a JSON object.")
    try:
        return cls.model_validate(body)
    except ValidationError as error:
        raise _refusal(error.errors()[0]) from None


def _refusal(problem: Any) -> AppError:
    """One pydantic problem as a sentence."""
    param = ".".join(str(p) for p in problem["loc"]) or None
    message, code = problem["msg"].removeprefix("Value error, "), "invalid_value"
    if param is None and ": " in message:  # a check of the whole request, which names its field itself
        param, code = message.split(": ", 1)[0], "unsupported_parameter"
    elif problem["type"] == "missing":
        message = f"The field {param} is required"
    elif param and not message.startswith(f"{param} "):
        message = f"{param}: {message[0].lower()}{message[1:]}"
    return AppError(400, code, message.rstrip(".") + ".", param)
