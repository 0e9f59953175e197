"""The allocator never hands out a slot twice, never loses one, and prefers one piece."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.engine.pool import Extent, ExtentAllocator, KVPool


@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.booleans(), st.integers(1, 20)), max_size=60),
)
def test_slots_are_owned_once_and_all_come_back(
    capacity: int, steps: list[tuple[bool, int]]
) -> None:
    slots = ExtentAllocator(capacity)
    held: list[Extent] = []
    for take, number in steps:
        if take:
            free = slots.free
            pieces = slots.take(number)
            if number > free:
                assert pieces is None
                assert slots.free == free
            else:
                assert pieces is not None
                assert sum(piece.length for piece in pieces) == number
                held += pieces
        elif held:
            slots.give(held.pop(number % len(held)))
        owned = [slot for extent in held for slot in range(extent.start, extent.end)]
        assert len(owned) == len(set(owned)) == capacity - slots.free
        assert all(0 <= slot < capacity for slot in owned)
    for extent in held:
        slots.give(extent)
    assert slots.take(capacity) == [Extent(0, capacity)]


def test_a_hole_that_fits_is_used_before_two_that_do_not() -> None:
    slots = ExtentAllocator(30)
    pieces = [slots.take(10) for _ in range(3)]
    for piece in (pieces[0], pieces[2]):
        assert piece is not None
        slots.give(piece[0])
    assert slots.take(10) == [Extent(0, 10)]
    assert slots.take(11) is None
    assert slots.take(7) == [Extent(20, 7)]


def test_what_does_not_fit_one_hole_comes_in_few_pieces() -> None:
    slots = ExtentAllocator(30)
    extents = [slots.take(5) for _ in range(6)]
    for index in (0, 2, 3):
        piece = extents[index]
        assert piece is not None
        slots.give(piece[0])
    assert slots.take(12) == [Extent(10, 10), Extent(0, 2)]


def test_bytes_per_token_count_keys_and_values_of_all_layers() -> None:
    pool = KVPool(layers=30, kv_heads=3, head_dim=64, dtype=torch.bfloat16, max_bytes=1 << 20)
    assert pool.token_bytes == 2 * 30 * 3 * 64 * 2 == 23_040  # SmolLM2-135M: 23 KB a token
    assert pool.slots.capacity == (1 << 20) // 23_040
    pool.slots.take(3)
    assert pool.used_bytes == 3 * 23_040
