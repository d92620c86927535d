"""The inference process as it runs: real process, real broker, real checkpoints; signals and damage included."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from app.chat.service import InferenceClient, InferenceError
from app.core import inference as protocol
from app.core.inference import GenerationRequest, Keys, Reply, Sampling
from tests.checkpoint_rig import make_adapter, make_checkpoint
from tests.inference_rig import Broker, InferenceServer, running_broker, running_inference, wait_for

KEYS = Keys()
HELLO = [{"role": "user", "content": "Where is the lamp?"}]
LONG = Sampling(temperature=0, max_tokens=100_000)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("run") / "step-00000001-a1", seed=1)


@pytest.fixture(scope="module")
def server(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceServer]:
    with running_inference(broker.url, tmp_path_factory.mktemp("inference"), STUDIO_INFERENCE_MODELS="2") as server:
        yield server


def ask(broker: Broker, checkpoint: Path, **options: object) -> list[Reply]:
    """All replies to one request."""
    async def collect() -> list[Reply]:
        client = InferenceClient(broker.url)
        try:
            options.setdefault("sampling", Sampling(temperature=0, max_tokens=12))
            if "prompt" not in options:
                options.setdefault("messages", HELLO)
            return [reply async for reply in client.replies(str(checkpoint), **options)]
        finally:
            await client.close()

    return asyncio.run(collect())


def status(broker: Broker) -> dict:
    with broker.client() as client:
        return json.loads(client.get(KEYS.heartbeat) or "{}")


def test_a_conversation_is_answered_in_order(broker: Broker, server: InferenceServer, checkpoint: Path) -> None:
    first, second = ask(broker, checkpoint), ask(broker, checkpoint)
    kinds = [r.type for r in first]
    assert kinds[:3] == ["accepted", "loading", "started"] and kinds[-1] == "done"
    assert set(kinds[3:-1]) == {"delta"}
    assert [r.type for r in second][:2] == ["accepted", "started"], "the model is still in memory"
    assert "".join(r.text for r in first) == "".join(r.text for r in second) != ""
    assert (first[-1].finish_reason, first[-1].completion_tokens) == ("length", 12)
    assert first[-1].prompt_tokens == first[2].prompt_tokens > 5


def test_raw_text_is_continued_with_nothing_added(broker: Broker, server: InferenceServer, checkpoint: Path) -> None:
    from minimind.tokenizer import Tokenizer

    replies = ask(broker, checkpoint, prompt="The lamp")
    assert replies[-1].prompt_tokens == len(Tokenizer.load(checkpoint).encode("The lamp"))


def test_seed_and_stop_reach_the_engine(broker: Broker, server: InferenceServer, checkpoint: Path) -> None:
    def text(**options: object) -> str:
        return "".join(r.text for r in ask(broker, checkpoint, sampling=Sampling(max_tokens=12, **options)))

    assert text(temperature=1.5, seed=3) == text(temperature=1.5, seed=3) != text(temperature=1.5, seed=4)
    whole = text(temperature=0)
    assert text(temperature=0, stop=[whole[3:6]]) == whole[:whole.index(whole[3:6])]


def test_leaving_ends_the_generation_within_a_token(broker: Broker, server: InferenceServer, checkpoint: Path) -> None:
    async def leave_early() -> None:
        client = InferenceClient(broker.url)
        replies: AsyncGenerator[Reply, None] = client.replies(str(checkpoint), messages=HELLO, sampling=LONG)
        async for reply in replies:
            if reply.type == "delta":
                break
        await replies.aclose()
        await client.close()

    asyncio.run(leave_early())
    began = time.monotonic()
    assert ask(broker, checkpoint, sampling=Sampling(temperature=0, max_tokens=1))[-1].type == "done"
    assert time.monotonic() - began < 8, "the abandoned answer of 100,000 tokens did not hold the next one up"
    with broker.client() as client:
        wait_for(lambda: not client.keys("*:wanted:*"), "the wishes to be taken back")


def test_an_asker_that_died_is_noticed(broker: Broker, server: InferenceServer, checkpoint: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody deletes or renews the wish: it expires, and the model is free again."""
    request = GenerationRequest(id="deadasker", checkpoint=str(checkpoint), messages=HELLO, sampling=LONG)
    with broker.client() as client:
        client.set(KEYS.wanted(request.id), 1, px=400)
        client.xadd(KEYS.requests, request.fields())
        last = wait_for(lambda: [e for _, e in client.xrevrange(KEYS.reply(request.id), count=1)
                                 if "cancelled" in e["json"]], "the generation to be cancelled")
        assert json.loads(last[0]["json"])["type"] == "done"
        assert 0 < client.ttl(KEYS.reply(request.id)) <= protocol.REPLY_TTL_S


