"""Who answers: Hugging Face's ``generate``, this project's engine, and llama.cpp in a process of its own.

    python benchmarks/_serve_engines.py FILE.gguf SLOTS     that process: one JSON line in, one out
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from benchmarks._serve_material import Material

ROOT = Path(__file__).resolve().parent.parent
#: memory for beginnings of prompts that were read before, as the studio gives an engine some
PREFIX_BYTES = 256 << 20
Clock = Callable[[], float]
#: one engine's answers as text, and the seconds that they took
Answers = tuple[list[str], float]


class Contestant(Protocol):
    name: str
    #: bytes that a token of a single answer has to fetch, of weights alone
    weight_bytes: float

    def answer(self, prompts: Sequence[list[int]], new_tokens: int) -> Answers:
        """Greedy answers of exactly ``new_tokens`` tokens to all prompts at once; all prompts are equally long."""
        ...

    def close(self) -> None: ...


class HuggingFace:
    """``Qwen3ForCausalLM.generate`` with its dynamic cache."""

    def __init__(self, material: Material, clock: Clock, device: str = "cpu", dtype: str = "float32"):
        import torch
        from transformers import Qwen3ForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()

        self.name = "Hugging Face" + ("" if dtype == "float32" else f", {dtype}")
        self.model = Qwen3ForCausalLM.from_pretrained(material.hugging_face, dtype=getattr(torch, dtype)).eval()
        self.model.to(device)
        self.model.generation_config.eos_token_id = None  # every answer has its full length
        self.decode = material.tokenizer.decode
        self.clock, self.device = clock, device
        self.weight_bytes = material.num_weights * self.model.dtype.itemsize

    def answer(self, prompts: Sequence[list[int]], new_tokens: int) -> Answers:
        import torch

        start = self.clock()
        ids = torch.tensor(prompts, device=self.device)
        with torch.no_grad():
            made = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens,
                                       do_sample=False, pad_token_id=0)
        rows = made[:, ids.shape[1]:].tolist()
        seconds = self.clock() - start
        return [self.decode(row) for row in rows], seconds

    def close(self) -> None:
        del self.model


class Ours:
    """``minimind.engine.Engine``. ``weights``: fp32, int8, and on a GPU bf16."""

    def __init__(self, material: Material, clock: Clock, weights: str = "fp32", compiled: bool = False,
                 device: str = "cpu"):
        from minimind.engine import Engine

        self.engine = Engine.from_checkpoint(material.checkpoint, device=device, weights=weights, compile=compiled,
                                             prefix_bytes=PREFIX_BYTES)
        done = ", compiled" if self.engine.decoder.is_compiled else ", not compiled"
        self.name = f"this project, {weights}" + (done if compiled else "")
        self.clock = clock
        self.last_ids: list[list[int]] = []  #: of the last answers
        self.weight_bytes = material.num_weights * {"fp32": 4, "bf16": 2, "int8": 1}[weights]

    def answer(self, prompts: Sequence[list[int]], new_tokens: int) -> Answers:
        from minimind.engine import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        start = self.clock()
        found = self.engine.generate_many(prompts, params)
        seconds = self.clock() - start
        if any(len(one.token_ids) != new_tokens for one in found):
            raise SystemExit(f"{self.name} made answers of {[len(one.token_ids) for one in found]} tokens.")
        self.last_ids = [list(one.token_ids) for one in found]
        return [one.text for one in found], seconds

    def close(self) -> None:
        del self.engine


class LlamaCpp:
    """llama.cpp through the wheel ``xllamacpp``, with one thread; ``slots``: answers at a time. Its seconds are those
    of all threads of its process."""

    def __init__(self, material: Material, kind: str, slots: int):
        self.name = f"llama.cpp, {kind}"
        # 32 weights of q8_0 and their scale are 34 bytes
        self.weight_bytes = material.num_weights * {"f32": 4.0, "q8_0": 34 / 32}[kind]
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(material.gguf(kind)), str(slots)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})

    def answer(self, prompts: Sequence[list[int]], new_tokens: int) -> Answers:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([prompts, new_tokens]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}.")
        texts, seconds = json.loads(line)
        return texts, seconds

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def missing_for(name: str) -> str | None:
    """Why this machine cannot run a contestant of that name, in a sentence; None where it can."""
    needed = {"hf": ["transformers"], "llama": ["xllamacpp", "gguf"]}.get(name.partition("-")[0], [])
    absent = [package for package in needed if importlib.util.find_spec(package) is None]
    return f"{name} is left out: pip install {' '.join(absent)}" if absent else None


def play_llama(path: str, slots: int) -> int:
    """Answer lines of ``[prompts, new tokens]`` with ``[texts, CPU seconds of this process]`` until there are none."""
    import xllamacpp

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the library says is no answer
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel, params.n_ctx = slots, 512 * slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = params.n_threads_http = 1
    params.warmup, params.verbosity, params.ui = False, -1, False
    server = xllamacpp.Server(params)

    def ask(prompt: list[int], new_tokens: int, texts: list[Any], place: int) -> None:
        wanted = {"prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
        server.handle_completions(wanted, lambda answer: texts.__setitem__(place, answer["choices"][0]["text"]))

    for line in sys.stdin:
        prompts, new_tokens = json.loads(line)
        texts: list[Any] = [None] * len(prompts)
        start = time.process_time()
        threads = [threading.Thread(target=ask, args=(prompt, new_tokens, texts, i))
                   for i, prompt in enumerate(prompts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps([texts, time.process_time() - start]), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(play_llama(sys.argv[1], int(sys.argv[2])))
