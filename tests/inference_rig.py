"""Real parts for tests that need an inference process: a broker, a small random checkpoint, the process itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import redis

from worker.broker import find_binary

ROOT = Path(__file__).resolve().parents[1]


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> object:
    """The first true value of ``condition``; fails with ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s for {what}")


class Broker:
    """A Valkey server without persistence on a unix socket with a short path."""

    def __init__(self, directory: str):
        self.socket = Path(directory) / "b.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [find_binary(), "--port", "0", "--unixsocket", self.socket, "--save", "", "--appendonly", "no",
             "--dir", self.socket.parent], stdout=subprocess.DEVNULL)
        wait_for(self._answers, "the broker")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.socket.unlink(missing_ok=True)

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@contextlib.contextmanager
def running_broker() -> Iterator[Broker]:
    with tempfile.TemporaryDirectory(prefix="broker-", dir="/tmp") as directory:
        broker = Broker(directory)
        broker.start()
        try:
            yield broker
        finally:
            broker.kill()


class InferenceServer:
    """``python -m worker.inference`` as the supervisor starts it."""

    def __init__(self, redis_url: str, directory: Path, **environment: str):
        self.log = directory / "inference.log"
        self._environment = {**os.environ, "STUDIO_REDIS_URL": redis_url, "STUDIO_DATA_DIR": str(directory),
                             "OMP_NUM_THREADS": "1", "MINIMIND_DIE_WITH_PARENT": "1", **environment}
        self.process: subprocess.Popen | None = None

    def start(self) -> subprocess.Popen:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "worker.inference"], cwd=ROOT, stderr=log,
                                            env=self._environment)
        return self.process

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def running_inference(redis_url: str, directory: Path, **environment: str) -> Iterator[InferenceServer]:
    server = InferenceServer(redis_url, directory, **environment)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def make_checkpoint(path: Path, *, seed: int, hidden_size: int = 32) -> Path:
    """A random model with a context of 20,000 tokens that, being greedy, never ends an answer."""
    import torch

    from minimind.checkpoint import WEIGHTS_FILE, save_weights
    from minimind.manifest import Manifest
    from minimind.model import MiniMindForCausalLM
    from minimind.presets import ModelConfig
    from minimind.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["The lamp in the harbour is green."] * 20, 420)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=hidden_size, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64,
                         max_position_embeddings=20_000)
    torch.manual_seed(seed)
    model = MiniMindForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(12)  # sharp: neighbouring checkpoints say different things
        # the tied output never prefers what ends an answer
        model.model.embed_tokens.weight[[tokenizer.eos_id, tokenizer.pad_id]] = 0
    path.mkdir(parents=True)
    tokenizer.save(path)
    save_weights(model.state_dict(), path / WEIGHTS_FILE)
    Manifest(stage="sft", step=1, tokens=1, attempt=1, world_size=1, loss=None, eval_loss=None,
             model=config.as_dict(), config_fingerprint="", data_fingerprint="",
             tokenizer_fingerprint=tokenizer.fingerprint, lineage={}, versions={}, created_at=1e9).seal(path)
    return path


def make_adapter(run: Path, base: Path, *, seed: int, rank: int = 4, targets: tuple[str, ...] | None = None) -> Path:
    """A checkpoint of adapters, random and strong, whose own base is ``base``, in the run directory ``run``."""
    import torch

    from minimind.config import ADAPTABLE
    from minimind.formats.adapter_files import import_adapter, write_peft
    from minimind.lora import AdapterConfig, adapter_shapes
    from minimind.manifest import Manifest
    from minimind.presets import ModelConfig

    adapter = AdapterConfig(rank, 2.0 * rank, targets=targets or ADAPTABLE)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) * 0.5
               for name, shape in adapter_shapes(adapter, ModelConfig.from_dict(Manifest.read(base).model)).items()}
    with tempfile.TemporaryDirectory() as scratch:
        return import_adapter(run, write_peft(Path(scratch) / "peft", adapter, weights), base)
