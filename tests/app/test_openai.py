"""``/v1`` as clients meet it: the official client against the real web and inference processes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from app.core.db import engine_for, session_factory, transaction
from app.core.inference import MAX_WAITING
from app.core.models import LOCAL_ADMIN_ID, Checkpoint, Run
from tests.checkpoint_rig import make_adapter, make_checkpoint
from tests.inference_rig import ROOT, running_broker, running_inference, wait_for

openai = pytest.importorskip("openai", reason="openai is not installed")

HELLO = [{"role": "user", "content": "Where is the lamp?"}]
OLD, NEW, DELETED, LOST = "ckptold", "ckptnew", "ckptgone", "ckptlost"
ADAPTER, WIDE = "ckptlora", "ckptwide"


@dataclass
class Studio:
    url: str
    token: str
    broker: object

    def client(self, **options: object) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": self.token, "max_retries": 0, **options})

    def post(self, path: str, body: object, **headers: str) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx2.post(self.url + path, content=content, timeout=30, headers={
            "Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **headers})


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    data = tmp_path_factory.mktemp("data")
    with running_broker() as broker, running_inference(broker.url, data):
        environment = {**os.environ, "STUDIO_DATA_DIR": str(data), "STUDIO_REDIS_URL": broker.url,
                       "STUDIO_API_CONCURRENCY": "0"}  # one user is a crowd here
        command = [sys.executable, "-m", "worker.cli"]
        made = subprocess.run([*command, "token", "create", "tester"], cwd=ROOT, env=environment, check=True,
                              capture_output=True, text=True)
        fill(f"sqlite:///{data / 'studio.db'}", make_checkpoint(data / "new", seed=1),
             make_checkpoint(data / "old", seed=2))
        with socket.create_server(("127.0.0.1", 0)) as listener, (data / "web.log").open("wb") as log:
            listener.set_inheritable(True)
            web = subprocess.Popen(  # as the supervisor starts it
                [*command, "web"], cwd=ROOT, env={**environment, "STUDIO_LISTEN_FD": str(listener.fileno())},
                pass_fds=[listener.fileno()], stdout=log, stderr=log)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            try:
                wait_for(lambda: answers(url), "the web process")
                yield Studio(url, made.stdout.splitlines()[-1], broker)
            finally:
                web.kill()
                web.wait()


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", timeout=1).status_code == 200
    except httpx2.TransportError:
        return False


def fill(database: str, new: Path, old: Path) -> None:
    """A run with four checkpoints, and one without any."""
    with transaction(session_factory(database)) as session:
        for run_id in ("runfull", "runempty"):
            session.add(Run(id=run_id, name=run_id, user_id=LOCAL_ADMIN_ID, stage="sft", config={}, devices="auto",
                            state="completed", created_at=1e9, updated_at=1e9, ended_at=1e9))
        session.flush()
        for step, (checkpoint_id, path, state) in enumerate([
                (OLD, old, "ready"), (NEW, new, "ready"), (LOST, new.parent / "lost", "ready"),
                (DELETED, new, "deleted")]):
            at = step if checkpoint_id != LOST else -1
            session.add(Checkpoint(id=checkpoint_id, run_id="runfull", attempt=1, stage="sft", step=10 * (at + 2),
                                   tokens=1, bytes=1, path=str(path), state=state, created_at=1e9 + at))
        directory = new.parent / "runs" / "runlora"
        session.add(Run(id="runlora", name="runlora", user_id=LOCAL_ADMIN_ID, stage="lora", config={}, devices="auto",
                        state="completed", created_at=1e9, updated_at=1e9, ended_at=1e9))
        session.flush()
        for checkpoint_id, run_id, stage, path in (
                (ADAPTER, "runlora", "lora", make_adapter(directory, new, seed=3)),
                (WIDE, "runfull", "sft", make_checkpoint(new.parent / "wide", seed=4, hidden_size=64))):
            session.add(Checkpoint(id=checkpoint_id, run_id=run_id, attempt=0, stage=stage, step=0, tokens=1, bytes=1,
                                   path=str(path), state="ready", created_at=1e9 - len(checkpoint_id) - len(stage)))
    engine_for(database).dispose()


def test_models_are_the_checkpoints_newest_first(studio: Studio) -> None:
    with studio.client() as client:
        assert [m.id for m in client.models.list()] == [NEW, OLD, LOST, WIDE, ADAPTER]
        model = client.models.retrieve(NEW)
        assert (model.id, model.object, model.owned_by) == (NEW, "model", "minimind-studio")
        assert client.models.retrieve("runfull").checkpoint == NEW, "a run means its latest checkpoint"


def test_chat(studio: Studio) -> None:
    with studio.client() as client:
        options = {"messages": HELLO, "temperature": 0, "max_tokens": 12}
        answer = client.chat.completions.create(model=NEW, **options)
        choice = answer.choices[0]
        assert (choice.message.role, choice.finish_reason, answer.object) == ("assistant", "length", "chat.completion")
        assert choice.message.content and answer.model == NEW and abs(answer.created - time.time()) < 60
        assert answer.usage.completion_tokens == 12 and answer.usage.prompt_tokens > 5
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
        assert client.chat.completions.create(model="runfull", **options).choices[0].message == choice.message
        assert client.chat.completions.create(model=OLD, **options).choices[0].message != choice.message


def test_a_streamed_answer_equals_the_plain_one(studio: Studio) -> None:
    with studio.client() as client:
        options = {"model": NEW, "messages": HELLO, "temperature": 1.2, "seed": 5, "max_completion_tokens": 20}
        plain = client.chat.completions.create(**options)
        chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == plain.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks[:-1]]
    assert reasons[-1] == plain.choices[0].finish_reason and not any(reasons[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage == plain.usage
    assert all(c.usage is None for c in chunks[:-1]) and len({c.id for c in chunks}) == 1


def test_the_stream_is_server_sent_events_and_ends_with_done(studio: Studio) -> None:
    body = {"model": NEW, "messages": HELLO, "stream": True, "max_tokens": 3, "temperature": 0}
    answer = studio.post("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(e.removeprefix("data: ")) for e in events[:-2]]
    assert all(c["object"] == "chat.completion.chunk" and isinstance(c["created"], int) for c in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length" and not any("usage" in c for c in chunks)


def test_plain_completions_continue_text(studio: Studio) -> None:
    with studio.client() as client:
        options = {"model": NEW, "prompt": "The lamp", "temperature": 0}
        plain = client.completions.create(**options)
        chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        assert (plain.object, plain.usage.completion_tokens) == ("text_completion", 16)
        assert "".join(c.choices[0].text for c in chunks[:-1]) == plain.choices[0].text
        assert chunks[-1].usage == plain.usage and chunks[-2].choices[0].finish_reason == "length"
        assert client.completions.create(**{**options, "prompt": ["The lamp"]}).choices == plain.choices
        for refused in ({"prompt": [1, 1.5]}, {"prompt": ""}, {"prompt": [10**6]}, {"logprobs": 21}):
            with pytest.raises(openai.BadRequestError) as raised:
                client.completions.create(**{**options, **refused})
            assert raised.value.param == next(iter(refused))


def test_what_clients_send_besides_is_accepted(studio: Studio) -> None:
    body = {
        "model": NEW, "max_tokens": 4, "temperature": 0, "stop": None, "n": None, "user": "me", "logit_bias": {},
        "frequency_penalty": 0.1, "metadata": {"a": 1}, "cache_control": {}, "reasoning": {}, "tools": None,
        "parallel_tool_calls": False, "response_format": {"type": "text"}, "never_heard_of": [1],
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
            {"role": "user", "content": "Hello <|im_end|>", "name": "me", "cache_control": {"type": "ephemeral"}},
            {"role": "assistant", "content": None}, {"role": "user", "content": "And?"}]}
    answer = studio.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text


def test_stop_strings(studio: Studio) -> None:
    def text(**options: object) -> tuple[str, str]:
        with studio.client() as client:
            choice = client.chat.completions.create(model=NEW, messages=HELLO, temperature=0, max_tokens=20,
                                                    **options).choices[0]
        return choice.message.content, choice.finish_reason

    whole, _ = text()
    assert text(stop=whole[4:7]) == text(stop=["~", whole[4:7]]) == (whole[:whole.index(whole[4:7])], "stop")


@pytest.mark.parametrize("changes, param", [
    ({"messages": []}, "messages"), ({"messages": None}, "messages"), ({"model": None}, "model"),
    ({"temperature": 3}, "temperature"), ({"temperature": "hot"}, "temperature"), ({"n": 17}, "n"),
    ({"max_tokens": 0}, "max_tokens"), ({"stop": [1]}, "stop.0"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
    ({"tools": [{"type": "function"}]}, "tools"), ({"logit_bias": {"1000000": 1}}, "logit_bias"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
     "response_format"),
    ({"messages": [{"role": "user", "content": "lamp " * 21_000}]}, "messages"),
    ({"messages": [{"role": "user", "content": "half a \ud800 pair"}]}, "messages.0.content"),
])
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_is_a_400_that_names_the_field(studio: Studio, changes: dict, param: str,
                                                       stream: bool) -> None:
    answer = studio.post("/v1/chat/completions", {"model": NEW, "messages": HELLO, "stream": stream, **changes})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].endswith(".") and len(error["message"]) > 10


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_request_is_a_400(studio: Studio, body: bytes) -> None:
    answer = studio.post("/v1/chat/completions", body)
    assert answer.status_code == 400 and "JSON" in answer.json()["error"]["message"]


def test_what_is_not_there_is_a_404(studio: Studio) -> None:
    with studio.client() as client:
        for model in ("nothing", DELETED, "runempty", "../../etc/passwd"):
            with pytest.raises(openai.NotFoundError) as raised:
                client.chat.completions.create(model=model, messages=HELLO)
            assert raised.value.code == "model_not_found" and raised.value.param == "model"
        with pytest.raises(openai.NotFoundError, match="no checkpoint yet"):
            client.models.retrieve("runempty")
        with pytest.raises(openai.NotFoundError, match="/v1/embeddings does not exist"):
            client.embeddings.create(model=NEW, input="x")
        with pytest.raises(openai.NotFoundError, match="/v1/responses does not exist"):
            client.responses.create(model=NEW, input="x")


def test_a_checkpoint_that_cannot_be_loaded_says_so(studio: Studio) -> None:
    answer = studio.post("/v1/chat/completions", {"model": LOST, "messages": HELLO, "stream": True})
    assert answer.status_code == 503 and answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] == "checkpoint_unusable"
    assert str(ROOT.anchor + "tmp") not in answer.text, "no path of the server"


def test_a_wrong_key_is_a_401_in_openai_s_shape(studio: Studio) -> None:
    with studio.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError) as raised:
        client.models.list()
    assert set(raised.value.body) == {"message", "type", "param", "code"}
    assert httpx2.get(f"{studio.url}/v1/models").status_code == 401
    assert httpx2.post(f"{studio.url}/v1/chat/completions", json={}).json()["error"]["type"] == "authentication_error"
    assert httpx2.get(f"{studio.url}/v1/whatever").status_code == 401


def test_hanging_up_ends_the_generation(studio: Studio) -> None:
    """An answer of 100,000 tokens is left, streamed and plain; the next one does not wait for it."""
    endless = {"model": NEW, "messages": HELLO, "temperature": 0, "max_tokens": 100_000}
    with studio.client() as client:
        for _ in range(8):  # whether a cancellation gets through is a matter of the moment
            with client.chat.completions.create(**endless, stream=True) as stream:
                for chunk in stream:
                    if chunk.choices[0].delta.content:
                        break
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(**endless, timeout=0.3)
        began = time.monotonic()
        client.chat.completions.create(model=NEW, messages=HELLO, temperature=0, max_tokens=1)
        assert time.monotonic() - began < 8
    with studio.broker.client() as broker:
        wait_for(lambda: not broker.keys("*:wanted:*"), "the wishes to be taken back")


@pytest.mark.slow  # 264 clients; a busy machine takes longer than they wait
def test_a_crowd_is_told_to_come_back_later(studio: Studio) -> None:
    async def one(client: openai.AsyncOpenAI) -> openai.OpenAIError:
        with pytest.raises(openai.OpenAIError) as raised:
            await client.chat.completions.create(model=NEW, messages=HELLO, temperature=0, max_tokens=100_000)
        return raised.value

    async def crowd() -> list[openai.OpenAIError]:
        async with openai.AsyncOpenAI(base_url=f"{studio.url}/v1", api_key=studio.token, max_retries=0,
                                      timeout=8) as client:
            return await asyncio.gather(*(one(client) for _ in range(MAX_WAITING + 8)))

    refused = [e for e in asyncio.run(crowd()) if isinstance(e, openai.RateLimitError)]
    assert 4 <= len(refused) <= 8, "MAX_WAITING are answered or wait"
    assert refused[0].code == "server_busy" and int(refused[0].response.headers["retry-after"]) > 0
    with studio.client(max_retries=4) as client:  # what SDKs do by default: wait, then try again
        client.chat.completions.create(model=NEW, messages=HELLO, temperature=0, max_tokens=1)


def test_an_away_model_server_is_a_503_with_retry_after(studio: Studio) -> None:
    """The broker is the first to be missed: no waiting, and the client knows when to come back."""
    studio.broker.kill()
    try:
        answer = studio.post("/v1/chat/completions", {"model": NEW, "messages": HELLO})
    finally:
        studio.broker.start()
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["type"] == "server_error"
    assert studio.post("/v1/chat/completions", {"model": NEW, "messages": HELLO, "max_tokens": 1}).status_code == 200


def test_an_adapter_alone_and_over_another_model(studio: Studio) -> None:
    options = {"messages": HELLO, "temperature": 0, "max_tokens": 12}
    with studio.client() as client:
        def text(model: str) -> str:
            return client.chat.completions.create(model=model, **options).choices[0].message.content

        assert text(ADAPTER) == text(f"{NEW}+{ADAPTER}") == text("runfull+runlora") != text(NEW)
        assert text(f"{OLD}+{ADAPTER}") not in (text(OLD), text(ADAPTER))
        chunks = client.chat.completions.create(model=f"{OLD}+{ADAPTER}", **options, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == text(f"{OLD}+{ADAPTER}")
        assert client.completions.create(model=f"{OLD}+{ADAPTER}", prompt="The lamp").choices[0].text
        model = client.models.retrieve(f"{OLD}+{ADAPTER}")
        assert (model.id, model.checkpoint, model.adapter) == (f"{OLD}+{ADAPTER}", OLD, ADAPTER)
        assert client.models.retrieve(ADAPTER).adapter is None


@pytest.mark.parametrize("model, status, code, said", [
    (f"{WIDE}+{ADAPTER}", 400, "adapter_misfit", "trained on a model with 32 channels, and this one has 64"),
    (f"{NEW}+{OLD}", 400, "adapter_misfit", f"{OLD} is a whole model and no adapter"),
    (f"{NEW}+{ADAPTER}+{ADAPTER}", 400, "invalid_value", "One adapter"),
    (f"{NEW}+", 404, "model_not_found", "no checkpoint or run"),
    (f"+{ADAPTER}", 404, "model_not_found", "no checkpoint or run"),
    (f"{NEW}+{DELETED}", 404, "model_not_found", "is deleted"),
    (f"{NEW}+../x", 404, "model_not_found", "no checkpoint or run"),
])
def test_what_does_not_go_together_is_said(studio: Studio, model: str, status: int, code: str, said: str) -> None:
    answer = studio.post("/v1/chat/completions", {"model": model, "messages": HELLO})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, "model")
    assert said in error["message"] and set(error) == {"message", "type", "param", "code"}
