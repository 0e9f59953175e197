"""Rules for one number: closed forms against plain medians, the paper's axioms, bad input."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import ConfigError
from shoal.core.log import EventLog
from shoal.mechanisms import ReportError, Round
from shoal.mechanisms.location.audit import shortfalls
from shoal.mechanisms.location.facility_location import FacilityLocation, settle
from shoal.mechanisms.location.rules import (
    RULES,
    FairSharePhantoms,
    Mean,
    Median,
    OrderStatistic,
    Phantoms,
    RandomRank,
    Rule,
    TrimmedMean,
    UniformPhantom,
    find_rule,
    proportional_slack,
)

points = st.one_of(
    st.floats(0, 1),
    st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.75, 1.0]),
    st.sampled_from([0.0, 1.0]),
)
profiles = st.lists(points, min_size=1, max_size=9)


def place(rule: Rule, *reports: float) -> float:
    return float(rule(np.array(reports)))


def plain_median(reports: list[float], phantoms: list[float]) -> float:
    """The middle of an odd number of numbers."""
    both = sorted([*reports, *phantoms])
    assert len(both) % 2 == 1
    return both[len(both) // 2]


@given(profiles)
def test_the_closed_form_is_the_median_with_phantoms_at_j_over_n(reports: list[float]) -> None:
    n = len(reports)
    phantoms = [j / n for j in range(1, n)]
    assert place(UniformPhantom(), *reports) == plain_median(reports, phantoms)
    assert place(Phantoms(tuple(phantoms)), *reports) == plain_median(reports, phantoms)
    ends = (0.0, *phantoms, 1.0)
    assert place(Phantoms(ends), *reports) == place(UniformPhantom(), *reports)


@given(profiles, st.data())
def test_any_phantoms_give_the_median_of_reports_and_phantoms(
    reports: list[float], data: st.DataObject
) -> None:
    for count in (len(reports) - 1, len(reports) + 1):
        p = sorted(data.draw(st.lists(points, min_size=count, max_size=count)))
        assert place(Phantoms(tuple(p)), *reports) == plain_median(reports, p)


@given(profiles)
def test_the_share_of_reports_at_or_above_the_outcome_is_the_outcome(reports: list[float]) -> None:
    y, n = place(UniformPhantom(), *reports), len(reports)
    assert sum(x >= y for x in reports) / n >= y
    assert sum(x > y for x in reports) / n <= y


@given(st.lists(st.tuples(points, st.integers(0, 4)), min_size=1, max_size=7))
def test_weights_in_whole_numbers_are_clones(weighted: list[tuple[float, int]]) -> None:
    x, w = (np.array(column, dtype=float) for column in zip(*weighted, strict=True))
    if not w.any():
        return
    clones = np.repeat(x, w.astype(int))
    for rule in (UniformPhantom(), Median(), OrderStatistic(0.3)):
        assert rule(x, w) == rule(clones)
    for rule in (Mean(), TrimmedMean()):
        assert rule(x, w) == pytest.approx(rule(clones), abs=1e-12)


@given(profiles, st.integers(0, 8), st.lists(st.floats(0.01, 1), min_size=2, max_size=4))
def test_splitting_a_weight_into_clones_changes_nothing(
    reports: list[float], who: int, parts: list[float]
) -> None:
    who %= len(reports)
    x, w = np.array(reports), np.ones(len(reports))
    split = np.array(parts) / sum(parts)
    x_split = np.append(np.delete(x, who), np.full(len(parts), x[who]))
    w_split = np.append(np.delete(w, who), split)
    assert UniformPhantom()(x_split, w_split) == pytest.approx(UniformPhantom()(x), abs=1e-12)


@given(profiles)
def test_the_uniform_phantom_keeps_every_fairness_promise(reports: list[float]) -> None:
    x = np.array([reports])
    short = shortfalls(x, UniformPhantom()(x)[None])
    assert max(float(value[0]) for value in short.values()) <= 1e-12


@given(profiles, st.sampled_from(list(RULES)), st.floats(0, 0.999))
def test_every_rule_stays_between_the_reports_or_where_their_shares_put_it(
    reports: list[float], name: str, chance: float
) -> None:
    y = place(RULES[name].drawn(chance), *reports)
    assert min(reports) <= y <= max(reports)


@given(st.lists(st.tuples(points, st.integers(1, 3)), min_size=1, max_size=7), points)
def test_the_slack_is_the_worst_over_all_groups_and_members(
    weighted: list[tuple[float, int]], y: float
) -> None:
    weighted = sorted(weighted, reverse=True)
    total = sum(w for _, w in weighted)
    worst = min(
        1 - abs(y - x) - (sum(w for _, w in group) / total - (group[0][0] - group[-1][0]))
        for size in range(1, len(weighted) + 1)
        for group in itertools.combinations(weighted, size)
        for x, _ in group
    )
    x, w = (np.array(column, dtype=float) for column in zip(*weighted, strict=True))
    found = proportional_slack(x, np.abs(x - y), np.cumsum(w) / total)
    assert found == pytest.approx(worst, abs=1e-12)


@pytest.mark.parametrize(("n", "unique", "individual"), [(3, 28, 6), (4, 165, 35)])
def test_only_the_uniform_phantom_has_unanimous_fair_share(
    n: int, unique: int, individual: int
) -> None:
    """All ascending phantoms on multiples of 1/(2n), against all profiles on the same grid."""
    grid = np.arange(2 * n + 1) / (2 * n)
    x = np.array(list(itertools.combinations_with_replacement(grid, n)))
    vectors = list(itertools.combinations_with_replacement(grid, n - 1))
    kept: dict[str, list[tuple[float, ...]]] = {}
    for phantoms in vectors:
        for promise, short in shortfalls(x, Phantoms(phantoms)(x)[None]).items():
            if short.max() <= 1e-12:
                kept.setdefault(promise, []).append(phantoms)
    assert len(vectors) == unique
    uniform = [tuple(j / n for j in range(1, n))]
    for promise in ("proportional", "unanimous fair share", "proportional fairness"):
        assert kept[promise] == uniform
    assert len(kept["individual fair share"]) == individual
    assert len(kept["unanimous"]) == unique


@pytest.mark.parametrize(
    "wrong", [lambda n: np.arange(n - 1) / (n - 2), lambda n: np.arange(1, n) / (n + 1)]
)
def test_phantoms_that_are_nearly_uniform_are_unfair(wrong) -> None:  # type: ignore[no-untyped-def]
    x = np.array(list(itertools.combinations_with_replacement([0.0, 0.5, 1.0], 5)))
    short = shortfalls(x, Phantoms(tuple(wrong(5)))(x)[None])
    assert short["unanimous fair share"].max() > 0.05


@pytest.mark.parametrize(
    ("rule", "reports", "y"),
    [
        (Median(), (0.1, 0.2, 0.7, 0.8), 0.2),
        (Median(), (0.1, 0.2, 0.7), 0.2),
        (Mean(), (0.0, 0.0, 1.0), 1 / 3),
        (TrimmedMean(0.2), (0.0, 0.4, 0.5, 0.6, 1.0), 0.5),
        (TrimmedMean(0.25), (0.0, 0.2, 1.0), (0.0 / 12 + 0.2 / 3 + 1.0 / 12) / 0.5),
        (UniformPhantom(), (0.0, 0.5, 1.0), 0.5),
        (UniformPhantom(), (0.0, 0.0, 1.0), 1 / 3),
        (FairSharePhantoms(), (0.0, 0.0, 1.0), 1 / 3),
        (FairSharePhantoms(), (0.0, 0.0, 0.0, 1.0, 1.0), 0.2),
        (UniformPhantom(), (0.1, 0.1, 0.1, 0.1, 1.0), 0.2),
    ],
)
def test_worked_examples(rule: Rule, reports: tuple[float, ...], y: float) -> None:
    assert place(rule, *reports) == pytest.approx(y, abs=1e-12)


def test_random_rank_draws_every_agent_by_weight() -> None:
    x, w = np.array([0.2, 0.9, 0.4]), np.array([1.0, 2.0, 1.0])
    drawn = [float(RandomRank().drawn((k + 0.5) / 400)(x, w)) for k in range(400)]
    assert {y: drawn.count(y) for y in set(drawn)} == {0.2: 100, 0.9: 200, 0.4: 100}
    assert sorted(float(rule(x)) for rule in RandomRank().draws(3)) == [0.2, 0.4, 0.9]


def test_one_greedy_cap_among_five_hardly_moves_the_uniform_phantom() -> None:
    caps = [10, 10, 10, 10, 100]
    assert settle(caps, 0, 100).value == pytest.approx(20)
    assert settle(caps, 0, 100, rule=Median()).value == 10
    assert settle(caps, 0, 100, rule=Mean()).value == pytest.approx(28)


def test_an_outcome_tells_pivots_utilities_and_slack() -> None:
    found = settle([0, 5, 10], 0, 10)
    assert (found.value, found.pivots) == (5.0, (1,))
    assert found.utilities.tolist() == [0.5, 1.0, 0.5]
    assert found.fair_share_slack == pytest.approx(1 / 6)
    assert settle([0, 0, 1]).pivots == ()


def test_integers_ties_one_report_and_a_million() -> None:
    assert settle([3], 0, 10).value == 3
    assert settle([7, 7, 7], 0, 10).value == 7
    many = np.round(np.random.default_rng(0).random(1_000_000), 2)
    y = settle(many).value
    assert y == plain_median(many.tolist(), [j / 1_000_000 for j in range(1, 1_000_000)])


@pytest.mark.parametrize(
    ("reports", "sentence"),
    [
        ([], "at least one report"),
        ([[0.5]], "in a row"),
        ([0.5, 1.5], "Agent 1 reports 1.5"),
        ([0.5, -0.1], "Agent 1 reports -0.1"),
        ([float("nan"), 0.5], "Agent 0 reports nan"),
        ([0.5, None], "Agent 1 reports nan"),
        ([float("inf")], "Agent 0 reports inf"),
    ],
)
def test_reports_that_cannot_be_counted_name_the_agent(reports: object, sentence: str) -> None:
    with pytest.raises(ReportError, match=sentence):
        settle(reports)  # type: ignore[arg-type]
    assert issubclass(ReportError, ValueError)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1.0, -1.0], "weight of agent 1 is -1"),
        ([float("nan"), 1.0], "weight of agent 0 is nan"),
        ([float("inf"), 1.0], "weight of agent 0 is inf"),
        ([0.0, 0.0], "All weights"),
        ([1.0], "as many weights"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights: list[float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        settle([0.2, 0.4], weights=weights)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_an_empty_or_endless_interval_is_refused(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match="no interval"):
        settle([1], low, high)
    with pytest.raises(ConfigError, match="no interval"):
        FacilityLocation(low=low, high=high)


@pytest.mark.parametrize(
    ("positions", "sentence"),
    [
        ((0.5, 0.2), "ascend"),
        ((0.2, 1.2), "ascend"),
        ((0.2, float("nan")), "ascend"),
        ((0.2, 0.5, 0.8), "3 reports need 2 phantoms, or 4"),
    ],
)
def test_phantoms_that_are_none_are_refused(positions: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        place(Phantoms(positions), 0.1, 0.2, 0.3)


def test_fixed_phantoms_know_no_weights() -> None:
    with pytest.raises(ConfigError, match="no weights"):
        Phantoms((0.5,))(np.array([0.1, 0.9]), np.array([1.0, 2.0]))


def test_a_trimmed_mean_cannot_cut_off_everything() -> None:
    with pytest.raises(ConfigError, match=r"not 0\.5"):
        TrimmedMean(0.5)


def test_an_unknown_rule_names_the_nearest() -> None:
    assert find_rule("median") == Median()
    with pytest.raises(ConfigError, match="Did you mean 'uniform-phantom'"):
        find_rule("uniform")


def test_a_round_settles_counts_weights_and_records_who_was_absent() -> None:
    log = EventLog()
    mechanism = FacilityLocation(low=0, high=100)
    with Round(mechanism, ["a", "b", "c", "d"], weights={"a": 3.0}, log=log, id="caps") as round:
        assert round.message("a") is None
        round.report("a", 10)
        round.report("b", 50)
        round.report("c", 90.0)
        settlement = round.settle()
    y = settle([10, 50, 90], 0, 100, weights=[3, 1, 1])
    assert settlement.decision.outcome == y.value == pytest.approx(40)
    assert settlement.absent == ("d",)
    assert settlement.decision.utilities == {"a": 0.7, "b": 0.9, "c": 0.5}
    assert settlement.decision.details["pivots"] == []
    assert settlement.decision.details["fair_share_slack"] == pytest.approx(y.fair_share_slack)
    assert "uniform-phantom" in settlement.mechanism
    assert any("language model" in sentence for sentence in settlement.assumes)
    (event,) = log.events("settlement")
    assert event.body["decision"]["outcome"] == settlement.decision.outcome


@pytest.mark.parametrize("value", [101, -1, float("nan"), "50", None, True, [5]])
def test_a_bad_report_in_a_round_names_agent_and_value(value: object) -> None:
    round = Round(FacilityLocation(low=0, high=100), ["a", "b"])
    round.report("a", 5)
    with pytest.raises(ReportError, match="'b' reports"):
        round.report("b", value)
    assert list(round.seals) == ["a"]


def test_a_round_nobody_reports_in_is_not_settled() -> None:
    with pytest.raises(ReportError, match="at least one report"):
        Round(FacilityLocation(), ["a"]).settle()


def test_a_drawn_rule_settles_the_same_for_the_same_seed() -> None:
    def outcome(seed: int) -> float:
        round = Round(FacilityLocation(RandomRank()), ["a", "b", "c"], seed=seed)
        for agent, value in zip("abc", (0.1, 0.5, 0.9), strict=True):
            round.report(agent, value)
        return float(round.settle().decision.outcome)

    assert [outcome(seed) for seed in range(20)] == [outcome(seed) for seed in range(20)]
    assert {outcome(seed) for seed in range(20)} == {0.1, 0.5, 0.9}


@pytest.mark.parametrize("n", [3, 5, 11, 51])
def test_the_worst_profiles_of_the_paper(n: int) -> None:
    """k at 1 and n-k at 0: welfare ratio n(n-k)/((n-k)^2+k^2) and cost ratio at most 2-2/n."""
    zero_one = np.array([[1.0] * k + [0.0] * (n - k) for k in range(1, (n + 1) // 2)])
    k = np.arange(1, (n + 1) // 2)
    best = n - k
    y = UniformPhantom()(zero_one)
    welfare = (1 - np.abs(zero_one - y[:, None])).sum(axis=1)
    cost = np.abs(zero_one - y[:, None]).sum(axis=1)
    assert best / welfare == pytest.approx(n * (n - k) / ((n - k) ** 2 + k**2), abs=1e-12)
    assert (cost / k).max() == pytest.approx(2 - 2 / n, abs=1e-12)


def test_order_and_names_of_the_reports_do_not_matter() -> None:
    draws = random.Random(3)
    reports = [draws.random() for _ in range(9)]
    for rule in RULES.values():
        shuffled = draws.sample(reports, 9)
        one, other = (place(rule.drawn(0.4), *some) for some in (reports, shuffled))
        assert one == pytest.approx(other, abs=1e-12)
