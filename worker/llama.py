"""llama.cpp in the place of the studio's own arithmetic: its server from the wheel ``xllamacpp``, in this process.

It is told and tells ids alone: conversations, text, stop strings and the ends of answers are the studio's, as with its
own engine. Its server cuts text at whole characters and keeps to itself which ids a character came from, so the model
goes to it with a vocabulary of numbers, in a file that is gone once it is read. Its threads are its own; one of ours
waits on each answer that is being written.

What it does not do, or not as the studio does, is left to the own engine (``worker.serving.needs_own_engine``).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import secrets
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from minimind.batching import Answering, Delta, budget_of
from minimind.engine import Engine
from minimind.errors import CheckpointError
from minimind.formats.gguf import save_gguf
from minimind.formats.source import load_weights_from
from minimind.presets import ModelConfig
from minimind.sampling import GenerationError, SamplingParams
from minimind.tokenizer import Tokenizer

#: ``STUDIO_INFERENCE_WEIGHTS`` -> what llama.cpp calls it
KINDS = {"fp32": "f32", "bf16": "f16", "int8": "q8_0"}
#: answers that are written at a time, as far as their keys and values fit into that many bytes
MAX_PLACES, MAX_CACHE_BYTES = 16, 512 * 2**20
#: how long a step waits for a token: the models of the own engine wait for it as well
WAIT_S = 0.005
#: no token for that long, and llama.cpp is taken for dead; a long prompt is read meanwhile
SILENCE_S = 600


class LlamaEngine:
    """What ``worker.serving`` needs of a ``minimind.engine.Engine``. ``threads``: cores it may use; ``cache_bytes``:
    for what is read and written; ``prefix_bytes``: for beginnings that were read before."""

    encode_chat = Engine.encode_chat

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, file: Path, *, threads: int, cache_bytes: int,
                 prefix_bytes: int):
        import xllamacpp

        self.config, self.tokenizer = config, tokenizer
        self._bytes = file.stat().st_size
        # keys and values of as many bits as float32 weights have: what is said is then what the own engine says
        exact = file.stem == KINDS["fp32"]
        self._place_bytes = (2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
                             * config.max_position_embeddings * (4 if exact else 2))
        places = max(1, min(MAX_PLACES, cache_bytes // self._place_bytes, MAX_CACHE_BYTES // self._place_bytes))
        asked = xllamacpp.CommonParams()
        asked.model.path = str(file)
        asked.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE  # not mapped: the file goes
        asked.n_parallel, asked.n_ctx = places, places * config.max_position_embeddings
        asked.n_gpu_layers, asked.fit_params, asked.warmup = 0, False, False
        asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = threads
        asked.n_threads_http = places + 2
        asked.cache_ram_mib = prefix_bytes >> 20
        asked.port, asked.api_keys = 0, [secret := secrets.token_urlsafe(24)]  # for nobody else on this machine
        asked.ui, asked.endpoint_slots, asked.verbosity = False, False, -1
        if exact:
            asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self._server = xllamacpp.Server(asked)  # it ends with its last reference
        self._places = places
        self.batch = LlamaBatch(self._server.listening_address, secret, config, tokenizer, places)
        self.batch.try_out()

    def num_bytes(self) -> int:
        """Memory of the weights and of what is read and written, which llama.cpp takes at once."""
        return self._bytes + self._places * self._place_bytes


def load_llama(path: Path, weights: str, **options: int) -> LlamaEngine:
    """A checkpoint in llama.cpp. ``options``: of ``LlamaEngine``. Raises ``CheckpointError`` where the checkpoint is
    damaged, or of a shape that llama.cpp computes in another way."""
    source = load_weights_from(path)
    if source.warnings or source.tokenizer_dir is None:
        raise CheckpointError(f"{path.name}: {' '.join(source.warnings) or 'there is no tokenizer with it.'}")
    tokenizer = Tokenizer.load(source.tokenizer_dir)
    with tempfile.TemporaryDirectory(prefix="minimind-llama-") as scratch:
        file = save_gguf(Path(scratch) / f"{KINDS[weights]}.gguf", source.config, source.weights, tokenizer,
                         KINDS[weights], words=_numbers(tokenizer, source.config.vocab_size))
        try:
            return LlamaEngine(source.config, tokenizer, file, **options)
        except RuntimeError as error:
            raise CheckpointError(f"llama.cpp does not load {path.name}: {error}") from error


def _numbers(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    return {"ggml.model": "gpt2", "ggml.pre": "gpt-2", "ggml.tokens": [f"<{i}>" for i in range(vocab_size)],
            "ggml.token_type": [1] * vocab_size, "ggml.merges": ["0 0"], "ggml.eos_token_id": tokenizer.eos_id,
            "ggml.padding_token_id": tokenizer.pad_id, "ggml.add_bos_token": False, "ggml.add_eos_token": False}


class LlamaBatch:
    """``minimind.batching.Batch`` as far as ``worker.serving`` uses it. Not for several threads at once."""

    def __init__(self, address: str, secret: str, config: ModelConfig, tokenizer: Tokenizer, places: int):
        at = urlsplit(address)
        self._connect = partial(http.client.HTTPConnection, at.hostname, at.port, timeout=SILENCE_S)
        self._secret, self._config, self._tokenizer, self._places = secret, config, tokenizer, places
        self._end_ids = {tokenizer.eos_id, tokenizer.pad_id}
        self._waiting: deque[Answering] = deque()
        self._calls: list[_Call] = []
        self._events: queue.SimpleQueue[tuple[_Call, dict[str, Any] | Exception]] = queue.SimpleQueue()

    def try_out(self) -> None:
        """Have one token written. A server that is let go before its loop has begun waits for the loop's end for ever,
        and whoever lets it go with it. Raises ``RuntimeError``."""
        connection = self._connect()
        try:
            connection.request("POST", "/completion", json.dumps({"prompt": [0], "n_predict": 1}), _head(self._secret))
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"its first answer is {answer.status}: {said[:300].decode('utf-8', 'replace')}")
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeError(f"its server does not answer: {error}") from error
        finally:
            connection.close()

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or self._calls)

    def add(self, prompt_ids: Sequence[int], params: SamplingParams, *, logprobs: int | None = None, echo: bool = False,
            matcher: object | None = None) -> Answering:
        """Queue a request. Raises ``GenerationError`` (``ContextLengthError``)."""
        assert logprobs is None and not echo and matcher is None, "of the own engine alone"
        budget = budget_of(prompt_ids, params, self._config.vocab_size, self._config.max_position_embeddings)
        made = Answering(prompt_ids, params, self._tokenizer, budget, self._end_ids, None, False, None)
        self._waiting.append(made)
        return made

    def cancel(self, answering: Answering) -> None:
        """End a request now; nothing more will be told of it."""
        if answering.finish_reason is None and answering.error is None:
            answering.finish_reason = "cancelled"
            self._leave(answering)

    def step(self) -> list[tuple[Answering, Delta]]:
        """Let in who waits, and tell what was written since the last step. Raises what llama.cpp's server died of."""
        told = []
        while self._waiting and len(self._calls) < self._places:
            answering = self._waiting.popleft()
            answering.timings.begun = time.monotonic()
            if answering.budget == 0:
                answering.finish_reason = "length"
                told.append((answering, Delta("", None, "length")))
            else:
                self._calls.append(_Call(self._connect(), self._secret, answering, self._events))
        for call, event in self._written(0 if told else WAIT_S):
            if call in self._calls:  # else it was cancelled, or has ended
                told += [(call.answering, delta) for delta in self._taken(call, event)]
        return told

    def _written(self, wait_s: float) -> list[tuple[_Call, dict[str, Any] | Exception]]:
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._events.get(timeout=wait_s) if wait_s and self._calls else self._events.get_nowait())
            while True:
                found.append(self._events.get_nowait())
        return found

    def _taken(self, call: _Call, event: dict[str, Any] | Exception) -> list[Delta]:
        answering = call.answering
        if isinstance(event, GenerationError):
            answering.error = event
            self._leave(answering)
            return [Delta("", None, "cancelled")]
        if isinstance(event, Exception):
            raise event
        now, deltas = time.monotonic(), []
        if not answering.timings.first_token:
            answering.timings.first_token = now
            answering.cached_tokens = int(event.get("timings", {}).get("cache_n", 0))
        for token in event["tokens"]:
            deltas.append(answering.take(token))
            if answering.finish_reason is not None:
                answering.timings.ended = now
                self._leave(answering)
                break
        if event.get("stop") and answering.finish_reason is None:  # else nobody would end it
            return [*deltas, *self._taken(call, GenerationError(
                f"llama.cpp ended the answer by itself ({event.get('stop_type')}).", hint="Ask for a shorter one."))]
        return deltas

    def _leave(self, answering: Answering) -> None:
        with contextlib.suppress(ValueError):
            self._waiting.remove(answering)
        for call in [call for call in self._calls if call.answering is answering]:
            self._calls.remove(call)
            call.end()


