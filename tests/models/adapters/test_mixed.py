"""Many adapters in one batch: as if every adapter's rows had been computed alone."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from test_lora import decoder, stirred

from shoal.core.errors import ModelError
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.bank import Bank
from shoal.models.adapters.hosts import DecoderHost
from shoal.models.adapters.mixed import Fresh, Run, grouped, mixed
from shoal.models.adapters.registry import new
from shoal.models.decoder import Decoder

MODEL = decoder()
HOST = DecoderHost(MODEL)


def made(kind: str, seed: int, **options: object) -> Adapter:
    return stirred(new(kind, MODEL, seed=seed, **options), seed)


ADAPTERS: list[Adapter | None] = [
    None,
    made("lora", 1, rank=2),
    made("lora", 2, rank=2),
    made("lora", 3, rank=5, targets=["q", "down"]),
    made("mos", 4, e=2, r=4, p=1, l=4),
    made("mos", 5, e=2, r=3, p=0, l=2, alpha=7),
]


def alone(layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
    """Attention of every row to itself, so that rows of a batch do not meet."""
    return kv_T2Kd[:, 1].repeat_interleave(q_THd.shape[1] // kv_T2Kd.shape[2], 1)


def states(model: Decoder, ids: Sequence[int]) -> torch.Tensor:
    return model.forward(torch.tensor(ids), torch.arange(len(ids)), alone)


def one_by_one(runs: Sequence[Run], ids: Sequence[int]) -> torch.Tensor:
    parts, first = [], 0
    for adapter, count in runs:
        seen = MODEL if adapter is None else adapter.over(MODEL)
        parts.append(states(seen, ids)[first : first + count])
        first += count
    return torch.cat(parts)


RUNS = st.lists(st.tuples(st.sampled_from(ADAPTERS), st.integers(1, 6)), min_size=1, max_size=8)


@settings(max_examples=40)
@given(runs=RUNS, kept=st.booleans())
def test_a_mixed_batch_equals_its_rows_alone(runs: list[Run], kept: bool) -> None:
    ids = [7 * t % 31 for t in range(sum(count for _, count in runs))]
    stacks = Fresh()
    if kept:
        stacks = Bank(HOST)  # type: ignore[assignment]
        stacks.take([one for one, _ in runs if one is not None])  # type: ignore[attr-defined]
    torch.testing.assert_close(
        states(mixed(MODEL, runs, stacks), ids), one_by_one(runs, ids), atol=1e-5, rtol=1e-5
    )


@settings(max_examples=60)
@given(runs=RUNS)
def test_every_row_of_an_adapter_is_added_to_once(runs: list[Run]) -> None:
    own: dict[Adapter, list[int]] = {}
    first = 0
    for adapter, count in runs:
        if adapter is not None:
            own.setdefault(adapter, []).extend(range(first, first + count))
        first += count
    for group in grouped(runs, Fresh()):
        rows = torch.arange(first)[group.into].tolist()
        expected = [row for adapter in group.adapters for row in own.pop(adapter)]
        assert rows == expected
        padded = len(torch.arange(first)[group.rows])
        assert padded < 2 * len(rows)
    assert not own


def test_training_several_at_once_gives_each_its_own_gradients() -> None:
    runs: list[Run] = [(adapter, 3) for adapter in ADAPTERS if adapter is not None]
    ids = [3 * t % 31 for t in range(3 * len(runs))]
    weight = torch.randn(len(ids), 24, generator=torch.Generator().manual_seed(0))
    (states(mixed(MODEL, runs), ids) * weight).sum().backward()
    found = [{k: t.grad for k, t in one.tensors.items()} for one, _ in runs if one]
    for one, _ in runs:
        assert one is not None
        for tensor in one.tensors.values():
            tensor.grad = None
    (one_by_one(runs, ids) * weight).sum().backward()
    for grads, (one, _) in zip(found, runs, strict=True):
        assert one is not None
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(grads[name], tensor.grad, atol=2e-5, rtol=1e-4)
            tensor.grad = None


def test_an_adapter_of_another_base_is_refused() -> None:
    other = new("lora", decoder(seed=8), rank=2)
    with pytest.raises(ModelError, match="other weights"):
        mixed(MODEL, [(other, 1)])


def test_the_bank_keeps_the_youngest_within_its_bytes() -> None:
    same = [made("mos", seed, e=1, r=2, p=0, l=1) for seed in range(6)]
    bank = Bank(HOST, limit_bytes=3 * same[0].assembled_bytes)
    for adapter in same[:4]:
        bank.take([adapter])
    assert bank.nbytes == bank.limit_bytes
    assert (bank.counters.assembled, bank.counters.evicted) == (4, 1)
    bank.take([same[1]])
    bank.take([same[0]])
    assert (bank.counters.hits, bank.counters.assembled, bank.counters.evicted) == (1, 5, 2)
    bank.take([same[3], same[1], same[0]])
    assert bank.counters.hits == 4
    bank.take(same)  # a batch gets what it needs
    assert bank.nbytes >= 6 * same[0].assembled_bytes
    for adapter in same:
        A, Bs = bank.stack([adapter], ("layers.1.q", "layers.1.k", "layers.1.v"))
        first = 0
        for site, B in zip("qkv", Bs, strict=True):
            rank = B.shape[1]
            found = B[0].T @ A[0, first : first + rank]
            torch.testing.assert_close(found, adapter.delta(f"layers.1.{site}").detach())
            first += rank


def test_what_was_trained_is_assembled_anew() -> None:
    adapter = made("mos", 3, e=2, r=4, p=1, l=4)
    bank = Bank(HOST)
    bank.take([adapter])
    before = bank.stack([adapter], ("layers.0.gate", "layers.0.up")).A_GRI.clone()
    with torch.no_grad():
        adapter.tensors["up.A"].add_(1)
        adapter.tensors["gate.A"].add_(1)
    bank.take([adapter])
    assert bank.counters.assembled == 2
    after = bank.stack([adapter], ("layers.0.gate", "layers.0.up")).A_GRI
    torch.testing.assert_close(after, before + 1)


def test_many_rows_in_bf16_agree_with_fp32() -> None:
    """From 16 rows on factors are bf16 like the model; below they are fp32."""
    half = decoder(dtype=torch.bfloat16)
    runs: list[Run] = [(None, 3), (ADAPTERS[4], 16), (ADAPTERS[1], 16), (ADAPTERS[2], 2)]
    bank = Bank(DecoderHost(half))
    bank.take([one for one, _ in runs if one is not None])
    ids = [5 * t % 31 for t in range(37)]
    found = states(mixed(half, runs, bank), ids).float()
    expected = one_by_one(runs, ids)
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()
    bare = states(half, ids).float()
    assert (bare - expected)[3:].abs().mean() > 0.1 * expected.abs().mean()
