"""The claim's own parts: batches by plain counts, arms that agree, verdicts on a small model."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from shoal.core.claims import Bench, find_system, runner
from shoal.training.policies import Policy, word_policy


@pytest.fixture(scope="module")
def claim() -> ModuleType:
    checkout = runner.find_checkout()
    assert checkout is not None
    runner.load_claim(find_system("prefix-grouper"), checkout)
    return sys.modules["shoal_benchmarks.prefix_grouper"]


@pytest.fixture
def small() -> Policy:
    return word_policy([f"w{n}" for n in range(60)], hidden=16, layers=2, heads=2, context=256)


def writer(claim: ModuleType, bench: Bench) -> Any:
    return claim.Writer(bench.seed_of("tokens"), 60)


def test_a_batch_of_turns_is_a_tree_of_three_levels(claim: ModuleType) -> None:
    batch = writer(claim, Bench()).turns(system=20, tasks=2, rollouts=4, turns=3)
    assert len(batch.prompts) == 12 and len(set(batch.prompts)) == 2 + 4 * 2
    lengths = [20 + 48 + 64 * turn for turn in range(3)]
    assert batch.tokens == 4 * sum(n + 23 for n in lengths)
    assert {prompt[:20] for prompt in batch.prompts} == {batch.prompts[0][:20]}


def test_all_arms_compute_the_same_gradients(claim: ModuleType, small: Policy) -> None:
    bench = Bench(smoke=True)
    arms = ["packed", "shared", *(["prefix_grouper"] if claim._has_peer() else [])]
    batch = writer(claim, bench).group(40, 5, 6)
    claim.step(small, batch, "plain")
    plain = claim.gradients(small)
    assert sum(float(gradient.norm()) for gradient in plain.values()) > 0.1
    for arm in arms:
        claim.step(small, batch, arm)
        assert claim.apart(claim.gradients(small), plain) < 1e-5, arm


def test_a_tree_is_judged_by_the_same_bounds(claim: ModuleType, small: Policy) -> None:
    bench = Bench(smoke=True)
    write = writer(claim, bench)
    batch = write.turns(system=20, tasks=2, rollouts=4, turns=2)
    claim.exact(bench, small, batch, ["shared"])
    gains = claim.timed(bench, small, batch, ["plain", "shared"], rounds=2)
    assert [verdict.holds for verdict in bench.verdicts] == [True, True]
    assert gains["shared"].estimate > 0.5
    (tokens,) = [arm.metrics for arm in bench.arms if arm.name.endswith(": tokens")]
    assert tokens["of_all_rows"] == batch.tokens
