"""Policies on a dry scheduler: order, lifetimes, memory; and on a real engine: the same answers."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from dry_run import DryRun
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.protocols import Request, Sampling, Segment
from shoal.engine.batch.partition import exact, tokens_computed
from shoal.engine.batch.planned import Item, Planned
from shoal.engine.batch.prefixes import find_prefixes
from shoal.engine.lengths import UNSEEN, kind_of
from shoal.engine.local import LocalEngine
from shoal.engine.policies import ArrivalOrder, LongestPrefix
from shoal.models.loading import Model, load

PROMPTS = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(1, 6)),
    min_size=1,
    max_size=14,
)


def documents(count: int, questions: int, length: int = 40) -> list[list[int]]:
    """``questions`` about each of ``count`` documents, the documents in turn."""
    return [[d] * length + [100 + q] for q in range(questions) for d in range(count)]


def tree_tokens(prompts: list[list[int]]) -> int:
    return find_prefixes(prompts).tokens


def test_planned_jobs_compute_their_tree_in_little_memory() -> None:
    prompts = documents(12, 8)
    dry = DryRun(120, policy=Planned())
    dry.submit([dry.job(prompt, answer=5) for prompt in prompts])
    dry.run()
    meter = dry.scheduler.meter
    assert meter.prefill_tokens == tree_tokens(prompts) == 12 * 40 + 96
    assert meter.repeated_tokens == 0
    assert meter.decode_tokens == 96 * 4
    assert meter.high_water <= 120


def test_first_come_first_served_computes_documents_again() -> None:
    prompts = documents(12, 8)
    dry = DryRun(120, policy=ArrivalOrder())
    dry.submit([dry.job(prompt, answer=5) for prompt in prompts])
    dry.run()
    assert dry.scheduler.meter.prefill_tokens > 5 * tree_tokens(prompts)


def test_longest_prefix_first_finds_one_level_of_groups_by_itself() -> None:
    prompts = documents(12, 8)
    dry = DryRun(120, policy=LongestPrefix())
    dry.submit([dry.job(prompt, answer=5) for prompt in prompts])
    dry.run()
    assert dry.scheduler.meter.prefill_tokens == tree_tokens(prompts)


def test_the_longest_cached_prefix_comes_first() -> None:
    dry = DryRun(1000, policy=LongestPrefix(), rows=8)
    one, other, follower = (dry.job(prompt) for prompt in ([1] * 30, [2] * 30, [1] * 20 + [3] * 10))
    dry.submit([one])
    dry.step()
    dry.submit([other, follower])
    dry.run()
    assert dry.started == [job.request.id for job in (one, follower, other)]


def test_memory_is_free_again_when_the_last_member_ends() -> None:
    dry = DryRun(500, policy=Planned())
    dry.submit([dry.job(prompt, answer=3) for prompt in documents(3, 4)])
    dry.run()
    assert dry.slots.free == 500
    assert not list(dry.scheduler.tree.nodes())


def test_life_spans_do_not_overlap_more_than_memory_allows() -> None:
    steps = [0]
    policy = Planned(clock=lambda: steps[0])
    dry = DryRun(70, policy=policy)
    dry.submit([dry.job(prompt, answer=3) for prompt in documents(5, 4)])
    while dry.scheduler.busy:
        dry.step()
        steps[0] += 1
    assert sorted(span.tokens for span in policy.spans) == [40] * 5
    assert all(span.prompts == 4 for span in policy.spans)
    spans = sorted((span.opened, span.closed) for span in policy.spans)
    for (_, closed), (opened, _) in pairwise(spans):
        assert closed <= opened  # two documents do not fit


def test_a_group_larger_than_memory_runs_in_waves_that_keep_the_prefix() -> None:
    prompts = [[1] * 40 + [100 + q] * 10 for q in range(30)]
    dry = DryRun(80, policy=Planned())
    dry.submit([dry.job(prompt, answer=4) for prompt in prompts])
    dry.run()
    assert dry.scheduler.meter.prefill_tokens == tree_tokens(prompts) == 340


def test_prefixes_of_announced_prompts_are_kept_for_them() -> None:
    policy = Planned()
    dry = DryRun(100, policy=policy)
    first, second = dry.job([1] * 40 + [2]), dry.job([1] * 40 + [3])
    tokens = np.array(second.tokens, dtype=np.int32)
    policy.announce([Item(second.request.id, tokens, "", 1, kind_of(second.request))])
    dry.submit([first])
    dry.run()
    assert dry.slots.free == 60
    dry.submit([second])
    dry.run()
    assert dry.slots.free == 100
    assert dry.scheduler.meter.prefill_tokens == 42


def test_a_withdrawn_prompt_keeps_nothing() -> None:
    policy = Planned()
    dry = DryRun(100, policy=policy)
    first = dry.job([1] * 40 + [2])
    policy.announce([Item("later", np.array([1] * 40 + [3], dtype=np.int32), "", 1)])
    dry.submit([first])
    dry.run()
    policy.withdraw(["later"], dry.scheduler.tree)
    policy.withdraw(["later"], dry.scheduler.tree)
    assert dry.slots.free == 100


def test_jobs_that_arrive_during_the_run_find_what_is_in_memory() -> None:
    policy = Planned()
    dry = DryRun(200, policy=policy)
    prompts = documents(4, 3)
    dry.submit([dry.job(prompt, answer=9) for prompt in prompts])
    for _ in range(6):
        dry.step()
    late = [[d] * 40 + [200 + q] for d in range(4) for q in range(2)]
    dry.submit([dry.job(prompt, answer=2) for prompt in late])
    dry.run()
    assert policy.plans == 2
    assert len(dry.ended) == 20
    assert dry.scheduler.meter.prefill_tokens == tree_tokens(prompts + late)
    assert dry.slots.free == 200


def test_decode_heavy_groups_start_first() -> None:
    dry = DryRun(2000, policy=Planned(), rows=16)
    reading = [dry.job([1] * 60 + [10 + n], answer=1) for n in range(3)]
    writing = [dry.job([2] * 6 + [10 + n], answer=40) for n in range(3)]
    dry.submit(reading + writing)
    dry.run()
    assert dry.started[:3] == [job.request.id for job in writing]


def test_an_answer_is_expected_to_be_twice_as_long_until_some_have_ended() -> None:
    dry = DryRun(400, policy=Planned())
    jobs = [dry.job([n, n, n], answer=100) for n in range(30)]
    dry.submit(jobs)
    dry.step()
    assert len(dry.scheduler.running) == 400 // (3 + UNSEEN) == 11  # by their limits, 3
    dry.run()
    assert len(dry.ended) == 30
    assert 0 < dry.scheduler.meter.repeated_tokens < 2 * 400  # the memory, for each doubling to 100
    assert dry.scheduler.meter.prefill_tokens == 90


def test_answers_longer_than_expected_preempt_the_youngest_and_all_end() -> None:
    dry = DryRun(130, policy=Planned())
    jobs = [dry.job([n, n, n], answer=3, limit=60) for n in range(12)]
    jobs += [dry.job([50 + n] * 3, answer=55, limit=60) for n in range(6)]
    dry.submit(jobs)
    dry.run()
    assert len(dry.ended) == 18
    assert dry.scheduler.preemptions > 0
    assert dry.scheduler.meter.prefill_tokens == 18 * 3
    assert dry.slots.free == 130


@given(
    PROMPTS, st.integers(16, 60), st.sampled_from(["multi", "single", "none"]), st.integers(0, 9)
)
@settings(max_examples=200)
def test_every_planned_job_ends_and_leaves_nothing(
    jobs: list[tuple[list[int], int]], capacity: int, level: str, arrive: int
) -> None:
    dry = DryRun(capacity, policy=Planned(level=level), rows=8)  # type: ignore[arg-type]
    made = [dry.job(prompt, answer=answer, limit=6) for prompt, answer in jobs]
    dry.submit(made[:arrive])
    for _ in range(arrive):
        dry.step()
    dry.submit(made[arrive:])
    dry.run()
    assert sorted(dry.ended) == sorted(job.request.id for job in made)
    assert dry.slots.free == capacity


@given(PROMPTS)
@settings(max_examples=150)
def test_with_memory_enough_exactly_the_plan_is_computed(
    jobs: list[tuple[list[int], int]],
) -> None:
    prompts = [prompt for prompt, _ in jobs]
    tree = find_prefixes(prompts)
    expected = {
        "multi": tree.tokens,
        "single": tokens_computed(tree, exact(tree)),
        "none": tree.logical_tokens,
    }
    for level, tokens in expected.items():
        dry = DryRun(2000, policy=Planned(level=level))  # type: ignore[arg-type]
        dry.submit([dry.job(prompt, answer=answer) for prompt, answer in jobs])
        dry.run()
        assert dry.scheduler.meter.prefill_tokens == tokens


@given(PROMPTS, st.integers(16, 60), st.sampled_from([ArrivalOrder, LongestPrefix]))
@settings(max_examples=150)
def test_online_policies_end_everything_too(
    jobs: list[tuple[list[int], int]], capacity: int, policy: type[ArrivalOrder]
) -> None:
    dry = DryRun(capacity, policy=policy(), rows=8)
    made = [dry.job(prompt, answer=answer, limit=6) for prompt, answer in jobs]
    dry.submit(made)
    dry.run()
    assert sorted(dry.ended) == sorted(job.request.id for job in made)


def test_a_hundred_thousand_waiting_jobs_are_queued_and_removed() -> None:
    policy = ArrivalOrder()
    dry = DryRun(100, policy=policy)
    jobs = [dry.job([n % 50]) for n in range(100_000)]
    dry.submit(jobs)
    assert len(policy) == 100_000
    for job in reversed(jobs[10:]):
        dry.scheduler.finish(job)
    dry.run()
    assert dry.ended == [job.request.id for job in jobs[:10]]


# -- on a real engine ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load(str(tiny_model), dtype="fp32")


@pytest.mark.parametrize("level", ["multi", "single"])
async def test_answers_are_those_of_an_engine_that_shares_nothing(model: Model, level: str) -> None:
    draw = random.Random(3)
    texts = [f"Document {d}. " + "word " * (10 + d) for d in range(4)]
    group = [
        Request(
            (Segment(draw.choice(texts) + f"Question {n}?"),),
            Sampling(
                max_tokens=draw.randint(1, 20),
                temperature=draw.choice([0.0, 0.8]),
                seed=n,
                ignore_eos=True,
            ),
        )
        for n in range(24)
    ]
    token_bytes = 2 * 2 * 2 * 8 * 4
    engine = LocalEngine(model, kv_bytes=230 * token_bytes)
    engine.scheduler.waiting = Planned(level=level)  # type: ignore[arg-type]
    planned = await engine.generate(group)
    meter = engine.scheduler.meter
    computed = meter.prefill_tokens + meter.repeated_tokens + meter.decode_tokens
    assert engine.counters.tokens_computed == computed
    assert engine.kv_bytes_used == 0
    alone = await engine.unshared().generate(group)
    assert [(one.tokens, one.text) for one in planned] == [(one.tokens, one.text) for one in alone]
    if level == "multi":
        prompts = [engine.encode(request.prompt) for request in group]
        assert meter.prefill_tokens == tree_tokens(prompts)
    await engine.close()


async def test_scores_are_planned_too(model: Model) -> None:
    engine = LocalEngine(model)
    policy = engine.scheduler.waiting = Planned()
    prefix = (Segment("The capital of France is"),)
    tokens = engine.encode(prefix)
    policy.announce_scores("later", tokens[:-1])
    first = await engine.score(prefix, [" Paris", " Rome"])
    second = await engine.score(prefix, [" Paris", " Rome"])
    assert first == second
    assert engine.kv_bytes_used == 0
    plain = LocalEngine(model)
    assert await plain.score(prefix, [" Paris", " Rome"]) == first
    await plain.close()
    await engine.close()
