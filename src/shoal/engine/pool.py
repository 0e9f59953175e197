"""KV memory: one slab, handed out in contiguous extents of token slots.

Contiguity matters more than paging on a CPU: a segment that lies in one piece is read through
a view, without gathering. The slab is virtual memory until it is touched, and extents are
taken lowest address first, so the resident size follows what is really in use.

Shapes: N capacity in tokens, K key-value heads, d head size.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Extent:
    """Token slots ``start .. start + length`` of every layer's slab."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


class ExtentAllocator:
    """First-fit allocation of slot ranges with coalescing; knows nothing of tensors."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free = capacity
        self._holes: list[tuple[int, int]] = [(0, capacity)] if capacity else []

    def take(self, length: int) -> list[Extent] | None:
        """Slots for ``length`` tokens, in as few pieces as the holes allow, or None.

        A request that fits into one hole gets one extent; otherwise the largest holes are
        used first. Nothing is taken when the free slots do not suffice.
        """
        assert length > 0, "an extent holds at least one token"
        if length > self.free:
            return None
        for index, (start, size) in enumerate(self._holes):
            if size >= length:
                self._shrink(index, length)
                return [Extent(start, length)]
        pieces = []
        while length:
            index = max(range(len(self._holes)), key=lambda i: self._holes[i][1])
            start, size = self._holes[index]
            part = min(size, length)
            self._shrink(index, part)
            pieces.append(Extent(start, part))
            length -= part
        return pieces

    def _shrink(self, index: int, length: int) -> None:
        start, size = self._holes[index]
        self.free -= length
        if size == length:
            del self._holes[index]
        else:
            self._holes[index] = (start + length, size - length)

    def give(self, extent: Extent) -> None:
        """Return slots; neighbours grow together."""
        start, end = extent.start, extent.end
        index = bisect.bisect(self._holes, (start, 0))
        if index < len(self._holes):
            next_start, next_size = self._holes[index]
            assert end <= next_start, "slots were free already"
            if end == next_start:
                end += next_size
                del self._holes[index]
        if index:
            last_start, last_size = self._holes[index - 1]
            assert last_start + last_size <= start, "slots were free already"
            if last_start + last_size == start:
                start = last_start
                del self._holes[index - 1]
                index -= 1
        self._holes.insert(index, (start, end - start))
        self.free += extent.length


class KVPool:
    """The slab and its allocator.

    slab          [layers, N, 2, K, d]: a token's keys and values lie side by side, so that both
                  are stored and gathered in one go
    keys, values  views of it, [layers, N, K, d]
    """

    def __init__(
        self, *, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, max_bytes: int
    ) -> None:
        self.token_bytes = 2 * layers * kv_heads * head_dim * dtype.itemsize
        self.slots = ExtentAllocator(max_bytes // self.token_bytes)
        self.slab = torch.empty(layers, self.slots.capacity, 2, kv_heads, head_dim, dtype=dtype)
        self.keys, self.values = self.slab.unbind(2)

    @property
    def used_bytes(self) -> int:
        """Bytes of slots that are handed out."""
        return (self.slots.capacity - self.slots.free) * self.token_bytes