class _Call:
    """One answer on its way from llama.cpp's server, whose place there is free as soon as the connection is not."""

    def __init__(self, connection: http.client.HTTPConnection, secret: str, answering: Answering,
                 events: queue.SimpleQueue[tuple[_Call, dict[str, Any] | Exception]]):
        self.answering, self._events = answering, events
        self._connection, self._secret = connection, secret
        self._connection.connect()
        self._socket = self._connection.sock  # the connection forgets it with the head of the answer
        threading.Thread(target=self._read, name="llama", daemon=True).start()

    def end(self) -> None:
        with contextlib.suppress(OSError):  # it is over
            self._socket.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        try:
            self._connection.request("POST", "/completion", json.dumps(asked_of_llama(self.answering)),
                                     _head(self._secret))
            answer = self._connection.getresponse()
            if answer.status != 200:
                said = answer.read(2000).decode("utf-8", "replace")
                raise GenerationError(f"llama.cpp refused the request ({answer.status}): {said[:300]}")
            event: dict[str, Any] = {}
            for line in answer:
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    self._events.put((self, _checked(event)))
            if not event.get("stop"):
                raise ConnectionError("llama.cpp's server left an answer unfinished")
        except Exception as error:  # told to the thread that serves; of nobody's interest once the answer has ended
            self._events.put((self, error))
        finally:
            self._connection.close()


def _head(secret: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"}


def _checked(event: dict[str, Any]) -> dict[str, Any]:
    if "error" in event:
        raise GenerationError(f"llama.cpp failed on the request: {event['error'].get('message', event['error'])}")
    return event


def asked_of_llama(answering: Answering) -> dict[str, Any]:
    """A request in the words of llama.cpp's server, which cuts in the same order as ``minimind.sampling``."""
    params = answering.params
    bias = [[token, value] for token, value in params.logit_bias.items()]
    if params.ignore_eos:
        bias += [[token, False] for token in answering.end_ids]
    seed = {} if params.seed is None else {"seed": params.seed % (2**32 - 1)}
    return {"prompt": answering.ids, "n_predict": answering.budget, "stream": True, "return_tokens": True,
            "timings_per_token": True, "cache_prompt": True, "temperature": params.temperature,
            "top_k": min(params.top_k, 2**31 - 1),  # of 32 bits
            "top_p": params.top_p, "min_p": params.min_p,
            "repeat_last_n": len(answering.ids) + answering.budget, "repeat_penalty": params.repetition_penalty,
            "logit_bias": bias, "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"], **seed}
