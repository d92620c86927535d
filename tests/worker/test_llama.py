"""llama.cpp as the engine of the inference process: the same answers, and what it leaves to the own engine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.core.inference import Constraint, GenerationRequest, Reply, Sampling
from minimind.batching import Answering, Delta
from minimind.engine import Engine, SamplingParams
from minimind.formats.gguf import save_gguf
from minimind.formats.source import load_weights_from
from minimind.sampling import ContextLengthError
from minimind.tokenizer import Tokenizer
from tests.checkpoint_rig import make_adapter, make_checkpoint
from tests.inference_rig import ROOT, running_broker, running_inference, wait_for
from tests.worker.test_serving import ask, status
from worker.engines import EngineCache, EngineOptions
from worker.serving import Server, needs_own_engine

pytest.importorskip("xllamacpp", reason="llama.cpp's wheel (xllamacpp) is not installed")

from worker.llama import LlamaEngine, _numbers, asked_of_llama

HELLO = [{"role": "user", "content": "Where is the lamp?"}]
POSITIONS = 512  # a whole number of what llama.cpp rounds a context up to


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("run") / "step-00000001-a1", seed=1, positions=POSITIONS)


@pytest.fixture(scope="module")
def own(checkpoint: Path) -> Engine:
    return EngineCache(EngineOptions()).get(checkpoint)  # which keeps to half of the cores


@pytest.fixture(scope="module")
def cache() -> EngineCache:
    return EngineCache(EngineOptions(engine="llama"))


@pytest.fixture(scope="module")
def llama(cache: EngineCache, checkpoint: Path) -> LlamaEngine:
    assert not cache.has(checkpoint, needs_own=False)
    found = cache.get(checkpoint, needs_own=False)
    assert isinstance(found, LlamaEngine) and cache.has(checkpoint, needs_own=False)
    return found


def answered(engine: LlamaEngine, *asked: tuple[list[int], SamplingParams]) -> list[tuple[str, Answering]]:
    made = [engine.batch.add(ids, params) for ids, params in asked]
    deltas: dict[int, list[Delta]] = {id(one): [] for one in made}
    deadline = time.monotonic() + 60
    while engine.batch.is_busy:
        assert time.monotonic() < deadline, "llama.cpp does not answer"
        for one, delta in engine.batch.step():
            deltas[id(one)].append(delta)
    for one in made:
        assert one.error is None and [d.finish_reason for d in deltas[id(one)]][-1] == one.finish_reason is not None
        assert all(d.finish_reason is None for d in deltas[id(one)][:-1])
    return [("".join(d.text for d in deltas[id(one)]), one) for one in made]


def test_greedy_answers_are_the_own_engines(own: Engine, llama: LlamaEngine) -> None:
    """Token for token, with characters of several tokens among them; more requests than places."""
    prompts = [llama.encode_chat(HELLO), *([3 + n, 50 + 7 * n, 300 - n] for n in range(20))]
    wishes = [SamplingParams(temperature=0, max_tokens=30 + n % 7) for n in range(len(prompts))]
    wanted = own.generate_many(prompts, wishes)
    for ids, expected, (text, one) in zip(prompts, wanted, answered(llama, *zip(prompts, wishes)), strict=True):
        assert (text, one.ids[len(ids):], one.finish_reason) == (expected.text, expected.token_ids, "length")
        assert one.timings.begun <= one.timings.first_token <= one.timings.ended
    assert not all(expected.text.isascii() for expected in wanted), "bytes that are no whole characters are among them"


def test_sampling_says_what_the_own_engine_would(own: Engine, llama: LlamaEngine) -> None:
    ids = own.encode_chat(HELLO)
    likeliest = own.generate(ids, SamplingParams(temperature=0, max_tokens=3)).token_ids
    penalized = SamplingParams(temperature=0, max_tokens=40, repetition_penalty=1.5)
    narrow = SamplingParams(temperature=5.0, top_k=1, max_tokens=3, seed=1)
    biased = SamplingParams(temperature=0, max_tokens=1, logit_bias={77: 1000.0})
    ended = SamplingParams(temperature=0, max_tokens=9, logit_bias={own.tokenizer.eos_id: 1000.0})
    endless = SamplingParams(temperature=0, max_tokens=9, logit_bias={own.tokenizer.eos_id: 1000.0}, ignore_eos=True)
    nothing = SamplingParams(temperature=0, max_tokens=0)
    found = answered(llama, *((ids, wish) for wish in (penalized, narrow, biased, ended, endless, nothing)))
    assert found[0][1].ids[len(ids):] == own.generate(ids, penalized).token_ids
    assert found[1][1].ids[len(ids):] == likeliest
    assert found[2][1].ids[len(ids):] == [77]
    assert (found[3][1].finish_reason, found[3][0], found[3][1].completion_tokens) == ("stop", "", 1)
    assert (found[4][1].finish_reason, found[4][1].completion_tokens) == ("length", 9)
    assert (found[5][1].finish_reason, found[5][1].completion_tokens) == ("length", 0)


def test_a_model_may_leave_as_soon_as_it_is_there(checkpoint: Path, tmp_path: Path) -> None:
    """In a process of its own: what went wrong here was a wait without an end."""
    source = load_weights_from(checkpoint)
    tokenizer = Tokenizer.load(source.tokenizer_dir)
    file = save_gguf(tmp_path / "f32.gguf", source.config, source.weights, tokenizer, "f32",
                     words=_numbers(tokenizer, source.config.vocab_size))
    script = ("import sys; from pathlib import Path; from minimind.formats.source import load_weights_from\n"
              "from minimind.tokenizer import Tokenizer; from worker.llama import LlamaEngine\n"
              "source = load_weights_from(Path(sys.argv[1])); tokenizer = Tokenizer.load(source.tokenizer_dir)\n"
              "for _ in range(20):\n"
              "    LlamaEngine(source.config, tokenizer, Path(sys.argv[2]), threads=1, cache_bytes=1 << 20,\n"
              "                prefix_bytes=1 << 20)\n"
              "print('left')")
    done = subprocess.run([sys.executable, "-c", script, checkpoint, file], cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    assert done.stdout == "left\n", done.stderr


def test_a_seed_says_the_same_again(llama: LlamaEngine) -> None:
    ids = llama.encode_chat(HELLO)
    texts = [answered(llama, (ids, SamplingParams(temperature=3.0, top_p=1.0, max_tokens=30, seed=seed)))[0][0]
             for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_string_ends_the_answer(own: Engine, llama: LlamaEngine) -> None:
    ids = own.encode_chat(HELLO)
    whole = own.generate(ids, SamplingParams(temperature=0, max_tokens=40)).text
    wish = SamplingParams(temperature=0, max_tokens=40, stop=[whole[20:24]])
    expected = own.generate(ids, wish)
    text, one = answered(llama, (ids, wish))[0]
    assert (text, one.finish_reason) == (expected.text, "stop") and len(text) <= 20


def test_an_answer_ends_with_the_context(own: Engine, llama: LlamaEngine) -> None:
    ids = [5] * (POSITIONS - 10)
    text, one = answered(llama, (ids, SamplingParams(temperature=0, max_tokens=100)))[0]
    expected = own.generate(ids, SamplingParams(temperature=0, max_tokens=100))
    assert (text, one.completion_tokens, one.finish_reason) == (expected.text, 10, "length")
    with pytest.raises(ContextLengthError, match=f"this model's context is {POSITIONS}"):
        llama.batch.add([5] * POSITIONS, SamplingParams(max_tokens=1))


def test_who_leaves_frees_his_place(llama: LlamaEngine) -> None:
    """All places are taken for as long as answers may be, and given back at once."""
    ids = llama.encode_chat(HELLO)
    endless = SamplingParams(temperature=0, ignore_eos=True, max_tokens=POSITIONS)
    left = [llama.batch.add(ids, endless) for _ in range(40)]
    llama.batch.step()
    for one in left:
        llama.batch.cancel(one)
    assert not llama.batch.is_busy and all(one.finish_reason == "cancelled" for one in left)
    began = time.monotonic()
    answered(llama, (ids, SamplingParams(temperature=0, max_tokens=2)))
    assert time.monotonic() - began < 5


def test_the_next_turn_begins_with_what_was_read(llama: LlamaEngine) -> None:
    ids = [7, 8, 9] * 40
    answered(llama, (ids, SamplingParams(temperature=0, max_tokens=2)))
    [(_, again)] = answered(llama, ([*ids, 10, 11], SamplingParams(temperature=0, max_tokens=2)))
    assert again.cached_tokens >= 100


def test_what_llama_cannot_do_is_left_to_the_own_engine(cache: EngineCache, checkpoint: Path, llama: LlamaEngine,
                                                        tmp_path: Path) -> None:
    def needs_own(**options: object) -> bool:
        return needs_own_engine(GenerationRequest(id="12345678", checkpoint="/x", prompt="x", **options))

    assert not needs_own() and not needs_own(sampling=Sampling(repetition_penalty=1.2, min_p=0.1, stop=["x"], seed=1))
    assert needs_own(logprobs=0) and needs_own(constraint=Constraint(kind="json_object")) and needs_own(adapter="/y")
    assert needs_own(sampling=Sampling(presence_penalty=0.5)) and needs_own(sampling=Sampling(frequency_penalty=1))
    assert isinstance(cache.get(checkpoint), Engine)
    assert {model["engine"] for model in cache.in_memory()} == {"own", "llama"}
    adapter = make_adapter(tmp_path / "lora", checkpoint, seed=3)
    assert isinstance(cache.get(adapter, needs_own=False), Engine), "an adapter lies over the model that is there"
    assert isinstance(cache.get(checkpoint, adapter, needs_own=False), Engine)
    assert isinstance(EngineCache(EngineOptions()).get(checkpoint, needs_own=False), Engine), "only where it is wanted"


def test_what_llama_takes_for_reading_and_writing_counts(checkpoint: Path, llama: LlamaEngine, tmp_path: Path) -> None:
    """Its weights alone would fit beside the model that is there; with its keys and values it does not."""
    other = make_checkpoint(tmp_path / "step-00000001-a1", seed=2, positions=POSITIONS)
    weights = (checkpoint / "model.safetensors").stat().st_size
    assert llama.num_bytes() > 2 * weights
    full = EngineCache(EngineOptions(engine="llama", max_bytes=llama.num_bytes() + weights // 2))
    full.get(other)
    assert [model["engine"] for model in full.in_memory()] == ["own"]
    full.get(checkpoint, needs_own=False)
    assert [model["engine"] for model in full.in_memory()] == ["llama"]


def test_requests_are_answered_by_the_process(checkpoint: Path, own: Engine, tmp_path: Path) -> None:
    """The real inference process: llama.cpp writes, the own engine keeps to a form, the heartbeat tells of both."""
    with running_broker() as broker, running_inference(broker.url, tmp_path, STUDIO_INFERENCE_ENGINE="llama"):
        greedy = {"messages": HELLO, "sampling": Sampling(temperature=0, max_tokens=20)}
        bound = {"messages": HELLO, "sampling": Sampling(max_tokens=60), "constraint": Constraint(
            kind="json_schema", schema={"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"],
                                        "additionalProperties": False})}
        plain, formed = ask(broker, checkpoint, greedy, bound)
        models = status(broker)["models"]
    expected = own.generate(own.encode_chat(HELLO), SamplingParams(temperature=0, max_tokens=20))
    assert "".join(reply.text for reply in plain) == expected.text
    assert [reply.type for reply in plain if reply.type != "delta"] == ["accepted", "loading", "started", "done"]
    assert (plain[-1].prompt_tokens, plain[-1].completion_tokens) == (expected.prompt_tokens, 20)
    assert json.loads("".join(reply.text for reply in formed)) == {"a": 1}
    assert {model["engine"] for model in models} == {"llama", "own"}


def test_a_setting_that_cannot_hold_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_INFERENCE_ENGINE", "llama")
    assert EngineOptions.from_environment(tmp_path).engine == "llama"
    monkeypatch.setenv("STUDIO_INFERENCE_DEVICE", "cuda")
    with pytest.raises(ValueError, match="answers on the CPU.*Unset STUDIO_INFERENCE_DEVICE"):
        EngineOptions.from_environment(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="xllamacpp, which is llama.cpp, is not installed. Install it"):
        EngineOptions.from_environment(tmp_path)


def test_a_failed_server_ends_its_answers_and_the_model_is_loaded_anew(tmp_path: Path) -> None:
    """Two answers are being written when llama.cpp's server dies: both are told, and nothing is held up. Dropped
    while it answers, the server would wait for answers that nobody reads any more."""
    class Channel:
        wanted = "wanted"

        def __init__(self) -> None:
            self.said: list[Reply] = []

        def send(self, reply: Reply) -> None:
            self.said.append(reply)

        def put(self, pipe: object, reply: Reply) -> None:
            self.said.append(reply)

        def abandoned(self) -> bool:
            return False

    def asked(name: str, tokens: int) -> tuple[GenerationRequest, Channel]:
        return GenerationRequest(id=name, checkpoint=str(checkpoint), messages=HELLO, sampling=Sampling(
            temperature=0, ignore_eos=True, max_tokens=tokens)), Channel()

    def has_ended(channel: Channel) -> bool:
        return bool(channel.said) and channel.said[-1].type in ("done", "error")

    checkpoint = make_checkpoint(tmp_path / "step-00000001-a1", seed=1, positions=16384)
    own = EngineCache(EngineOptions()).get(checkpoint)
    with running_broker() as broker, broker.client() as client:
        client.set("wanted", 1)
        engines = EngineCache(EngineOptions(engine="llama"))
        server = Server(client, engines, lambda: None)
        server.start()
        two = [asked("firsttalk", 16000), asked("secondtalk", 16000)]  # minutes
        for request, channel in two:
            server.take(request, channel)
        wait_for(lambda: all(sum(r.type == "delta" for r in c.said) > 2 for _, c in two), "two answers")
        engine = engines.get(checkpoint, needs_own=False)
        batch = engine.batch
        batch._events.put((batch._calls[0], ConnectionError("llama.cpp's server left an answer unfinished")))
        del engine, batch
        wait_for(lambda: all(has_ended(c) for _, c in two), "both to be told", 15)
        assert [(c.said[-1].type, c.said[-1].kind) for _, c in two] == [("error", "internal")] * 2
        assert "The model server failed (ConnectionError)" in two[0][1].said[-1].message
        request, channel = asked("nexttalk", 20)
        server.take(request, channel)
        wait_for(lambda: has_ended(channel), "the next answer", 60)
        assert channel.said[-1].type == "done" and "loading" in [r.type for r in channel.said]
        expected = own.generate(own.encode_chat(HELLO), SamplingParams(temperature=0, ignore_eos=True, max_tokens=20))
        assert "".join(r.text for r in channel.said) == expected.text
        wait_for(lambda: server.status()["state"] == "ready", "everything to have ended")


def test_a_request_keeps_its_numbers(llama: LlamaEngine) -> None:
    one = llama.batch.add([1, 2], SamplingParams(temperature=0.5, top_k=7, top_p=0.8, min_p=0.05, seed=2**40))
    llama.batch.cancel(one)
    asked = asked_of_llama(one)
    assert (asked["temperature"], asked["top_k"], asked["top_p"], asked["min_p"]) == (0.5, 7, 0.8, 0.05)
    assert asked["n_predict"] == POSITIONS - 2 and 0 <= asked["seed"] < 2**32 - 1
