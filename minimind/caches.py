"""Keys and values of the sequences that an engine works on.

While a prompt is read its sequence has tensors of its own. Sequences that are being written stand side by side in
``Slots``, so that one call stores, and one attends, for all of them: for eight short sequences of a 26M model that is
a third of what eight calls take. Sequences of much different lengths stand apart, or the short ones would pay for the
long ones.

Shapes: G key/value heads, D head_dim, S slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from minimind.presets import ModelConfig

#: positions by which a sequence's own tensors grow at least
CACHE_STEP = 64
#: positions of the smallest slots; the next are half as large again, then twice, and so on
SMALLEST_SLOT = 128


class SequenceCache:
    """Keys and values of one sequence: per layer a tensor [2, G, capacity, D], keys and then values.

    One tensor a layer, no larger than needed: in one large tensor for all layers, the same products took twice as long.
    """

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype):
        self._shape = (2, config.num_key_value_heads, config.head_dim)
        self._place = {"device": device, "dtype": dtype}
        self.layers = [torch.empty((2, self._shape[1], 0, self._shape[2]), **self._place)
                       for _ in range(config.num_hidden_layers)]
        self.length = 0  #: positions that hold something
        self.group: SlotGroup | None = None  #: whose slot the layers are, in place of own tensors
        self.slot = 0

    @property
    def capacity(self) -> int:
        return self.layers[0].shape[2]

    def num_bytes(self) -> int:
        return sum(layer.numel() * layer.element_size() for layer in self.layers)

    def reserve(self, length: int) -> None:
        """Make room for ``length`` positions: a quarter more than asked for, so that growing stays cheap."""
        if length <= self.capacity:
            return
        assert self.group is None, "Slots.hold makes room in a slot"
        capacity = -(-max(length, length * 5 // 4 if self.length else length) // CACHE_STEP) * CACHE_STEP
        self.layers = [self._grown(layer, capacity) for layer in self.layers]

    def _grown(self, layer: Tensor, capacity: int) -> Tensor:
        grown = torch.empty((2, self._shape[1], capacity, self._shape[2]), **self._place)
        grown[:, :, :self.length] = layer[:, :, :self.length]
        return grown

    def copy(self, length: int) -> SequenceCache:
        """Its own copy of the first ``length`` positions."""
        made = object.__new__(SequenceCache)
        made._shape, made._place, made.length, made.group, made.slot = self._shape, self._place, length, None, 0
        made.layers = [layer[:, :, :length].clone() for layer in self.layers]
        return made


class SlotGroup:
    """Slots of ``capacity`` positions: per layer one tensor [S, 2, G, capacity, D]. The members' are the first, without
    a hole."""

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype, capacity: int):
        self.capacity, self.kv_heads, self.head_dim = capacity, config.num_key_value_heads, config.head_dim
        self._place = {"device": device, "dtype": dtype}
        self._num_layers = config.num_hidden_layers
        self.members: list[SequenceCache] = []
        self.layers: list[Tensor] = []
        self.rows: list[Tensor] = []
        self._resize(0)

    @property
    def num_slots(self) -> int:
        return len(self.layers[0])

    def add(self, caches: Sequence[SequenceCache]) -> None:
        """Copy what they hold into slots behind the last member's."""
        count = len(self.members)
        if count + len(caches) > self.num_slots:
            self._resize(max(count + len(caches), count * 5 // 4))
        for slot, cache in enumerate(caches, count):
            for layer, old in zip(self.layers, cache.layers):
                layer[slot, :, :, :cache.length] = old[:, :, :cache.length]
            self.members.append(cache)
            self._point(slot)

    def remove(self, caches: Sequence[SequenceCache]) -> None:
        """Forget members; the others close the ranks."""
        if len(caches) == 1:
            self._fill(self.members.index(caches[0]))
        else:
            gone = set(map(id, caches))
            self.members = [member for member in self.members if id(member) not in gone]
            self._resize(len(self.members))
        if self.num_slots > 2 * len(self.members):
            self._resize(len(self.members))

    def _fill(self, slot: int) -> None:
        """Put the last member into this slot."""
        left, last = self.members[slot], self.members.pop()
        for layer in self.layers:
            layer[slot, :, :, :left.length] = 0  # see _resize
            if last is not left:
                layer[slot, :, :, :last.length] = layer[last.slot, :, :, :last.length]
                layer[last.slot, :, :, :last.length] = 0
        if last is not left:
            self.members[slot] = last
            self._point(slot)

    def _resize(self, num_slots: int) -> None:
        """Zeros behind what is held: what a mask hides is still multiplied, with 0, and must not be NaN by chance."""
        shape = (num_slots, 2, self.kv_heads, self.capacity, self.head_dim)
        for number in range(self._num_layers):  # one after the other: not all of it twice in memory
            layer = torch.zeros(shape, **self._place)
            for slot, member in enumerate(self.members):
                layer[slot, :, :, :member.length] = member.layers[number][:, :, :member.length]
                member.layers[number] = layer[slot]
            self.layers[number:number + 1] = [layer]
        #: the same memory, a row for every position of every head
        self.rows = [layer.view(-1, self.head_dim) for layer in self.layers]
        #: [S, G]: the row of each slot's first key of each head; values stand G * capacity rows behind
        heads = torch.arange(num_slots * 2 * self.kv_heads, device=self.layers[0].device)
        self.first_rows = heads.view(num_slots, 2, self.kv_heads)[:, 0] * self.capacity
        for slot in range(len(self.members)):
            self._point(slot)

    def _point(self, slot: int) -> None:
        member = self.members[slot]
        member.group, member.slot, member.layers = self, slot, [layer[slot] for layer in self.layers]


class Slots:
    """The groups of one model. A sequence moves to larger slots as it grows."""

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype):
        self._made_for = (config, device, dtype)
        self.groups: dict[int, SlotGroup] = {}  #: by capacity

    def num_bytes(self) -> int:
        return sum(layer.numel() * layer.element_size() for group in self.groups.values() for layer in group.layers)

    def free_bytes(self) -> int:
        """Of slots that nobody holds."""
        return self.num_bytes() - sum(m.num_bytes() for group in self.groups.values() for m in group.members)

    @torch.inference_mode()
    def hold(self, caches: Iterable[SequenceCache]) -> None:
        """Give each a slot with room for one more position. Those that move to slots of one size do so together: a
        crowd that crosses a border is copied once."""
        moving: dict[int, list[SequenceCache]] = {}
        for cache in caches:
            if cache.group is None or cache.length + 1 > cache.capacity:
                moving.setdefault(slot_capacity(cache.length + 1), []).append(cache)
        for capacity, newcomers in moving.items():
            leaving: dict[int, list[SequenceCache]] = {}
            for cache in newcomers:
                if cache.group is not None:
                    leaving.setdefault(cache.group.capacity, []).append(cache)
            if capacity not in self.groups:
                self.groups[capacity] = SlotGroup(*self._made_for, capacity)
            self.groups[capacity].add(newcomers)
            for old, members in leaving.items():
                self._remove(old, members)

    @torch.inference_mode()
    def released(self, cache: SequenceCache) -> SequenceCache:
        """A copy of ``cache`` with tensors of its own; the slot is free for others. One without a slot is itself."""
        if cache.group is None:
            return cache
        own = cache.copy(cache.length)
        self._remove(cache.group.capacity, [cache])
        cache.group, cache.layers = None, []
        return own

    def _remove(self, capacity: int, caches: list[SequenceCache]) -> None:
        group = self.groups[capacity]
        group.remove(caches)
        if not group.members:
            del self.groups[capacity]


def slot_capacity(length: int) -> int:
    """128, 192, 256, 384, 512, 768, ...: the first that is ``length`` or more."""
    capacity = SMALLEST_SLOT
    while capacity < length:
        capacity = capacity * 3 // 2 if capacity & (capacity - 1) == 0 else capacity * 4 // 3
    return capacity
