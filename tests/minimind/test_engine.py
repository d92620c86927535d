"""Generation: streamed text equals whole text, the cache changes nothing, and every way to end works."""

from __future__ import annotations

import itertools

import pytest
import torch

from minimind.batching import MAX_CHUNK
from minimind.engine import ContextLengthError, Engine, GenerationError, SamplingParams
from minimind.model import KVCache, MiniMindForCausalLM
from minimind.presets import ModelConfig
from minimind.sampling import StopText, distribution, sample
from minimind.tokenizer import Tokenizer

TEXTS = ["The lamp in the harbour is green.", "李明住在山上的红房子里，他喜欢喝茶。",
         "O barco é azul e o mar está calmo."] * 20
GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = Tokenizer.train(TEXTS, 420)
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=8, intermediate_size=64, max_position_embeddings=2048)
    model = MiniMindForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at initialisation: the choices shall be distinct
            if parameter.dim() == 2:
                parameter.mul_(12)
    return Engine(model.eval(), tokenizer)


@pytest.fixture
def prompt(engine: Engine) -> list[int]:
    return engine.tokenizer.encode("李明 and the lamp é")


def full_logits(engine: Engine, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        output = engine.model(torch.tensor([ids]))
    return output[0]


def test_cached_logits_of_the_model_equal_a_full_forward(engine: Engine, prompt: list[int]) -> None:
    ids = prompt + [70, 81, 92, 103]
    cache = KVCache(engine.model.config, 1, len(ids), engine.device, torch.float32)
    found, start = [], 0
    for part in (prompt[:5], prompt[5:], *([token] for token in ids[len(prompt):])):  # a prompt in two chunks
        with torch.no_grad():
            found.append(engine.model(torch.tensor([part]), cache=cache, start=start)[0])
        start += len(part)
    torch.testing.assert_close(torch.cat(found), full_logits(engine, ids))


def test_greedy_is_the_argmax_of_full_forwards(engine: Engine, prompt: list[int]) -> None:
    expected, ids = [], list(prompt)
    for _ in range(GREEDY.max_tokens):
        token = int(full_logits(engine, ids)[-1].argmax())
        expected.append(token)
        ids.append(token)
        if token in engine.batch.end_ids:
            break
    assert engine.generate(prompt, GREEDY).token_ids == expected


def test_a_long_prompt_is_prefilled_in_chunks(engine: Engine, prompt: list[int]) -> None:
    ids = list(itertools.islice(itertools.cycle(prompt), MAX_CHUNK + 70))
    expected = int(full_logits(engine, ids)[-1].argmax())
    assert engine.generate(ids, SamplingParams(temperature=0, max_tokens=1)).token_ids == [expected]


@pytest.mark.parametrize("seed", range(12))
def test_streamed_text_equals_the_whole_text(engine: Engine, prompt: list[int], seed: int) -> None:
    """Random tokens of a byte-level vocabulary: many begin or break a character."""
    params = SamplingParams(temperature=1.5, top_p=1, max_tokens=40, seed=seed, stop=["ém", "a "])
    deltas = list(engine.stream(prompt, params))
    whole = engine.generate(prompt, params)
    assert "".join(d.text for d in deltas) == whole.text
    assert [d.token_id for d in deltas] == whole.token_ids
    assert deltas[-1].finish_reason == whole.finish_reason and all(d.finish_reason is None for d in deltas[:-1])
    decoded = engine.tokenizer.decode(whole.token_ids)
    assert decoded.startswith(whole.text) if whole.finish_reason == "stop" else decoded == whole.text
    assert whole.prompt_tokens == len(prompt) and whole.completion_tokens == len(whole.token_ids)


def test_every_stop_string_cuts_the_text_where_it_begins(engine: Engine, prompt: list[int]) -> None:
    params = SamplingParams(temperature=0, max_tokens=30)
    text = engine.generate(prompt, params).text
    assert len(text) > 8
    for start, length in itertools.product(range(0, len(text) - 4, 3), (1, 4)):  # most of them span tokens
        stop = text[start:start + length]
        stopped = engine.generate(prompt, SamplingParams(temperature=0, max_tokens=30, stop=["~never~", stop]))
        assert stopped.text == text[:text.index(stop)]
        assert stopped.finish_reason == "stop"


def test_a_beginning_of_a_stop_string_is_held_back_and_then_shown() -> None:
    gate = StopText(["<end>", "nd!"])
    assert gate.push("a<e") == "a"
    assert gate.push("nd") == ""
    assert gate.push("x") == "<endx"
    assert gate.push("<e") == "" and not gate.found
    assert gate.flush() == "<e"
    assert gate.push("b<en") == "b" and gate.push("d!") == "<e" and gate.found


def test_seed_decides_and_the_global_rng_is_left_alone(engine: Engine, prompt: list[int]) -> None:
    params = SamplingParams(temperature=1.2, max_tokens=16, seed=7)
    state = torch.get_rng_state()
    first = engine.generate(prompt, params)
    unseeded = [engine.generate(prompt, SamplingParams(temperature=1.2, max_tokens=16)).token_ids for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert engine.generate(prompt, params) == first
    assert engine.generate(prompt, SamplingParams(temperature=1.2, max_tokens=16, seed=8)).token_ids != first.token_ids
    assert len({tuple(ids) for ids in unseeded}) > 1


def test_the_end_token_ends_the_answer_and_counts(engine: Engine, prompt: list[int]) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=12, seed=2)
    tokens = engine.generate(prompt, params).token_ids
    count = tokens.index(tokens[6]) + 1
    ends = engine.batch.end_ids
    engine.batch.end_ids = {tokens[6]}
    try:
        ended = engine.generate(prompt, params)
    finally:
        engine.batch.end_ids = ends
    assert ended.finish_reason == "stop"
    assert ended.token_ids == tokens[:count] and ended.completion_tokens == count
    assert ended.text == engine.tokenizer.decode(tokens[:count - 1])


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_max_tokens_is_exact(engine: Engine, prompt: list[int], limit: int) -> None:
    generation = engine.generate(prompt, SamplingParams(temperature=0, max_tokens=limit))
    assert (generation.completion_tokens, generation.finish_reason) == (limit, "length")


def test_the_context_limits_prompt_and_answer(engine: Engine, prompt: list[int]) -> None:
    room = engine.batch.max_positions
    engine.batch.max_positions = len(prompt) + 3
    try:
        assert engine.generate(prompt, GREEDY).completion_tokens == 3
        with pytest.raises(ContextLengthError, match=f"The prompt has {len(prompt) + 3} tokens and .* context is"):
            engine.generate(prompt + [70] * 3, GREEDY)
    finally:
        engine.batch.max_positions = room
    with pytest.raises(GenerationError, match="prompt is empty"):
        engine.generate([], GREEDY)


def test_should_stop_is_asked_before_every_token(engine: Engine, prompt: list[int]) -> None:
    deltas = []
    for delta in engine.stream(prompt, GREEDY, lambda: len(deltas) >= 5):
        deltas.append(delta)
    assert [d.token_id is None for d in deltas] == [False] * 5 + [True]
    assert deltas[-1].finish_reason == "cancelled"
    assert engine.generate(prompt, GREEDY, lambda: True).completion_tokens == 0


def test_top_p_is_cut_inside_top_k() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))
    ids, probabilities = distribution(logits, SamplingParams(temperature=1, top_k=3, top_p=0.75))
    assert ids.tolist() == [1, 3]  # of the three kept: 4/9, 3/9, 2/9; two reach 0.75
    torch.testing.assert_close(probabilities, torch.tensor([4 / 7, 3 / 7]))
    ids, _ = distribution(logits, SamplingParams(temperature=1, top_p=1e-6))
    assert ids.tolist() == [1]
    _, flat = distribution(logits, SamplingParams(temperature=1, top_p=1))
    torch.testing.assert_close(flat, torch.tensor([0.4, 0.3, 0.2, 0.1]))


