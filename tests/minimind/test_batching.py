"""Many requests at once: each gets what it would get alone; prompts are shared, people leave, nobody waits long."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from minimind.batching import MIN_CHUNK, Answering, Batch, Delta
from minimind.engine import ContextLengthError, Engine, GenerationError, SamplingParams
from minimind.model import MiniMindForCausalLM
from minimind.prefixes import MIN_TOKENS, Prefixes
from minimind.presets import ModelConfig
from minimind.tokenizer import Tokenizer

TEXTS = ["The lamp in the harbour is green.", "李明住在山上的红房子里，他喜欢喝茶。"] * 20
#: two logits this near may swap when sums are rounded otherwise
TIE = 1e-4


@pytest.fixture(scope="module")
def model() -> tuple[MiniMindForCausalLM, Tokenizer]:
    tokenizer = Tokenizer.train(TEXTS, 420)
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=8, intermediate_size=64, max_position_embeddings=2048)
    made = MiniMindForCausalLM(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.mul_(12)
    return made.eval(), tokenizer


@pytest.fixture
def engine(model: tuple[MiniMindForCausalLM, Tokenizer]) -> Engine:
    return Engine(*model, prefix_bytes=1 << 20)


def prompts(count: int, seed: int = 0, longest: int = 90) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(5, 360) for _ in range(chance.randrange(1, longest))] for _ in range(count)]


def run(batch: Batch, until: object = None) -> dict[Answering, list[Delta]]:
    told: dict[Answering, list[Delta]] = {}
    while batch.is_busy:
        for one, delta in batch.step():
            told.setdefault(one, []).append(delta)
    return told


def alone(engine: Engine, prompt: list[int], params: SamplingParams) -> list[int]:
    return Engine(engine.model, engine.tokenizer).generate(prompt, params).token_ids


def test_32_mixed_requests_equal_32_alone(engine: Engine) -> None:
    """Unequal prompts and lengths, some with penalties or a stop string; they differ at most where two logits tie."""
    chance = random.Random(5)
    asked = []
    for number, prompt in enumerate(prompts(32)):
        options = {"repetition_penalty": 1.3} if number % 5 == 1 else {"frequency_penalty": 0.7} if number % 5 == 2 \
            else {"stop": ["e"]} if number % 5 == 3 else {}
        asked.append((prompt, SamplingParams(temperature=0, max_tokens=chance.randrange(1, 40), **options)))
    made = engine.generate_many([p for p, _ in asked], [s for _, s in asked])
    ties = 0
    for (prompt, params), found in zip(asked, made):
        expected = alone(engine, prompt, params)
        if found.token_ids == expected:
            continue
        at = next(i for i, (a, b) in enumerate(zip(found.token_ids, expected)) if a != b)
        with torch.no_grad():
            logits = engine.model(torch.tensor([prompt + expected[:at]]))[0, -1]
        assert logits.topk(2).values.diff().abs() < TIE, "another token, and no tie"
        ties += 1
    assert ties < 4
    assert {g.finish_reason for g in made} >= {"length", "stop"}


def test_seeds_reproduce_whoever_else_is_there(engine: Engine) -> None:
    params = [SamplingParams(temperature=1.0, max_tokens=20, seed=n) for n in range(8)]
    many = prompts(8, seed=2)
    first = engine.generate_many(many, params)
    again = engine.generate_many(many[::-1], params[::-1])[::-1]
    assert [g.token_ids for g in first] == [g.token_ids for g in again]
    assert [g.token_ids for g in first] == [alone(engine, p, s) for p, s in zip(many, params)]


def test_they_join_and_leave_between_steps(engine: Engine) -> None:
    batch, long = engine.batch, SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
    first = batch.add(prompts(1)[0], long)
    while not first.completion_tokens:
        batch.step()
    second = batch.add(prompts(1, seed=1)[0], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    told = [one for _ in range(6) for one, _ in batch.step()]
    assert second in told and second.finish_reason == "length" and first.finish_reason is None
    batch.cancel(first)
    assert first.finish_reason == "cancelled" and not batch.is_busy and batch.step() == []


def test_a_long_prompt_does_not_silence_the_others(engine: Engine) -> None:
    """While it is read, chunk by chunk, everybody else gets a token with each step."""
    batch = engine.batch
    talking = batch.add([7, 8, 9], SamplingParams(temperature=0, max_tokens=2000, ignore_eos=True))
    while not talking.completion_tokens:
        batch.step()
    batch._tokens_per_s, batch._step_s = 1000.0, 0.004  # as on a slow machine
    batch._chunk = lambda: MIN_CHUNK
    reading = batch.add([5 + i % 300 for i in range(900)], SamplingParams(temperature=0, max_tokens=2))
    steps = 0
    while not reading.completion_tokens:
        before = talking.completion_tokens
        batch.step()
        assert talking.completion_tokens == before + 1
        steps += 1
    assert steps >= 900 // (2 * MIN_CHUNK)
    batch.cancel(talking)


def test_chunks_follow_the_measured_speed(engine: Engine) -> None:
    batch = engine.batch
    batch._tokens_per_s = 1000.0
    assert batch._chunk() == 80  # tokens in 80 ms
    batch._step_s = 0.004
    talking = batch.add([7, 8, 9], SamplingParams(temperature=0, max_tokens=5))
    batch.step()
    batch._tokens_per_s, batch._step_s = 1000.0, 0.005
    assert batch._chunk() == 20  # and no more than four steps of those who wait for a token
    batch.cancel(talking)


def test_the_next_turn_reads_only_what_is_new(engine: Engine) -> None:
    turn = prompts(1, longest=200)[0] + [11] * 20
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    first = engine.generate(turn, greedy)
    following = turn + first.token_ids + [30, 31, 32]
    answering = engine.batch.add(following, greedy)
    told = [d for deltas in run(engine.batch).values() for d in deltas]
    assert answering.cached_tokens == len(turn) + len(first.token_ids) - 1  # the last token was never read
    assert [d.token_id for d in told] == alone(engine, following, greedy)


def test_one_beginning_serves_several_at_once(engine: Engine) -> None:
    """A system prompt that somebody is still using is copied, and what follows it does not get mixed up."""
    system, params = prompts(1, longest=100)[0] + [9] * 30, SamplingParams(temperature=0, max_tokens=8)
    engine.generate(system, SamplingParams(max_tokens=0))
    asked = [engine.batch.add(system + [40 + n, 41 + n], params) for n in range(5)]
    told = run(engine.batch)
    assert all(one.cached_tokens >= len(system) - 1 for one in asked)
    for number, one in enumerate(asked):
        found = [d.token_id for d in told[one]]
        assert found == alone(engine, system + [40 + number, 41 + number], params)


def test_a_prompt_that_is_known_in_full_is_answered_from_its_last_token(engine: Engine) -> None:
    prompt, params = [20 + i for i in range(30)], SamplingParams(temperature=0, max_tokens=6)
    expected = engine.generate(prompt, params).token_ids
    answering = engine.batch.add(prompt, params)
    told = run(engine.batch)[answering]
    assert answering.cached_tokens == len(prompt) - 1 and [d.token_id for d in told] == expected


def test_prefixes_stay_within_their_memory(engine: Engine) -> None:
    kept, sizes = Prefixes(max_bytes=200_000), []
    for prompt in prompts(40, longest=200):
        cache = engine.decoder.new_cache()
        cache.reserve(len(prompt))
        cache.length = len(prompt)
        kept.keep(prompt, cache)
        sizes.append(kept.num_bytes())
    assert 100_000 < max(sizes) <= 200_000
    assert kept.take([1, 2, 3]) is None
    last = next(p for p in reversed(prompts(40, longest=200)) if len(p) >= MIN_TOKENS)
    assert kept.take(last + [1]).length == len(last)
    assert kept.take(last + [1]) is None, "it changed hands"


class Cached:
    """As much of a cache as ``Prefixes`` looks at."""

    def __init__(self, length: int, whose: tuple[int, ...] = ()):
        self.length, self.whose = length, whose

    def num_bytes(self) -> int:
        return self.length

    def copy(self, length: int) -> Cached:
        return Cached(length, self.whose)


def test_the_longest_known_beginning_is_found() -> None:
    """Among thousands, as by looking at each; nothing is kept twice."""
    rng, kept = random.Random(7), Prefixes(max_bytes=10**9)
    known: list[tuple[int, ...]] = []

    def beginning(a: Sequence[int], b: Sequence[int]) -> int:
        return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))

    for _ in range(1200):
        base = rng.choice(known) if known and rng.random() < 0.5 else ()
        ids = base[:rng.randrange(len(base) + 1)] + tuple(rng.randrange(300) for _ in range(rng.randrange(30)))
        if rng.random() < 0.7:
            kept.keep(ids, Cached(len(ids), ids))
            if len(ids) >= MIN_TOKENS and not any(one[:len(ids)] == ids for one in known):
                known = [one for one in known if ids[:len(one)] != one] + [ids]
        else:
            longest = max((beginning(one, ids) for one in known), default=0)
            found = kept.take(ids)
            assert (found.length if found else 0) == (longest if longest >= MIN_TOKENS else 0)
            if found:
                assert found.whose[:longest] == ids[:longest]
            known = [one for one in known if found is None or one != found.whose or len(one) > longest]
        assert kept.num_bytes() == sum(map(len, known))
    assert len(known) > 200
    kept.clear()
    assert kept.num_bytes() == 0 and kept.take(known[0]) is None


def test_the_one_that_served_the_longest_ago_goes_first() -> None:
    kept, one, two, three = Prefixes(max_bytes=40), [1] * 20, [2] * 20, [3] * 20
    kept.keep(one, Cached(20))
    kept.keep(two, Cached(20))
    assert kept.take(one[:15] + [9]).length == 15
    kept.keep(three, Cached(20))
    assert kept.take(two) is None and kept.take(one).length == 20 and kept.take(three).length == 20


def test_logprobs_are_those_of_the_unmodified_softmax(engine: Engine) -> None:
    prompt = prompts(1, seed=3)[0] + [12]
    params = SamplingParams(temperature=2.0, top_p=0.5, frequency_penalty=1, max_tokens=10, seed=1, ignore_eos=True)
    answering = engine.batch.add(prompt, params, logprobs=4, echo=True)
    told = run(engine.batch)[answering]
    ids = prompt + [d.token_id for d in told]
    with torch.no_grad():
        expected = torch.log_softmax(engine.model(torch.tensor([ids]))[0], dim=-1)
    found = answering.prompt_logprobs + [d.logprob for d in told]
    assert [f.token_id for f in found] == ids and found[0].logprob is None and found[0].top == []
    for position, one in enumerate(found[1:], 1):
        assert one.logprob == pytest.approx(float(expected[position - 1, ids[position]]), abs=1e-4)
        best = expected[position - 1].topk(4)
        assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_no_tokens_may_be_asked_for(engine: Engine) -> None:
    answering = engine.batch.add([5, 6, 7], SamplingParams(max_tokens=0), logprobs=0, echo=True)
    told = run(engine.batch)[answering]
    assert told == [Delta("", None, "length")] and len(answering.prompt_logprobs) == 3
    assert answering.completion_tokens == 0


@pytest.mark.parametrize("prompt, options, field", [
    ([1, 10_000], {}, "prompt"), ([-1], {}, "prompt"), ([5], {"logit_bias": {10_000: 1.0}}, "logit_bias")])
def test_ids_of_another_vocabulary_are_refused(engine: Engine, prompt: list[int], options: dict, field: str) -> None:
    with pytest.raises(GenerationError) as raised:
        engine.batch.add(prompt, SamplingParams(**options))
    assert raised.value.field == field and not engine.batch.is_busy


def test_a_full_context_ends_the_answer(engine: Engine) -> None:
    engine.batch.max_positions = 20
    long = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    made = engine.generate([5 + i for i in range(15)], long)
    assert (made.completion_tokens, made.finish_reason) == (5, "length")
    with pytest.raises(ContextLengthError):
        engine.generate([5] * 20, long)
    assert engine.generate([5] * 20, SamplingParams(max_tokens=0)).finish_reason == "length"


def test_a_model_that_diverged_fails_its_own_request_alone(engine: Engine) -> None:
    bad = Engine(engine.model, engine.tokenizer)
    answering = bad.batch.add([5, 6], SamplingParams(temperature=0))
    bad.decoder.logits = lambda hidden: torch.full((len(hidden), 365), float("nan"))
    told = run(bad.batch)[answering]
    assert "not finite" in str(answering.error) and told[-1].finish_reason == "cancelled"
    assert not bad.batch.is_busy


def test_what_does_not_fit_into_memory_waits(engine: Engine) -> None:
    """One is always let in, however large; the others when there is room."""
    batch = engine.batch
    batch.max_cache_bytes = 150 * engine.decoder.cache_bytes_per_token
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    asked = [batch.add([9 + n] * 60, params) for n in range(4)]
    most, told = 0, 0
    while batch.is_busy:
        told += len(batch.step())
        most = max(most, len(batch.active))
    assert most == 2 and told == 4 * 40 and all(one.finish_reason == "length" for one in asked)
    big = batch.add([9] * 400, params)
    batch.step()
    assert batch.active == [big]
