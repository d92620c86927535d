"""Where keys and values stand: own tensors, and slots side by side, whose members come, grow and leave."""

from __future__ import annotations

import random

import pytest
import torch

from minimind.caches import CACHE_STEP, SMALLEST_SLOT, SequenceCache, SlotGroup, Slots, slot_capacity
from minimind.decoding import Decoder, Piece
from minimind.model import MiniMindForCausalLM
from minimind.presets import ModelConfig

SHAPE = ModelConfig(vocab_size=97, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
                    head_dim=8, intermediate_size=64, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(MiniMindForCausalLM(SHAPE).eval(), owns=True)


def cache_of(length: int, value: float) -> SequenceCache:
    cache = SequenceCache(SHAPE, torch.device("cpu"), torch.float32)
    cache.reserve(length)
    cache.length = length
    for layer in cache.layers:
        layer[:, :, :length] = value
    return cache


def test_a_cache_is_as_large_as_its_sequence() -> None:
    cache = SequenceCache(SHAPE, torch.device("cpu"), torch.float32)
    assert cache.num_bytes() == 0
    cache.reserve(10)
    assert cache.capacity == CACHE_STEP
    cache.length = 10
    for number, layer in enumerate(cache.layers):
        layer[:, :, :10] = number + 1
    cache.reserve(CACHE_STEP + 1)
    assert CACHE_STEP < cache.capacity <= 3 * CACHE_STEP
    assert all((layer[:, :, :10] == number + 1).all() for number, layer in enumerate(cache.layers))
    part = cache.copy(4)
    cache.layers[0][:] = -1
    assert part.length == 4 and part.capacity == 4 and (part.layers[0] == 1).all()


def test_slots_waste_less_than_half() -> None:
    sizes = [slot_capacity(n) for n in range(1, 5000)]
    assert sizes[0] == SMALLEST_SLOT and sorted(set(sizes))[:6] == [128, 192, 256, 384, 512, 768]
    assert all(n <= size for n, size in enumerate(sizes, 1))
    assert all(size <= 1.5 * n for n, size in enumerate(sizes, 1) if n > SMALLEST_SLOT)


def test_who_leaves_gives_the_slot_to_the_last_and_the_memory_back() -> None:
    slots = Slots(SHAPE, torch.device("cpu"), torch.float32)
    caches = [cache_of(20 + n, n + 1) for n in range(9)]
    slots.hold(caches)
    group = caches[0].group
    assert group is not None and group.members == caches and [c.slot for c in caches] == list(range(9))
    most = slots.num_bytes()
    first = slots.released(caches[0])
    assert first.group is None and first.length == 20 and (first.layers[1] == 1).all()
    assert caches[8].slot == 0 and group.members[0] is caches[8]
    for number in range(1, 9):
        held = caches[number]
        assert (held.layers[0][:, :, :held.length] == number + 1).all(), "its own numbers, wherever they went"
        slots.released(held)
    assert slots.num_bytes() == 0 < most and not slots.groups


def test_a_longer_one_moves_to_larger_slots() -> None:
    slots = Slots(SHAPE, torch.device("cpu"), torch.float32)
    short, long = cache_of(30, 1), cache_of(128, 2)
    long.length = 127
    slots.hold([short, long])
    assert short.group is long.group
    long.length = 128
    slots.hold([short, long])
    assert short.group is not long.group and long.capacity == 192
    long.length = 127  # as far as it was copied
    assert (long.layers[0][:, :, :127] == 2).all() and (short.layers[0][:, :, :30] == 1).all()


def test_a_crowd_that_crosses_a_border_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(SHAPE, torch.device("cpu"), torch.float32)
    crowd, others = [cache_of(127, n + 1) for n in range(20)], [cache_of(30, n + 50) for n in range(7)]
    slots.hold([*crowd[:10], *others, *crowd[10:]])
    for cache in crowd:
        cache.length = 128
    sizes = []
    resize = SlotGroup._resize
    monkeypatch.setattr(SlotGroup, "_resize", lambda group, count: (sizes.append(count), resize(group, count)))
    slots.hold([*crowd, *others])
    assert sizes == [0, 20, 7], "one new group, made whole at once, and those who stay close the ranks"
    assert slots.free_bytes() == 0
    for number, cache in enumerate(crowd):
        assert cache.capacity == 192 and (cache.layers[1][:, :, :127] == number + 1).all()
    for number, cache in enumerate(others):
        assert cache.slot == number and (cache.layers[1][:, :, :30] == number + 50).all()
        assert (cache.layers[1][:, :, 30:] == 0).all()


def test_what_was_not_a_number_does_not_stay_for_the_next() -> None:
    """What a mask hides is still multiplied with 0."""
    slots = Slots(SHAPE, torch.device("cpu"), torch.float32)
    broken, sound = cache_of(60, float("nan")), cache_of(10, 1)
    slots.hold([broken])
    slots.hold([sound])
    slots.released(broken)
    assert sound.group is not None
    assert all(layer.isfinite().all() for layer in sound.group.layers)


def test_side_by_side_gives_the_same_logits_as_alone(decoder: Decoder) -> None:
    """Of unequal lengths, in two groups, while they come, grow over the borders of slots and leave."""
    chance = random.Random(3)
    slots = decoder.new_slots()
    talks = [[chance.randrange(97) for _ in range(length)] for length in (3, 125, 60, 190, 7, 250)]
    pairs = []
    for number, ids in enumerate(talks):
        caches = decoder.new_cache(), decoder.new_cache()
        for cache in caches:
            decoder.hidden([Piece(cache, ids)])
        pairs.append(caches)
        if number < 2:
            continue
        for _ in range(8):
            if chance.random() < 0.15 and len(pairs) > 2:
                slots.released(pairs.pop(chance.randrange(len(pairs)))[1])
            slots.hold(held for _, held in pairs)
            pairs.sort(key=lambda pair: (pair[1].capacity, pair[1].slot))
            ids = [chance.randrange(97) for _ in pairs]
            expected = torch.cat([decoder.hidden([Piece(own, [i])]) for (own, _), i in zip(pairs, ids)])
            together = decoder.hidden([Piece(held, [i]) for (_, held), i in zip(pairs, ids)])
            torch.testing.assert_close(together, expected, atol=2e-5, rtol=0)
    assert len(slots.groups) >= 2


def test_a_prompt_is_read_beside_those_that_write(decoder: Decoder) -> None:
    slots = decoder.new_slots()
    writing, alone = [decoder.new_cache() for _ in range(2)], [decoder.new_cache() for _ in range(2)]
    for held, own, ids in zip(writing, alone, ([1, 2, 3], [4, 5, 6, 7])):
        decoder.hidden([Piece(held, ids)])
        decoder.hidden([Piece(own, ids)])
        slots.hold([held])
    reading, own = decoder.new_cache(), decoder.new_cache()
    prompt = list(range(20, 60))
    together = decoder.hidden([Piece(writing[0], [8]), Piece(writing[1], [9]), Piece(reading, prompt)])
    expected = torch.cat([decoder.hidden([Piece(alone[0], [8])]), decoder.hidden([Piece(alone[1], [9])]),
                          decoder.hidden([Piece(own, prompt)])])
    torch.testing.assert_close(together, expected, atol=2e-5, rtol=0)
