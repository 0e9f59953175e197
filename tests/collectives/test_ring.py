"""The ring without a network, quantised blocks, element types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shoal.collectives.errors import WireError
from shoal.collectives.kernels import DTYPES, Kernel, Op, division, reduction
from shoal.collectives.quantize import META, MIN_MAX, RAW, Quantization, decode, encode, room
from shoal.collectives.ring import Lane, Plan, cut, lanes_for


def reduce_in_memory(
    inputs: list[np.ndarray],
    reduce: Kernel,
    divide: Callable[[np.ndarray], Any] | None = None,
    quantization: Quantization = "none",
) -> list[np.ndarray]:
    """The ring of all peers, without a network."""
    w = len(inputs)
    outputs = [np.empty_like(x) for x in inputs]
    lanes = [
        Lane(Plan(rank, w, reduce, divide, quantization), inputs[rank], outputs[rank])
        for rank in range(w)
    ]
    while not all(lane.done for lane in lanes):
        for rank, lane in enumerate(lanes):
            while lane.ready():
                block = bytes(lane.outgoing())
                lane.block_sent()
                after = lanes[(rank + 1) % w]
                after.incoming(len(block))[:] = block
                after.block_received()
    return outputs


def bits(x: np.ndarray) -> bytes:
    return x.tobytes()


@given(st.integers(0, 10**6), st.integers(1, 64))
def test_parts_cover_all_elements_and_differ_by_one_at_most(n, parts):
    pieces = cut(n, parts)
    assert pieces[0][0] == 0 and pieces[-1][1] == n and len(pieces) == parts
    sizes = [b - a for a, b in pieces]
    assert sum(sizes) == n and max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes)[::-1]


@given(
    st.integers(2, 6),
    st.integers(0, 40),
    st.sampled_from(["int64", "int32", "uint8", "float64"]),
    st.sampled_from(list(Op)),
    st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_the_ring_is_the_plain_reduction(world, n, dtype, op, seed):
    rng = np.random.default_rng(seed)
    inputs = [rng.integers(0, 5, n).astype(dtype) for _ in range(world)]
    before = [x.copy() for x in inputs]
    divide = division(dtype, world) if op is Op.AVG else None
    found = reduce_in_memory(inputs, reduction(op, dtype), divide)
    plain = {Op.PROD: np.multiply, Op.MAX: np.maximum, Op.MIN: np.minimum}.get(op, np.add)
    total = inputs[0]
    for x in inputs[1:]:
        total = plain(total, x)
    if op is Op.AVG:
        total = total / world if dtype == "float64" else total // np.dtype(dtype).type(world)
    for out in found:
        np.testing.assert_array_equal(out, total)
    assert all(bits(x) == bits(y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_widths_are_summed_as_torch_sums_them(dtype):
    kind = getattr(torch, dtype)
    xs = [torch.randn(1_001, generator=torch.Generator().manual_seed(i)).to(kind) for i in (0, 1)]
    flat = [x.view(torch.uint16).numpy() for x in xs]
    inputs = [x.view(np.float16) if dtype == "float16" else x for x in flat]
    found = reduce_in_memory(inputs, reduction(Op.AVG, dtype), division(dtype, 2))
    expected = ((xs[0] + xs[1]) / 2).view(torch.uint16).numpy()
    for out in found:
        np.testing.assert_array_equal(out.view(np.uint16), expected)


def test_every_element_type_can_be_reduced():
    for dtype in DTYPES:
        x = np.ones(5, "uint16" if dtype == "bfloat16" else dtype)
        assert len(reduce_in_memory([x, x], reduction(Op.MAX, dtype))) == 2


VALUES = arrays.arrays(
    np.float32,
    st.integers(1, 200),
    elements=st.floats(-1e6, 1e6, width=32),
)


@given(st.lists(VALUES, min_size=2, max_size=5), st.sampled_from(["min_max", "zero_point_scale"]))
@settings(max_examples=100)
def test_quantised_rings_end_with_the_same_bits_within_a_step_for_each_hop(inputs, kind):
    n = min(x.size for x in inputs)
    inputs = [x[:n].copy() for x in inputs]
    found = reduce_in_memory(inputs, reduction(Op.SUM, "float32"), None, kind)
    assert len({bits(out) for out in found}) == 1
    exact = np.sum(np.stack(inputs), axis=0, dtype=np.float64)
    reach = sum(float(np.abs(x).max()) for x in inputs)
    step = 2 * reach / 255  # the widest range that a partial sum can have
    assert np.abs(found[0] - exact).max() <= len(inputs) * step * 0.51 + 1e-3 * reach + 1e-30


@given(VALUES, st.sampled_from(["min_max", "zero_point_scale"]))
@settings(max_examples=200)
def test_a_block_is_off_by_half_a_step_at_most(x, kind):
    buffer = memoryview(bytearray(room(x.size, x.dtype)))
    size = encode(x, kind, buffer)
    back = np.empty_like(x)
    decode(buffer[:size], back)
    low, high = float(x.min()), float(x.max())
    if kind == "zero_point_scale":
        low, high = min(low, 0.0), max(high, 0.0)
    slack = 2e-6 * max(abs(low), abs(high)) + 1e-37
    reach = 0.5 if kind == "min_max" else 1.0  # the zero point itself is rounded
    assert np.abs(back - x).max() <= reach * (high - low) / 255 + slack
    again = memoryview(bytearray(room(x.size, x.dtype)))
    assert encode(x, kind, again) == size and bytes(again[:size]) == bytes(buffer[:size])


@pytest.mark.parametrize("kind", ["min_max", "zero_point_scale"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_constant_block_is_exact_and_one_byte_a_value(kind, dtype):
    x = np.full(100, -3.3, dtype)
    buffer = memoryview(bytearray(room(100, x.dtype)))
    assert encode(x, kind, buffer) == META.size + 100
    back = np.empty_like(x)
    decode(buffer[: META.size + 100], back)
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_eight_bits_cannot_hold_is_sent_as_it_is(bad):
    x = np.array([1.0, bad, -3e38], np.float32)
    buffer = memoryview(bytearray(room(3, x.dtype)))
    size = encode(x, "min_max", buffer)
    assert buffer[0] == RAW and size == META.size + 12
    back = np.empty_like(x)
    decode(buffer[:size], back)
    np.testing.assert_array_equal(back, x)
    found = reduce_in_memory(
        [x, np.ones(3, np.float32)], reduction(Op.SUM, "float32"), None, "min_max"
    )
    assert len({bits(out) for out in found}) == 1
    np.testing.assert_array_equal(found[0], x + 1)


@given(st.binary(max_size=64))
def test_a_block_that_is_none_is_refused(data):
    out = np.empty(7, np.float32)
    fits = len(data) >= META.size and (
        (data[0] == RAW and len(data) == META.size + 28)
        or (data[0] in (MIN_MAX, 2) and len(data) == META.size + 7)
    )
    if not fits:
        with pytest.raises(WireError):
            decode(memoryview(data), out)


def test_the_owner_alone_quantises_a_finished_chunk():
    """Whoever forwards must not quantise again: the bytes are those the owner made."""
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=40).astype(np.float32) for _ in range(4)]
    outputs = [np.empty_like(x) for x in inputs]
    lanes = [
        Lane(Plan(r, 4, reduction(Op.SUM, "float32"), None, "min_max"), inputs[r], outputs[r])
        for r in range(4)
    ]
    sent: dict[int, list[bytes]] = {rank: [] for rank in range(4)}
    while not all(lane.done for lane in lanes):
        for rank, lane in enumerate(lanes):
            while lane.ready():
                block = bytes(lane.outgoing())
                lane.block_sent()
                sent[rank].append(block)
                after = lanes[(rank + 1) % 4]
                after.incoming(len(block))[:] = block
                after.block_received()
    for rank in range(4):  # what goes out at place j >= w was sent by the one before at j - 1
        for place in (4, 5):
            assert sent[rank][place] == sent[(rank - 1) % 4][place - 1]


def test_lanes_refuse_lengths_that_do_not_fit():
    x = np.ones(10, np.float32)
    lane = Lane(Plan(0, 2, reduction(Op.SUM, "float32")), x, np.empty_like(x))
    with pytest.raises(WireError, match="10000000000 bytes"):
        lane.incoming(10**10)
    quantised = Lane(Plan(0, 2, reduction(Op.SUM, "float32"), None, "min_max"), x, np.empty_like(x))
    with pytest.raises(WireError, match="too many"):
        quantised.incoming(10**10)


def test_small_operations_take_one_connection_and_large_ones_all():
    assert [lanes_for(n, 8) for n in (0, 4, 256 << 10, 64 << 20)] == [1, 1, 2, 8]
