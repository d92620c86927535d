"""What OpenAI clients send. Unknown fields are ignored; null means "not given"."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app.core.errors import AppError, BadRequest
from app.core.inference import Constraint, Sampling
from app.openai import tools
from minimind.answers import END_THINK, THINK

Body = TypeVar("Body", bound=BaseModel)

#: OpenAI's default for plain completions
COMPLETION_TOKENS = 16
#: answers to one request: ``n``, or prompts times ``n``
MAX_CHOICES = 128
MAX_TOKENS = 2**31 - 1
_SEEDS = 2**63

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


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
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] = Field(default=[], max_length=tools.MAX_TOOLS)
    tool_call_id: str | None = None
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        texts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") not in ("text", "input_text", "output_text"):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise ValueError(f"content parts of type {kind!r} are not supported; send text parts")
            if not isinstance(part.get("text"), str):
                raise ValueError("a text part needs a string in its field text")
            texts.append(part["text"])
        return "".join(texts)

    @field_validator("tool_calls")
    @classmethod
    def _calls(cls, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [tools.read_made_call(call) for call in calls]

    def for_template(self) -> dict[str, Any]:
        """As the chat template knows it: ``developer`` is a newer name of ``system``."""
        plain: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        if self.role == "assistant":
            if self.reasoning_content is not None:
                plain["reasoning_content"] = self.reasoning_content
            if self.tool_calls:
                plain["tool_calls"] = self.tool_calls
        return plain


class StreamOptions(_Lenient):
    include_usage: bool = False


class SamplingFields(_Lenient):
    """Fields that chat and plain completions share."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    temperature: float = Field(0.7, ge=0, le=2)
    top_p: float = Field(0.92, ge=0, le=1)
    top_k: int = Field(0, ge=-1, le=MAX_TOKENS)  # -1 is vLLM's "off"
    min_p: float = Field(0, ge=0, le=1)
    repetition_penalty: float = Field(1, gt=0, le=10)
    presence_penalty: Penalty = 0
    frequency_penalty: Penalty = 0
    logit_bias: dict[int, float] = Field(default={}, max_length=1024)
    max_tokens: Tokens | None = None
    ignore_eos: bool = False
    stop: list[Annotated[str, Field(max_length=1000)]] = Field(default=[], max_length=16)
    seed: int | None = Field(None, ge=-_SEEDS, lt=_SEEDS)
    n: int = Field(1, ge=1, le=16)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _by_token(cls, biases: Any) -> Any:
        if not isinstance(biases, dict):
            raise ValueError("send an object with token ids as keys")
        for key, value in biases.items():
            if not (str(key).isdecimal() and str(key).isascii() and len(str(key)) <= 10):
                raise ValueError(f"{str(key)[:40]!r} is no token id")
            if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
                raise ValueError(f"the bias of token {key} must be a number from -100 to 100")
        return biases

    def sampling(self, choice: int = 0) -> Sampling:
        """``choice``: which of several answers to the same prompt; each draws with a seed of its own."""
        # OpenAI allows top_p 0, which leaves the likeliest token alone: greedy
        greedy = self.top_p == 0
        return Sampling(
            temperature=0 if greedy else self.temperature, top_p=1 if greedy else self.top_p, top_k=max(0, self.top_k),
            min_p=self.min_p, repetition_penalty=self.repetition_penalty, presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty, logit_bias=self.logit_bias, max_tokens=self.limit(),
            stop=[s for s in self.stop if s], seed=None if self.seed is None else (self.seed + choice) % _SEEDS,
            ignore_eos=self.ignore_eos)

    def limit(self) -> int | None:
        return self.max_tokens