def test_a_request_that_nobody_wants_any_more_is_ignored(broker: Broker, server: InferenceServer,
                                                         checkpoint: Path) -> None:
    late = GenerationRequest(id="latecomer", checkpoint=str(checkpoint), messages=HELLO)
    with broker.client() as client:
        client.xadd(KEYS.requests, late.fields())
    ask(broker, checkpoint)
    with broker.client() as client:
        assert not client.exists(KEYS.reply(late.id))
        assert client.xlen(KEYS.requests) == 0


@pytest.mark.parametrize("fields", [
    {"json": "not json"}, {"other": "x"}, {"json": "[]"}, {"json": '{"id": "../../etc", "checkpoint": "/"}'},
    {"json": '{"id": "abcdefgh", "checkpoint": "/x", "messages": [], "pickle": "gASVKg=="}'},
    {"json": '{"id": "abcdefgh", "checkpoint": "/x"}'},
])
def test_a_message_that_is_no_request_is_rejected_and_logged(broker: Broker, server: InferenceServer, checkpoint: Path,
                                                            fields: dict) -> None:
    size = server.log.stat().st_size
    with broker.client() as client:
        client.xadd(KEYS.requests, fields)
    assert ask(broker, checkpoint)[-1].type == "done"
    assert "request_rejected" in server.log.read_bytes()[size:].decode()


def test_a_bad_checkpoint_is_a_sentence_and_not_the_end(broker: Broker, server: InferenceServer, checkpoint: Path,
                                                        tmp_path: Path) -> None:
    cut = shutil.copytree(checkpoint, tmp_path / "cut")
    with (cut / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    no_model = tmp_path / "no-model"
    no_model.mkdir()
    (no_model / "manifest.json").write_text("{}")
    for path in (tmp_path / "missing", cut, no_model, Path("/etc/passwd")):
        with pytest.raises(InferenceError) as raised:
            ask(broker, path)
        assert raised.value.kind == "checkpoint"
        assert str(tmp_path) not in raised.value.message and raised.value.message.endswith(".")
    assert ask(broker, checkpoint)[-1].type == "done"


def test_too_long_a_prompt_is_a_sentence(broker: Broker, server: InferenceServer, checkpoint: Path) -> None:
    with pytest.raises(InferenceError, match="tokens and this model's context is 20000") as raised:
        ask(broker, checkpoint, prompt="lamp " * 21_000)
    assert raised.value.kind == "context_length"


def test_a_full_queue_answers_busy(broker: Broker, server: InferenceServer, checkpoint: Path) -> None:
    """The process takes what it can hold and refuses the rest at once."""
    with broker.client() as client:
        ids = [f"crowd-{i:03}" for i in range(protocol.MAX_WAITING + 6)]
        for request_id in ids:
            client.set(KEYS.wanted(request_id), 1, px=3000)
            request = GenerationRequest(id=request_id, checkpoint=str(checkpoint), messages=HELLO, sampling=LONG)
            client.xadd(KEYS.requests, request.fields())

        def refused() -> list[dict]:
            heard = [json.loads(e["json"]) for i in ids for _, e in client.xrange(KEYS.reply(i), count=1)]
            return [r for r in heard if r.get("kind") == "busy"]

        busy = wait_for(lambda: len(refused()) >= 4 and refused(), "refusals")
        assert f"{protocol.MAX_WAITING} requests are with" in busy[0]["message"]
        client.delete(*map(KEYS.wanted, ids))

    def answered() -> bool:
        try:
            return ask(broker, checkpoint)[-1].type == "done"
        except InferenceError as error:
            assert error.kind == "busy"
            return False

    wait_for(answered, "an answer once the crowd has left")


def test_models_beyond_the_limit_leave_memory_and_come_back(broker: Broker, server: InferenceServer, checkpoint: Path,
                                                            tmp_path: Path) -> None:
    others = [make_checkpoint(tmp_path / f"other-{i}", seed=i + 2) for i in range(2)]
    texts = ["".join(r.text for r in ask(broker, p)) for p in (checkpoint, *others)]
    assert len(set(texts)) == 3
    again = ask(broker, checkpoint)
    assert "loading" in [r.type for r in again], "it was the least recently used"
    assert "".join(r.text for r in again) == texts[0]
    assert "loading" not in [r.type for r in ask(broker, others[1])]


def test_a_broker_restart_is_survived(checkpoint: Path, tmp_path: Path) -> None:
    with running_broker() as broker, running_inference(broker.url, tmp_path) as server:
        assert ask(broker, checkpoint)[-1].type == "done"
        broker.kill()
        with pytest.raises(InferenceError, match="broker is away") as raised:
            ask(broker, checkpoint)
        assert raised.value.kind == "unavailable" and raised.value.headers["Retry-After"]
        broker.start()  # empty: it keeps nothing
        assert ask(broker, checkpoint)[-1].type == "done"
        assert server.process.poll() is None


def test_a_killed_process_is_noticed_and_its_successor_answers(checkpoint: Path, tmp_path: Path) -> None:
    with running_broker() as broker, running_inference(broker.url, tmp_path) as server:
        async def interrupted() -> str:
            client = InferenceClient(broker.url)
            try:
                async for reply in client.replies(str(checkpoint), messages=HELLO, sampling=LONG):
                    if reply.type == "delta" and server.process.poll() is None:
                        server.kill()
                        server.start()
            except InferenceError as error:
                return error.message
            finally:
                await client.close()
            return "it ended"

        began = time.monotonic()
        assert asyncio.run(interrupted()) == "The model server was restarted during this request. Try again."
        assert time.monotonic() - began < 30
        assert ask(broker, checkpoint)[-1].type == "done"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=2) == 0


