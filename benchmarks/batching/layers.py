"""One layer of a decoding step: one copy of a prefix read by all, or a copy for each."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from shoal.core.claims import Bench, alternate
from shoal.engine.attention import StepAttention, Work
from shoal.engine.compute import compute
from shoal.engine.pool import KVPool
from shoal.engine.tree import PrefixTree


def attention(bench: Bench) -> None:
    """One layer of a decoding step of SmolLM2's shape: one copy of the prefix, or one for each."""
    cells = bench.pick(full=list(itertools.product((2, 8, 32), (256, 1024))), smoke=[(8, 256)])
    for readers, length in bench.track(cells, "attention"):
        rounds, calls = bench.pick(full=(9, 40), smoke=(5, 10))
        arms = {
            name: _often([_layer(readers, length, shared=shared) for _ in range(rounds)], calls)
            for name, shared in (("shared", True), ("copies", False))
        }
        seconds = alternate(arms, rounds=rounds)
        for name, timing in seconds.items():
            micro = timing.seconds().estimate / calls * 1e6
            bench.arm(f"D: {readers} readers of {length}, {name}", microseconds=micro)
        times = seconds["shared"].times_faster_than(seconds["copies"], seed=bench.seed)
        least = 2.0 if readers * length >= 8_192 else 1.0
        claim = f"D: times faster, {readers} readers of {length} tokens"
        bench.verdict(claim, times, at_least=least)


def _often(layers: list[Callable[[], object]], calls: int) -> Callable[[], None]:
    """Many calls of one layer, of another one each time.

    Where a cache happens to lie in memory makes a tenth of a difference.
    """
    others = itertools.cycle(layers)

    def work() -> None:
        layer = next(others)
        compute.call(lambda: [layer() for _ in range(calls)] and None)

    return work


def _layer(readers: int, length: int, *, shared: bool) -> Callable[[], object]:
    """A step's attention over a prefix of ``length`` and 32 own tokens for each reader."""
    return compute.call(lambda: _prepared_layer(readers, length, shared=shared))


def _prepared_layer(readers: int, length: int, *, shared: bool) -> Callable[[], object]:
    H, K, d, own = 9, 3, 64, 32
    bytes_ = (readers * (length + own) + length) * 2 * K * d * 2
    pool = KVPool(layers=1, kv_heads=K, head_dim=d, dtype=torch.bfloat16, max_bytes=bytes_)
    pool.slab.normal_()
    tree = PrefixTree(pool.slots)
    works = []
    for reader in range(readers):
        prefix = tree.insert([1] * length, "" if shared else str(reader))
        assert prefix is not None
        tail = tree.tail(prefix, own)
        assert tail is not None
        prefix.filled = length
        tail.tokens += [2] * own
        tail.filled = own - 1
        works.append(Work(tail, own - 1, 1))
    attend = StepAttention(works, pool)
    q_THd = torch.randn(readers, H, d).bfloat16()
    kv_T2Kd = torch.randn(readers, 2, K, d).bfloat16()
    with torch.inference_mode():
        attend(0, q_THd, kv_T2Kd)
    return torch.inference_mode()(lambda: attend(0, q_THd, kv_T2Kd))
