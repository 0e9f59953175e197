"""Learners: what they refuse and find, that they resume, and that nobody gains by shirking."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shoal.core.errors import ConfigError, InputError
from shoal.core.records import from_json, to_json
from shoal.mechanisms.hiring.agents import best_response, play, play_all, regret
from shoal.mechanisms.hiring.costs import Search, cost_differences, searches
from shoal.mechanisms.hiring.estimates import estimate, least_share, posterior, worst_case_share
from shoal.mechanisms.hiring.examples import common_noise, independent_noise
from shoal.mechanisms.hiring.information_acquisition import alone, solve_correlated, worth
from shoal.mechanisms.hiring.learners import (
    UCBLP,
    ExploreThenCommit,
    LearnerState,
    Plan,
    Setting,
    Tally,
)
from shoal.mechanisms.hiring.lp import best_contract
from shoal.mechanisms.hiring.oracle import check_oracle, robustify, widest_rules
from shoal.mechanisms.hiring.problem import AcquisitionProblem, Contract, largest_gain

CASE = common_noise()


def setting(rounds: int, case: AcquisitionProblem = CASE, **options: Any) -> Setting:
    return Setting(case.P.shape, case.utility, case.cap, widest_rules(case), rounds, **options)


def test_the_widest_rules_pay_for_being_right_and_nothing_for_no_work() -> None:
    oracle = widest_rules(CASE)
    np.testing.assert_allclose(oracle.rules[0][1], np.eye(2))
    assert not oracle.rules[0][0].any()
    assert oracle.silence == ((True, False), (True, False))
    # idle loses the cost saved, 0.06; work loses 0.7 - 0.06 - 0.5 when skipped
    assert oracle.margin == pytest.approx(0.06)
    assert oracle.likelihood == pytest.approx(0.5)


def test_a_rule_without_a_margin_is_refused_by_name_and_by_how_much() -> None:
    rules = [[np.zeros((2, 2)), np.eye(2)], [np.zeros((2, 2)), np.eye(2) / 4]]
    with pytest.raises(InputError, match=r"rule of agent 1 for effort 1 has margin -0\.01 "):
        check_oracle(CASE, rules)


def test_a_rule_about_a_signal_that_never_comes_is_refused() -> None:
    P = np.zeros((2, 2, 3))
    P[:, :, :2] = common_noise(1).P
    case = replace(common_noise(1), P=P)
    with pytest.raises(InputError, match="margin 0 and its rarest signal probability 0"):
        check_oracle(case, [[np.zeros((3, 2)), np.array([[1.0, 0], [0, 1], [0, 0]])]])


@pytest.mark.parametrize("change", [{"margin": 0.0}, {"margin": -0.1}, {"likelihood": 0.0}])
def test_learning_without_a_margin_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="both must be above 0"):
        replace(setting(10), oracle=replace(widest_rules(CASE), **change))


def test_learning_takes_a_round() -> None:
    with pytest.raises(ConfigError, match="not 0"):
        setting(0)


def test_known_rules_are_incentive_compatible_whatever_is_recommended() -> None:
    oracle = widest_rules(CASE)
    rng = np.random.default_rng(0)
    mu = rng.dirichlet(np.ones(4)).reshape(2, 2)
    known = Contract(mu, oracle.payments(CASE.P.shape), solve_correlated(CASE).policy)
    assert largest_gain(known, CASE.P, CASE.differences) <= 1e-12
    assert robustify(known, np.zeros_like(known.gamma), 0.25).gamma == pytest.approx(
        0.75 * known.gamma
    )


def test_a_best_response_is_the_best_of_all_efforts_and_lies() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        p = rng.dirichlet(np.ones(6), 3).reshape(3, 3, 2)
        gamma, cost = rng.random((3, 2)), rng.random(3) * 0.3
        effort, say = best_response(p, gamma, cost, 0)

        def payoff(
            b: int, lie: tuple[int, ...], p: Any = p, g: Any = gamma, c: Any = cost
        ) -> float:
            return float(sum(p[b, s] @ g[lie[s]] for s in range(3)) - c[b])

        every = [payoff(b, lie) for b in range(3) for lie in itertools.product(range(3), repeat=3)]
        assert payoff(effort, say) == pytest.approx(max(every), abs=1e-7)


def test_ties_go_to_what_was_told_and_to_the_truth() -> None:
    p = alone(CASE, 0)
    assert best_response(p, np.zeros((2, 2)), np.zeros(2), 1) == (1, (0, 1))


def test_a_third_effort_splits_the_search() -> None:
    search = Search(0, (0, 2), 0, 2)
    assert search.step(0) == (Search(0, (0, 2), 0, 2, 0.5, 1.0, 1),)
    assert search.step(2) == (Search(0, (0, 2), 0, 2, 0.0, 0.5, 1),)
    assert search.step(1) == (
        Search(0, (0, 2), 0, 1, 0.0, 0.5, 1),
        Search(0, (0, 2), 1, 2, 0.5, 1.0, 1),
    )


def test_costs_follow_from_where_agents_change_their_mind() -> None:
    case = independent_noise(1, accuracies=(0.5, 0.8, 0.9), cost=0.03)
    oracle, own = widest_rules(case), (alone(case, 0),)
    pending, found = list(searches(case.efforts)), []
    while pending:
        search = pending.pop()
        if search.steps == 40:
            found.append(search)
            continue
        offer = search.offer(oracle.rules)
        pending += search.step(best_response(own[0], offer, case.costs[0], search.left)[0])
    (C,) = cost_differences(found, own, oracle.rules, case.efforts)
    np.testing.assert_allclose(C, case.differences[0], atol=1e-6)
    np.testing.assert_allclose(C, -C.T)


@pytest.mark.parametrize("observe", [True, False])
def test_exploring_then_committing_plays_every_round_and_nobody_gains(observe: bool) -> None:
    learner = ExploreThenCommit(setting(100_000, observe_efforts=observe))
    spells = play_all(learner, CASE)
    assert sum(spell.rounds for spell in spells) == 100_000
    assert [spells[0].phase, spells[-1].phase] == ["signals", "commit"]
    assert spells[-1].gain <= 1e-9
    optimum = worth(solve_correlated(CASE), CASE).utility
    assert 0 < optimum - spells[-1].utility < 0.1
    explored = sum(spell.rounds for spell in spells if spell.phase == "signals")
    assert explored == pytest.approx(4 * 100_000 ** (2 / 3), rel=0.01)
    np.testing.assert_allclose(learner._differences(learner.counts)[0][1, 0], 0.06, atol=0.05)


def test_optimism_has_less_regret_than_committing_at_the_same_length() -> None:
    optimum = worth(solve_correlated(CASE), CASE).utility
    cautious, eager = (
        regret(play_all(learner, CASE), optimum)
        for learner in (ExploreThenCommit(setting(200_000)), UCBLP(setting(200_000)))
    )
    assert 0 < eager < cautious / 1.5


@pytest.mark.parametrize("kind", [ExploreThenCommit, UCBLP])
@pytest.mark.parametrize("observe", [True, False])
def test_a_learner_resumes_in_the_middle_of_every_phase(kind: Any, observe: bool) -> None:
    known = setting(40_000, observe_efforts=observe)
    whole = kind(known)
    resumed = kind(known)
    while play(whole, CASE) is not None:
        pass
    phases = set()
    while True:
        record = to_json(resumed.state)
        resumed = kind(known, from_json(LearnerState, record))
        spell = play(resumed, CASE)
        if spell is None:
            break
        phases.add(spell.phase)
    assert len(phases) == 3
    assert resumed.state == whole.state


def test_a_plan_may_be_settled_in_parts() -> None:
    learner = ExploreThenCommit(setting(1_000))
    plan = learner.recommend()
    assert plan is not None and plan.efforts == (0, 0)
    counts = np.zeros(CASE.P.shape, dtype=np.int64)
    counts[0, 0, 1, 0, 0] = 30
    learner.settle(plan, Tally(counts))
    after = learner.recommend()
    assert after is not None and after.rounds == plan.rounds - 30
    with pytest.raises(InputError, match=f"plan was for 1 to {after.rounds} rounds"):
        learner.settle(after, Tally(counts * 1_000))


def test_a_state_of_another_setting_is_refused() -> None:
    with pytest.raises(InputError, match="counts 3 outcomes, but this setting has 32"):
        ExploreThenCommit(setting(10), LearnerState(counts=(0, 0, 0)))


def test_a_tally_without_the_efforts_that_are_observed_is_refused() -> None:
    learner = ExploreThenCommit(setting(2_000))
    while (plan := learner.recommend()) is not None and plan.phase == "signals":
        play(learner, CASE)
    assert plan is not None
    counts = np.zeros(CASE.P.shape, dtype=np.int64)
    counts[(*plan.efforts, 0, 0, 0)] = 1
    with pytest.raises(InputError, match="the tally has none"):
        learner.settle(plan, Tally(counts))


def test_efforts_that_reports_cannot_tell_apart_must_be_observed() -> None:
    blind = ExploreThenCommit(setting(1_000, observe_efforts=False), explore=1)
    while (plan := blind._explore()) is not None:
        counts = np.zeros(CASE.P.shape, dtype=np.int64)
        counts[plan.efforts] = plan.rounds // 8 + 1
        blind.settle(replace(plan, rounds=10_000), Tally(counts))
    with pytest.raises(InputError, match="do not tell effort 0 from 1"):
        blind.recommend()


def test_posterior_draws_are_as_far_from_what_was_seen_as_the_truth_is() -> None:
    rng = np.random.default_rng(0)
    flat = CASE.P.reshape(4, -1)
    truth, drawn = [], []
    for _ in range(300):
        counts = np.stack([rng.multinomial(500, row) for row in flat]).reshape(CASE.P.shape)
        truth.append(estimate(counts) - CASE.P)
        drawn.append(estimate(posterior(counts, rng)) - estimate(counts))
    seen = CASE.P > 0
    np.testing.assert_allclose(np.std(drawn, 0)[seen], np.std(truth, 0)[seen], rtol=0.2)


def test_the_least_share_is_enough() -> None:
    oracle = widest_rules(CASE)
    known = oracle.payments(CASE.P.shape)
    rng = np.random.default_rng(2)
    for _ in range(20):
        counts = np.stack([rng.multinomial(300, row) for row in CASE.P.reshape(4, -1)])
        P = estimate(counts.reshape(CASE.P.shape))
        solved = best_contract(P, CASE.differences, CASE.utility, 1.0, silence=oracle.silence)
        sure = robustify(solved, known, 1.0)
        share = least_share(solved, sure, CASE.P, CASE.differences)
        mixed = robustify(solved, known, share)
        assert largest_gain(mixed, CASE.P, CASE.differences) <= 1e-9


def test_the_closed_form_asks_for_nearly_everything_at_a_million_rounds() -> None:
    assert 0.95 < worst_case_share(2_500, 4, 8, 1.0, 0.06, 1e-6) <= 1
    assert worst_case_share(10**12, 4, 8, 1.0, 0.06, 1e-6) < 0.05
    spells = play_all(ExploreThenCommit(setting(20_000), draws=0), CASE)
    assert spells[-1].gain <= 1e-12


def test_a_contract_that_can_be_gamed_is_charged_its_worst() -> None:
    class Naive(ExploreThenCommit):
        """Pays everybody the same, whatever comes."""

        def recommend(self) -> Plan | None:
            left = self.setting.rounds - self.state.done
            fair = Contract(
                np.array([[0, 0], [0, 1.0]]),
                np.full((2, *CASE.P.shape), 0.1),
                solve_correlated(CASE).policy,
            )
            return Plan("naive", left, contract=fair) if left else None

    learner = Naive(setting(1_000))
    (spell,) = play_all(learner, CASE)
    assert spell.utility == -2.0
    assert spell.gain == pytest.approx(0.06)
    # told to work, both idle and report coins: right half of the time
    right = learner.counts[1, 1, 0, 0].sum() / learner.counts[1, 1, 0].sum()
    assert right == pytest.approx(0.5, abs=0.06)