def test_samples_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.log(torch.tensor([0.1, 0.6, 0.3]))
    draws = torch.bincount(torch.tensor([sample(logits, SamplingParams(temperature=1, top_p=1), generator)
                                         for _ in range(4000)]), minlength=3) / 4000
    torch.testing.assert_close(draws, torch.tensor([0.1, 0.6, 0.3]), atol=0.03, rtol=0)


def test_a_diverged_model_is_a_clear_error() -> None:
    for logits in (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")])):
        with pytest.raises(GenerationError, match="not finite"):
            sample(logits, SamplingParams(), torch.Generator())


@pytest.mark.parametrize("options, field", [
    ({"temperature": -1}, "temperature"), ({"temperature": float("nan")}, "temperature"), ({"top_p": 0}, "top_p"),
    ({"top_k": -1}, "top_k"), ({"max_tokens": -1}, "max_tokens"), ({"min_p": 1.5}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"), ({"frequency_penalty": float("inf")}, "frequency_penalty"),
    ({"logit_bias": {3: float("nan")}}, "logit_bias"), ({"stop": [""]}, "stop"),
])
def test_wrong_options_are_named(options: dict, field: str) -> None:
    with pytest.raises(GenerationError) as raised:
        SamplingParams(**options)
    assert raised.value.field == field