def test_it_is_there_before_torch_is_loaded(tmp_path: Path) -> None:
    with running_broker() as broker:
        began = time.monotonic()
        with running_inference(broker.url, tmp_path) as server:
            wait_for(lambda: status(broker), "a sign of life")
            assert time.monotonic() - began < 20
            assert status(broker)["pid"] == server.process.pid and status(broker)["state"] == "ready"
            assert "torch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


# -- adapters -----------------------------------------------------------------------------------------------------


def merged_text(base: Path, adapter: Path) -> str:
    """What base and adapter say as one model, its matrices written out by another way of the core."""
    from minimind.engine import Engine, SamplingParams

    engine = Engine.from_checkpoint(base, "cpu", adapter)
    return engine.generate(engine.encode_chat(HELLO), SamplingParams(temperature=0, max_tokens=12)).text


def test_an_adapter_over_its_own_base_and_over_another(checkpoint: Path, tmp_path: Path) -> None:
    """Its own base is the copy that its run keeps; one model in memory serves both ways and every adapter over it."""
    first, second = (make_adapter(tmp_path / f"run{seed}", checkpoint, seed=seed) for seed in (1, 2))
    other = make_checkpoint(tmp_path / "other", seed=7)
    expected = {(c, a): merged_text(c, a) for c in (checkpoint, other) for a in (first, second)}
    with running_broker() as broker, running_inference(broker.url, tmp_path, STUDIO_INFERENCE_MODELS="1") as server:
        def text(path: Path, adapter: Path | None = None, *, loads: bool = False) -> str:
            replies = ask(broker, path, adapter=adapter and str(adapter))
            assert ("loading" in [r.type for r in replies]) == loads
            return "".join(r.text for r in replies)

        plain = text(checkpoint, loads=True)
        assert text(first) == text(checkpoint, first) == expected[checkpoint, first]
        assert text(second) == expected[checkpoint, second]
        assert text(checkpoint) == plain, "the base is not changed by what lies over it"
        assert text(other, second, loads=True) == expected[other, second]
        assert text(second, loads=True) == expected[checkpoint, second], "the copy that its run keeps"
        assert text(first) == expected[checkpoint, first], "the same model below"
        assert text(first, second, loads=True) == merged_text(first, second), "a model with an adapter is a base too"
        assert len({plain, *expected.values()}) == 5
        assert server.process.poll() is None


def test_what_does_not_go_together_is_a_sentence(broker: Broker, server: InferenceServer, checkpoint: Path,
                                                 tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "run", checkpoint, seed=1)
    wide = make_checkpoint(tmp_path / "wide", seed=3, hidden_size=64)
    for path, over, said in ((wide, adapter, "has the shape"), (checkpoint, wide, "is a whole model"),
                             (checkpoint, tmp_path / "nothing", "not on this machine's disk")):
        with pytest.raises(InferenceError, match=said) as raised:
            ask(broker, path, adapter=str(over))
        assert raised.value.kind == "checkpoint" and str(tmp_path) not in raised.value.message
    shutil.rmtree(tmp_path / "run" / "base")
    assert ask(broker, adapter)[-1].type == "done", "another copy of its base is in memory"
    with running_inference(broker.url, tmp_path), pytest.raises(InferenceError, match="base is gone") as raised:
        server.kill()
        ask(broker, adapter)
    assert str(tmp_path) not in raised.value.message
    server.start()
