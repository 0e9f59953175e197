"""The second stage of a repair: moved tokens computed again while an answer is written."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from shoal.core.protocols import Request, Sampling
from shoal.engine.generation import Composition, Generation, Piece
from shoal.engine.late_repair import Late, LateRepair
from shoal.engine.local import LocalEngine
from shoal.engine.pool import Extent
from shoal.engine.repair import Repair
from shoal.engine.segments import KVSegment
from shoal.engine.tree import Node
from shoal.models.loading import Model, load

BEFORE, ELSEWHERE = (5, 9, 2, 7), (8, 8, 1)
TEXT = tuple(range(10, 50))
AFTER = (3, 4, 6)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load(str(tiny_model), dtype="fp32")


@pytest.fixture
async def engine(model: Model) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(model, kv_bytes=16 << 20)
    yield engine
    assert engine.load.pinned_bytes == engine.load.running == engine.load.waiting == 0
    await engine.close()


def stage(policy: Late, deviation: list[float], attention: list[float]) -> LateRepair:
    """All of one node's tokens were moved and left alone."""
    node = Node(range(len(deviation)), Extent(0, len(deviation)), None)
    return LateRepair(
        policy,
        [(node, place) for place in range(len(deviation))],
        torch.arange(len(deviation)),
        torch.tensor(deviation),
        torch.tensor(attention),
        frozenset({0}),
        math.ceil(policy.share * len(deviation)),
    )


def test_the_largest_attention_times_deviation_comes_first_and_once() -> None:
    late = stage(Late(share=1.0, threshold=0.0), [1, 2, 3, 4], [0.4, 0.3, 0.1, 0.05])
    chosen = []
    while not late.ended:
        chosen.append([place for _, place in late.rows()])
        late.stepped(len(chosen[-1]))
    assert chosen == [[1, 0], [2, 3]]  # scores .6 .4 .3 .2
    assert late.done == 4 and late.rows() == []


def test_the_budget_ends_a_repair() -> None:
    late = stage(Late(share=0.3, threshold=0.0), [1.0] * 10, [0.1] * 10)
    assert late.budget == 3
    late.stepped(len(late.rows()))
    assert len(late.rows()) == 1
    late.stepped(1)
    assert late.ended and late.done == 3


def test_tokens_below_the_threshold_are_left_alone_and_patience_ends_it() -> None:
    late = stage(Late(share=1.0, threshold=1.5, patience=3), [1.0] * 4, [0.1] * 4)
    steps = 0
    while not late.ended:
        assert late.rows() == []
        late.stepped(0)
        steps += 1
    assert steps == 2 and late.done == 0  # the first look, before any step, counted too


def test_what_found_no_room_in_a_step_is_asked_for_again() -> None:
    late = stage(Late(share=1.0, threshold=0.0), [2.0, 1.0], [0.5, 0.5])
    late.stepped(0)
    assert [place for _, place in late.rows()] == [0, 1]


def test_attention_is_what_the_softmax_says() -> None:
    torch.manual_seed(0)
    K, G, d, N = 2, 3, 8, 12
    q_KGd, slab_N2Kd = torch.randn(K, G, d), torch.randn(N, 2, K, d)
    scores_KGN = torch.einsum("kgd,nkd->kgn", q_KGd, slab_N2Kd[:, 0]) / math.sqrt(d)
    late = stage(Late(keep=0.75), [1.0] * 4, [0.2] * 4)  # the first four of twelve slots
    late.see(0, q_KGd, slab_N2Kd, scores_KGN.logsumexp(-1))
    late.see(1, q_KGd, slab_N2Kd, scores_KGN.logsumexp(-1))  # a layer that is not read
    late.stepped(0)
    paid_N = scores_KGN.softmax(-1).mean((0, 1))
    torch.testing.assert_close(late.average_M, 0.75 * 0.2 + 0.25 * paid_N[:4])