class ChatRequest(SamplingFields):
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: Tokens | None = None
    tools: list[dict[str, Any]] = Field(default=[], max_length=tools.MAX_TOOLS)
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: dict[str, Any] = {"type": "text"}
    chat_template_kwargs: dict[str, Any] = {}
    continue_final_message: bool = False

    @field_validator("tools")
    @classmethod
    def _definitions(cls, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return tools.read_tools(given)

    @field_validator("response_format")
    @classmethod
    def _format(cls, given: dict[str, Any]) -> dict[str, Any]:
        tools.read_format(given)
        return given

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("functions"):  # left out, it would change what an answer means
            raise ValueError("functions: this is tools now; send tools")
        return values

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        tools.read_choice(self.tool_choice, self.tools)
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs = true")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message: the last message must be the assistant's")
        return self

    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def constraint(self) -> Constraint | None:
        """A call that must be made comes before the form of what is said."""
        forced = tools.read_choice(self.tool_choice, self.tools)
        if forced:
            return Constraint(kind="tools", tools=forced,
                              parallel=self.parallel_tool_calls and self.tool_choice == "required")
        return tools.read_format(self.response_format)

    @property
    def open_thinking(self) -> bool:
        """MiniMind's and Qwen3's switch for a visible train of thought. An answer whose form is prescribed begins with
        that form."""
        switches = self.chat_template_kwargs
        return bool(switches.get("open_thinking") or switches.get("enable_thinking")) and self.constraint is None

    @property
    def continues_thinking(self) -> bool:
        """Whether the message that is continued ends inside its reasoning."""
        last = self.messages[-1]
        after = last.content.rpartition(THINK)
        return bool(last.reasoning_content and not last.content) or bool(after[1] and END_THINK not in after[2])


class CompletionRequest(SamplingFields):
    prompt: list[str] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = COMPLETION_TOKENS
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = None
    suffix: str = ""

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, prompt: Any) -> Any:
        """One text, several, the ids of one, or the ids of several."""
        prompts = prompt if isinstance(prompt, list) else [prompt]
        if prompts and all(_is_id(token) for token in prompts):
            prompts = [prompts]
        if not prompts or not all(prompts):
            raise ValueError("a prompt is empty")
        texts = all(isinstance(p, str) for p in prompts)
        if not texts and not all(isinstance(p, list) and all(_is_id(token) for token in p) for p in prompts):
            raise ValueError("send a text, a list of texts, a list of token ids, or a list of such lists")
        return prompts

    @field_validator("logprobs", mode="before")
    @classmethod
    def _off(cls, logprobs: Any) -> Any:
        return None if logprobs is False else logprobs

    @model_validator(mode="after")
    def _supported(self) -> CompletionRequest:
        # These change what an answer means: better refused than silently left out.
        if self.suffix:
            raise ValueError("suffix: this server only continues text; leave the field out")
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("best_of: this server returns every answer that it makes; leave the field out, or send "
                             "the value of n")
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise ValueError(f"prompt: {len(self.prompt)} prompts with n = {self.n} are more than {MAX_CHOICES} "
                             "answers; send several requests")
        return self


def _is_id(token: Any) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token <= MAX_TOKENS


def parse(cls: type[Body], body: Any) -> Body:
    """Validate a request body; raises ``AppError`` 400 that names the first wrong field."""
    if not isinstance(body, dict):
        raise BadRequest("The request body must be a JSON object.")
    place = _not_unicode({k: v for k, v in body.items() if k in cls.model_fields})
    if place is not None:
        raise AppError(400, "invalid_value", f"{place}: holds half of a surrogate pair, which is not Unicode text.",
                       place)
    try:
        return cls.model_validate(body)
    except ValidationError as error:
        raise _refusal(error.errors()[0]) from None


def _not_unicode(value: Any) -> str | None:
    """The first place in a JSON value whose text cannot be sent."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        place, item = waiting.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError:
                return place.removeprefix(".")
        elif isinstance(item, dict):
            waiting += [(place, key) for key in item] + [(f"{place}.{key}", each) for key, each in item.items()]
        elif isinstance(item, list):
            waiting += [(f"{place}.{at}", each) for at, each in enumerate(item) if isinstance(each, str | dict | list)]
    return None


def _refusal(problem: Any) -> AppError:
    """One pydantic problem as a sentence."""
    own = ("list[str]", "list[list[int]]")  # pydantic's names of the kinds of a prompt
    param = ".".join(str(p) for p in problem["loc"] if p not in own) or None
    message, code = problem["msg"].removeprefix("Value error, "), "invalid_value"
    if param is None and ": " in message:  # a check of the whole request, which names its field itself
        param, code = message.split(": ", 1)[0], "unsupported_parameter"
    elif problem["type"] == "missing":
        message = f"The field {param} is required"
    elif param and not message.startswith(f"{param} "):
        message = f"{param}: {message[0].lower()}{message[1:]}"
    return AppError(400, code, message.rstrip(".") + ".", param)
