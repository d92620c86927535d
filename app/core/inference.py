"""How the web process and the inference process talk: streams of a Redis server, JSON only.

One stream of requests, one short-lived stream of replies per request, and one key per request that says
"somebody still wants this": the asker keeps renewing it, deletes it when it leaves, and it expires when the
asker dies; the inference process looks at it before every token. Nothing here is a truth that has to last: when
the broker forgets, the asker hears "try again".

Replies, in order: ``accepted`` {process}, maybe ``loading`` {}, ``started`` {prompt_tokens, cached_tokens, and where
``echo`` was asked prompt}, ``delta`` {text, and where logprobs were asked tokens} any number of times, then ``done``
{finish_reason, prompt_tokens, completion_tokens, timings} or ``error`` {kind, message, param}.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: consumer group of the request stream, so that one process answers each
GROUP = "inference"
HEARTBEAT_INTERVAL_S = 2
HEARTBEAT_TTL_S = 15
#: how long a request stays wanted without being renewed
WANTED_TTL_S = 20
REPLY_TTL_S = 120
REPLY_MAX_EVENTS = 50_000
#: requests that wait for the model, in the process and in the stream; more are answered ``busy``
MAX_WAITING = 256
#: size of one request message
MAX_REQUEST_BYTES = 4 * 2**20

#: kinds of errors: those that a reply carries, and ``unavailable``, which the asker finds out by itself
ERROR_KINDS = ("busy", "request", "context_length", "checkpoint", "internal", "unavailable")


class Keys:
    """Names in the broker; ``prefix`` keeps installations that share one apart."""

    def __init__(self, prefix: str = "studio"):
        self._prefix = f"{prefix}:inference"
        #: the stream of requests
        self.requests = f"{self._prefix}:requests"
        #: the last sign of life of any inference process, JSON
        self.heartbeat = f"{self._prefix}:heartbeat"

    def reply(self, request_id: str) -> str:
        return f"{self._prefix}:reply:{request_id}"

    def wanted(self, request_id: str) -> str:
        return f"{self._prefix}:wanted:{request_id}"

    def process(self, name: str) -> str:
        """Exists while that very process lives: a restarted one has another name."""
        return f"{self._prefix}:process:{name}"

    def host(self, host_id: str) -> str:
        """Names the process of a host, so that its successor can say that the old one is gone."""
        return f"{self._prefix}:host:{host_id}"


class Sampling(BaseModel):
    """As ``minimind.sampling.SamplingParams``, without torch."""

    model_config = ConfigDict(extra="forbid")

    temperature: float = Field(0.7, ge=0, le=10)
    top_p: float = Field(0.92, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0, ge=0, le=1)
    repetition_penalty: float = Field(1, gt=0, le=10)
    presence_penalty: float = Field(0, ge=-2, le=2)
    frequency_penalty: float = Field(0, ge=-2, le=2)
    logit_bias: dict[int, float] = Field(default={}, max_length=1024)
    max_tokens: int | None = Field(None, ge=0)
    stop: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(default=[], max_length=16)
    seed: int | None = None
    ignore_eos: bool = False  # goes on behind the end token, until max_tokens


class Constraint(BaseModel):
    """What an answer may look like; ``minimind.constrain`` keeps the sampler to it.

    ``json_object``: any JSON object. ``json_schema``: JSON of ``schema``. Both compact, without free whitespace.
    ``tools``: calls of ``tools`` (OpenAI's list of {type, function}) as the chat template writes them, and
    nothing else; ``parallel``: more than one call.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    kind: Literal["json_object", "json_schema", "tools"]
    schema_: Any = Field(None, alias="schema")
    tools: list[dict[str, Any]] = []
    parallel: bool = False


class GenerationRequest(BaseModel):
    """One message on the request stream: a conversation (``messages``), raw text (``prompt``) or its ids."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
    checkpoint: Annotated[str, Field(min_length=1, max_length=4096)]  # absolute directory, from the database
    adapter: Annotated[str, Field(min_length=1, max_length=4096)] | None = None  # likewise, laid over it
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    prompt_ids: list[Annotated[int, Field(ge=0)]] | None = None
    tools: list[dict[str, Any]] | None = None
    open_thinking: bool = False
    continue_final: bool = False  # the last message is an assistant's: go on with it instead of answering it
    sampling: Sampling = Sampling()
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None  # alternatives with each token; 0: the token alone
    echo: bool = False  # log probabilities of the prompt's tokens too, with ``logprobs``
    constraint: Constraint | None = None

    @model_validator(mode="after")
    def _one_input(self) -> GenerationRequest:
        if sum(given is not None for given in (self.messages, self.prompt, self.prompt_ids)) != 1:
            raise ValueError("a request needs one of messages, prompt and prompt_ids")
        return self

    def fields(self) -> dict[str, str]:
        return {"json": self.model_dump_json(by_alias=True)}

    @classmethod
    def from_fields(cls, fields: dict[bytes, bytes]) -> GenerationRequest:
        """Raises ``ValueError`` for anything that is not a request."""
        raw = fields.get(b"json", b"")
        if len(raw) > MAX_REQUEST_BYTES:
            raise ValueError(f"the message has {len(raw)} bytes, more than {MAX_REQUEST_BYTES}")
        return cls.model_validate_json(raw)


class Alternative(BaseModel):
    """A token that could have stood there. ``text``: its bytes as UTF-8, whatever is incomplete as U+FFFD;
    ``logprob``: natural logarithm of the unmodified softmax's probability, None behind nothing (a first token)."""

    id: int
    text: str
    bytes: list[int]
    logprob: float | None


class TokenLogprob(Alternative):
    """A token of the text, with the likeliest ones at its place, the likeliest first."""

    top: list[Alternative] = []


class Timings(BaseModel):
    """Seconds: waiting for a place, reading the prompt, writing the answer (from its first token to its last)."""

    queue_s: float = 0
    prefill_s: float = 0
    decode_s: float = 0


class Reply(BaseModel):
    """One event of a reply stream; which fields are set depends on ``type``."""

    type: Literal["accepted", "loading", "started", "delta", "done", "error"]
    process: str | None = None
    text: str = ""
    tokens: list[TokenLogprob] | None = None
    prompt: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    timings: Timings | None = None
    kind: str | None = None
    message: str = ""
    param: str | None = None

    def fields(self) -> dict[str, str]:
        return {"json": json.dumps(self.model_dump(exclude_defaults=True), separators=(",", ":"))}

    @classmethod
    def from_fields(cls, fields: dict[bytes, bytes]) -> Reply:
        return cls.model_validate_json(fields[b"json"])
