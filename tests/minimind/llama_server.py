"""llama.cpp as other people run it: its own server, from the prebuilt wheel, asked by HTTP."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Llama:
    def __init__(self, server: Any):
        self._server = server  # it ends with its last reference

    def ask(self, path: str, body: dict) -> dict:
        request = urllib.request.Request(f"{self._server.listening_address}{path}", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def tokens(self, text: str) -> list[int]:
        return self.ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def text(self, ids: list[int]) -> str:
        return self.ask("/detokenize", {"tokens": ids})["content"]

    def greedy(self, ids: list[int], count: int) -> list[int]:
        said = self.ask("/completion", {"prompt": ids, "n_predict": count, "temperature": 0, "ignore_eos": True,
                                        "return_tokens": True, "cache_prompt": False})
        return said["tokens"]

    def log_probabilities(self, ids: list[int], count: int) -> dict[int, float]:
        """Of the ``count`` likeliest tokens behind ``ids``."""
        said = self.ask("/completion", {"prompt": ids, "n_predict": 1, "n_probs": count, "temperature": 0,
                                        "cache_prompt": False})
        return {token["id"]: token["logprob"] for token in said["completion_probabilities"][0]["top_logprobs"]}


@contextmanager
def llama_server(path: Path, context: int = 512) -> Iterator[Llama]:
    """With keys and values in float32 and plain attention: what differs from ours then is ours."""
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path = str(path)
    asked.n_ctx, asked.n_parallel, asked.port, asked.verbosity = context, 1, 0, 0
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
    asked.warmup = False
    asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    llama = Llama(xllamacpp.Server(asked))
    llama.greedy([0], 1)  # let go before its loop has begun, it would wait for the loop's end for ever
    try:
        yield llama
    finally:
        del llama._server
