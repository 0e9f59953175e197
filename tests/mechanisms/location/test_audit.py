"""Audits find the counterexamples there are, fast, and none where a theorem says there is none."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest

from shoal.core.errors import ConfigError, InputError
from shoal.mechanisms import Counterexample
from shoal.mechanisms.location.audit import audit, outcomes
from shoal.mechanisms.location.facility_location import FacilityLocation
from shoal.mechanisms.location.rules import PROMISES, RULES, Floats, Mean, UniformPhantom

Written = Callable[[Floats], float]


def mean(x: Floats) -> float:
    return statistics.fmean(x)


def dictator(x: Floats) -> float:
    return float(x[0])


def library_median(x: Floats) -> float:
    return float(np.median(x))


def agreement(x: Floats) -> float:
    """What agents 0 and 1 agree on, else 1: not even continuous."""
    return float(x[0]) if x[0] == x[1] else 1.0


def found(rule: object, n: int, **options: int) -> dict[str, Counterexample]:
    report = audit(rule, n, **options)  # type: ignore[arg-type]
    return {one.promise: one for one in report.counterexamples}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_every_rule_keeps_what_it_guarantees(name: str, n: int) -> None:
    assert audit(RULES[name], n).kept >= RULES[name].guarantees


def test_what_a_rule_does_not_guarantee_is_broken_at_five() -> None:
    fair = {"individual fair share", "unanimous fair share", "proportional fairness"}
    for name in ("fair-share-phantoms", "median", "trimmed-mean", "mean"):
        kept = audit(RULES[name], 5).kept
        # the mean is fair as long as nobody lies, which it does not guarantee
        assert kept - RULES[name].guarantees <= (fair if name == "mean" else set())


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_the_mean_is_gamed_by_the_best_lie_there_is(n: int) -> None:
    """Lies move a mean by at most x/n, and help while y - x is more: (n-1)/n^2 on a fine grid."""
    lie = found(Mean(), n)["strategyproof"]
    assert 0.8 * (n - 1) / n**2 < lie.shortfall <= (n - 1) / n**2 + 1e-12


def test_a_counterexample_can_be_checked_by_hand() -> None:
    for one in found(mean, 3).values():
        case = one.case
        truth, lie, members = case["reports"], case["lies"], case["members"]
        assert mean(truth) == pytest.approx(case["outcome"])
        assert mean(lie) == pytest.approx(case["after"])
        assert all(truth[i] == lie[i] for i in range(3) if i not in members)
        gains = [abs(case["outcome"] - truth[i]) - abs(case["after"] - truth[i]) for i in members]
        assert min(gains) == pytest.approx(one.shortfall)
        assert "gain" in one.sentence


def brute_force(rule: Written, n: int, points: list[float]) -> dict[int, float]:
    """The best gain of coalitions by size, in the plainest way."""
    best = dict.fromkeys(range(1, n + 1), 0.0)
    for truth in itertools.product(points, repeat=n):
        y = rule(np.array(truth))
        for size in range(1, n + 1):
            for members in itertools.combinations(range(n), size):
                for lie in itertools.product(points, repeat=size):
                    said = list(truth)
                    for i, value in zip(members, lie, strict=True):
                        said[i] = value
                    after = rule(np.array(said))
                    gain = min(abs(y - truth[i]) - abs(after - truth[i]) for i in members)
                    best[size] = max(best[size], gain)
    return best


@pytest.mark.parametrize("rule", [mean, dictator, library_median, agreement])
def test_the_grid_search_equals_trying_every_lie_of_every_coalition(rule: Written) -> None:
    n, points = 3, np.linspace(0, 1, 4).tolist()
    best = brute_force(rule, n, points)
    lies = found(rule, n, grid=4, trials=1)
    for promise, gain in (
        ("strategyproof", best[1]),
        ("group-strategyproof", max(best[size] for size in range(2, n + 1))),
    ):
        assert (promise in lies) == (gain > 1e-12)
        if promise in lies:
            assert lies[promise].shortfall == pytest.approx(gain, abs=1e-12)


def test_a_dictator_is_neither_anonymous_nor_fair_but_truthful() -> None:
    kept = audit(dictator, 4).kept
    assert {"strategyproof", "group-strategyproof", "unanimous"} == kept


def test_the_mean_of_two_middle_reports_rewards_lies_and_the_lower_median_does_not() -> None:
    assert "strategyproof" in found(library_median, 4)
    assert "strategyproof" not in found(RULES["median"], 4)


def test_a_lie_that_only_random_reports_reveal_is_found() -> None:
    def off_the_grid(x: Floats) -> float:
        on_grid = all(round(value * 6) == pytest.approx(value * 6) for value in x)
        return float(UniformPhantom()(x)) if on_grid else mean(x)

    assert "strategyproof" in found(off_the_grid, 5, trials=500)


@pytest.mark.parametrize("rule", [mean, library_median, dictator])
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_an_audit_of_a_written_rule_takes_less_than_a_second(rule: Written, n: int) -> None:
    started = time.process_time()
    audit(rule, n)
    assert time.process_time() - started < 1.0


def test_no_profitable_lie_in_a_hundred_thousand_random_ones() -> None:
    for n in range(2, 6):
        report = audit(UniformPhantom(), n, grid=11, trials=25_000, seed=n)
        assert report.kept == frozenset(PROMISES)
        assert report.cases["strategyproof"] == 11**n + 25_000


def test_the_same_seed_finds_the_same() -> None:
    assert audit(mean, 3, seed=1) == audit(mean, 3, seed=1)


@pytest.mark.parametrize("value", [1.5, -0.2, float("nan")])
def test_a_rule_that_leaves_the_interval_is_named_with_its_reports(value: float) -> None:
    with pytest.raises(InputError, match=r"For the reports \[0\.0, 0\.0\] the rule gives"):
        audit(lambda x: value, 2)


@pytest.mark.parametrize("n", [0, -1, 8])
def test_a_group_that_is_too_large_to_try_all_is_refused(n: int) -> None:
    with pytest.raises(ConfigError, match="1 to 7 agents"):
        audit(mean, n)


def test_a_rule_that_sorts_in_place_spoils_nothing() -> None:
    def sorts(x: Floats) -> float:
        x.sort()
        return float(x[0])

    x = np.array([[0.9, 0.1]])
    assert outcomes(sorts, x).tolist() == [[0.1]]
    assert x.tolist() == [[0.9, 0.1]]


def test_the_mechanism_audits_its_rule() -> None:
    assert FacilityLocation(Mean()).audit(3) == audit(Mean(), 3)