@pytest.mark.parametrize("wrong", [{"share": 1.5}, {"a_step": 0}, {"rule": "best"}])
def test_a_senseless_policy_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="late repair"):
        Late(**wrong)  # type: ignore[arg-type]


@dataclass
class Keep:
    """Cuts out the whole cache of a request when its answer ends."""

    engine: LocalEngine
    segment: KVSegment | None = None
    jobs: list[Generation] = field(default_factory=list)

    def prefilled(self, job: Generation) -> None:
        self.jobs.append(job)

    def ending(self, job: Generation) -> None:
        self.segment = self.engine.cut(job, 0, job.prompt_tokens)


async def moved(
    engine: LocalEngine, late: Late | None, kind: str = "none", tokens: int = 3
) -> tuple[Keep, int]:
    """A text moved behind other words, answered; its cache at the end, and tokens repaired."""
    segment = await engine.capture((*ELSEWHERE, *TEXT), len(ELSEWHERE))
    pieces = (Piece(BEFORE), Piece(TEXT, segment), Piece(AFTER))
    kept = Keep(engine)
    request = Request((), Sampling(max_tokens=tokens, ignore_eos=True))
    # The tiny model has two layers: with the check layer at the first, the second one is moved.
    repair = Repair(kind, 0.15, check_layer=0, late=late)  # type: ignore[arg-type]
    (done,) = await engine.compose([Composition(request, pieces, repair, kept)])
    assert done.error is None
    return kept, done.usage.repaired_tokens


async def test_computing_all_again_in_one_step_gives_the_exact_cache(engine: LocalEngine) -> None:
    exact = await engine.capture((*BEFORE, *TEXT, *AFTER))
    rotated, none = await moved(engine, None)
    assert none == 0
    late, repaired = await moved(engine, Late("random", a_step=999, share=1.0))
    assert repaired == len(TEXT)
    text = slice(len(BEFORE), len(BEFORE) + len(TEXT))
    assert rotated.segment is not None and late.segment is not None

    def apart(segment: KVSegment) -> float:
        return float((segment.values_LTKd - exact.values_LTKd)[:, text].abs().max())

    assert apart(rotated.segment) > 1e-3
    assert apart(late.segment) < 5e-5


async def test_no_more_than_its_share_rides_along(engine: LocalEngine) -> None:
    before = engine.scheduler.meter.repair_tokens
    _, repaired = await moved(engine, Late("random", share=0.1), "random", tokens=12)
    first, second = math.ceil(0.15 * len(TEXT)), math.ceil(0.1 * len(TEXT))
    assert repaired == first + second
    assert engine.scheduler.meter.repair_tokens - before == second


async def test_what_was_lent_is_not_written_to(engine: LocalEngine) -> None:
    segment = await engine.capture((*ELSEWHERE, *TEXT), len(ELSEWHERE))
    keys, values = segment.keys_LTKd.clone(), segment.values_LTKd.clone()
    pieces = (Piece(BEFORE), Piece(TEXT, segment), Piece(AFTER))
    repair = Repair("none", check_layer=0, late=Late("random", a_step=999, share=1.0))
    request = Request((), Sampling(max_tokens=4, ignore_eos=True))
    done = await engine.compose([Composition(request, pieces, repair) for _ in range(2)])
    assert [each.usage.repaired_tokens for each in done] == [len(TEXT)] * 2
    assert torch.equal(segment.keys_LTKd, keys) and torch.equal(segment.values_LTKd, values)


async def test_a_request_cancelled_in_its_second_stage_frees_what_it_held(
    engine: LocalEngine,
) -> None:
    late = Late("random", a_step=1, share=1.0)
    task = asyncio.create_task(moved(engine, late, tokens=400))
    before = engine.scheduler.meter.repair_tokens
    while engine.scheduler.meter.repair_tokens < before + 3:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while engine.load.running:
        await asyncio.sleep(0.001)
    assert engine.load.pinned_bytes == 0
