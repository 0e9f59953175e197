"""Contracts for hired agents: the published optima, every deviation, rounds, bad input."""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

import numpy as np
import pytest

from shoal.core.errors import ConfigError, InputError, MissingExtra
from shoal.core.log import EventLog
from shoal.mechanisms import Mechanism, Opening, ReportError, Round
from shoal.mechanisms.hiring.examples import common_noise, independent_noise
from shoal.mechanisms.hiring.information_acquisition import (
    InformationAcquisition,
    alone,
    audit_ic,
    solve_correlated,
    solve_deterministic,
    solve_uncorrelated,
    worth,
)
from shoal.mechanisms.hiring.lp import SolverError, agent_rule, best_contract, variables
from shoal.mechanisms.hiring.problem import (
    AcquisitionProblem,
    Contract,
    deviation_gains,
    erase,
    largest_gain,
    problem,
)


def random_problem(rng: np.random.Generator, n: int, *, sizes: int = 3) -> AcquisitionProblem:
    """Correlated signals: one shared draw, blurred by the agent's effort, if any."""
    efforts, signals = rng.integers(1, sizes + 1, (2, n)).tolist()
    efforts[0] = max(2, efforts[0])
    states, hidden = int(rng.integers(2, 4)), 3
    shared_TH = rng.dirichlet(np.full(hidden, 0.5), states)
    joint = np.full((states, hidden), 1 / states) * shared_TH
    P = joint.reshape((1,) * n + (states, hidden) + (1,) * n)
    for i in range(n):
        blur = rng.dirichlet(np.full(signals[i], 0.4), (efforts[i], states, hidden))
        blur[0] = blur[0, 0, 0]
        shape = [1] * (2 * n + 2)
        shape[i], shape[n], shape[n + 1], shape[n + 2 + i] = blur.shape
        P = P * blur.reshape(shape)
    costs = [rng.random(count) * 0.05 * np.arange(count) for count in efforts]
    return problem(P.sum(axis=n + 1), costs, np.eye(states), float(rng.uniform(0.3, 3)))


def brute_force_gain(contract: Contract, case: AcquisitionProblem) -> float:
    """The best of all (disobedience, lie) pairs, each played out outcome by outcome."""
    best = 0.0
    n = case.agents
    cells = list(itertools.product(*map(range, case.efforts)))
    outcomes = list(itertools.product(range(case.states), *map(range, case.signals)))
    for i in range(n):
        b, s = case.efforts[i], case.signals[i]

        def payoff(act: tuple[int, ...], say: tuple[int, ...], i: int = i, s: int = s) -> float:
            total = 0.0
            for told in cells:
                if contract.mu[told] == 0:
                    continue
                played = (*told[:i], act[told[i]], *told[i + 1 :])
                total -= contract.mu[told] * case.costs[i][played[i]]
                for state, *seen in outcomes:
                    said = [*seen[:i], say[told[i] * s + seen[i]], *seen[i + 1 :]]
                    paid = contract.gamma[(i, *told, state, *said)]
                    total += contract.mu[told] * case.P[(*played, state, *seen)] * paid
            return float(total)

        truth = payoff(tuple(range(b)), tuple(range(s)) * b)
        for act in itertools.product(range(b), repeat=b):
            for say in itertools.product(range(s), repeat=b * s):
                best = max(best, payoff(act, say) - truth)
    return best


@pytest.mark.parametrize(
    ("options", "correlated", "alone"),
    [
        ({}, 0.5723, 0.5),
        ({"cost": 0.03}, 0.6381, 0.5950),
        ({"cap": 5.0}, 0.5785, 0.5),
        ({"accuracy": 0.8, "cost": 0.1, "cap": 5.0}, 0.5959, 0.5333),
    ],
)
def test_common_noise_pays_for_checks_instead_of_wages(
    options: dict[str, float], correlated: float, alone: float
) -> None:
    case = common_noise(**options)  # type: ignore[arg-type]
    assert worth(solve_correlated(case), case).utility == pytest.approx(correlated, abs=1e-4)
    assert solve_deterministic(case)[1].utility == pytest.approx(alone, abs=1e-4)
    assert solve_uncorrelated(case).terms.utility == pytest.approx(alone, abs=1e-4)


def test_both_are_hired_six_times_in_a_hundred_and_less_the_larger_the_cap() -> None:
    mu = solve_correlated(common_noise()).mu
    np.testing.assert_allclose(mu, [[0, 0.468], [0.468, 0.064]], atol=1e-3)
    assert solve_correlated(common_noise(cap=5.0)).mu[1, 1] == pytest.approx(0.012, abs=1e-3)


def test_independent_signals_gain_nothing_by_correlation() -> None:
    case = independent_noise(cost=0.03)
    found = worth(solve_correlated(case), case).utility
    assert found == pytest.approx(0.5950, abs=1e-6)
    assert solve_deterministic(case)[1].utility == pytest.approx(found, abs=1e-6)
    assert solve_uncorrelated(case).terms.utility == pytest.approx(found, abs=1e-6)


def test_one_agent_is_paid_c_over_the_difference_of_accuracies_if_right() -> None:
    case = independent_noise(1, accuracies=(0.5, 0.85), cost=0.08)
    found = solve_uncorrelated(case)
    assert found.terms.pay == pytest.approx(0.85 * 0.08 / 0.35, abs=1e-9)
    assert found.terms.utility == pytest.approx(0.6557, abs=1e-4)
    assert worth(solve_correlated(case), case).utility == pytest.approx(0.6557, abs=1e-4)


@pytest.mark.parametrize("seed", range(40))
def test_no_pair_of_disobedience_and_lie_gains(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = random_problem(rng, 2, sizes=2)
    contract = solve_correlated(case)
    assert brute_force_gain(contract, case) <= 1e-7
    careless = Contract(contract.mu, rng.random(contract.gamma.shape) * case.cap, contract.policy)
    found = largest_gain(careless, case.P, case.differences)
    assert found == pytest.approx(brute_force_gain(careless, case), abs=1e-9)


def test_no_deviation_gains_and_more_freedom_is_never_worse_on_200_random_problems() -> None:
    hired = better = 0
    for seed in range(200):
        rng = np.random.default_rng(1_000 + seed)
        case = random_problem(rng, 2 + seed % 2, sizes=3 if seed % 2 == 0 else 2)
        contract = solve_correlated(case)
        assert largest_gain(contract, case.P, case.differences) <= 1e-7
        assert contract.gamma.min() >= 0 and contract.gamma.max() <= case.cap
        simple = solve_uncorrelated(case)
        utilities = [
            worth(contract, case).utility,
            solve_deterministic(case)[1].utility,
            simple.terms.utility,
        ]
        assert utilities[0] >= utilities[1] - 1e-7 >= utilities[2] - 2e-7
        joint = simple.contract(case)
        assert worth(joint, case).utility == pytest.approx(utilities[2], abs=1e-7)
        assert largest_gain(joint, case.P, case.differences) <= 1e-7
        hired += worth(contract, case).pay > 1e-3
        better += utilities[0] > utilities[2] + 1e-3
    assert hired > 50 and better > 5, "most of these problems must not be trivial"


@pytest.mark.parametrize(("n", "size"), [(2, 84), (3, 416), (4, 2_096), (5, 10_312)])
def test_the_size_is_polynomial_and_five_agents_take_less_than_a_second(n: int, size: int) -> None:
    case = common_noise(n)
    assert variables(case.efforts, case.states, case.signals) == size
    solve_correlated(common_noise())  # imports
    started = time.process_time()
    contract = solve_correlated(case)
    assert time.process_time() - started < 1.0
    assert worth(contract, case).utility == pytest.approx(0.5723, abs=1e-4)


def test_silent_recommendations_pay_the_same_whatever_is_said() -> None:
    case = common_noise()
    silence = ((True, False), (True, False))
    found = best_contract(case.P, case.differences, case.utility, case.cap, silence=silence)
    assert worth(found, case).utility == pytest.approx(0.5723, abs=1e-4)
    told_0 = found.gamma[:, 0]  # [agent, b_1, state, s_0, s_1]
    np.testing.assert_array_equal(told_0[..., 0, :], told_0[..., 1, :])
    np.testing.assert_array_equal(found.policy[0, :, 0], found.policy[0, :, 1])
    np.testing.assert_allclose(erase(case.P, silence), case.P)


def test_an_audit_finds_the_shirker_and_says_how() -> None:
    case = common_noise()
    paid = solve_correlated(case)
    flat = Contract(paid.mu, np.full_like(paid.gamma, 0.5), paid.policy)
    (found,) = audit_ic(flat, case).counterexamples
    assert found.shortfall == pytest.approx(0.06 * (paid.mu[1].sum()))
    assert "by effort 0" in found.sentence and "told effort 1" in found.sentence
    assert audit_ic(paid, case).kept == {"obedient and truthful"}


def test_without_a_cap_nobody_is_hired() -> None:
    case = common_noise(cap=0.0)
    contract = solve_correlated(case)
    assert contract.mu[0, 0] == 1 and not contract.gamma.any()
    assert worth(contract, case).utility == case.unhired == 0.5


def test_signals_that_never_come_are_allowed() -> None:
    P = np.zeros((2, 2, 3))
    P[:, :, :2] = common_noise(1).P
    case = problem(P, [[0, 0.01]], np.eye(2), 1)
    twin = problem(common_noise(1).P, [[0, 0.01]], np.eye(2), 1)
    found = worth(solve_correlated(case), case).utility
    assert found == pytest.approx(worth(solve_correlated(twin), twin).utility, abs=1e-9)


COIN = np.full((2, 2, 2), 0.25)


def with_entry(place: tuple[int, ...], value: float) -> Any:
    P = COIN.copy()
    P[place] = value
    return P


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"P": with_entry((1, 0, 0), 0.5)}, r"efforts \(1,\) sums to 1\.25"),
        ({"P": with_entry((1, 0, 0), float("nan"))}, r"efforts \(1,\)"),
        ({"P": COIN + np.array([[0.5, -0.5]])}, "-0.25 as its least"),
        ({"costs": [[0, -0.1]]}, "Agent 0 has costs"),
        ({"costs": [[0, float("nan")]]}, "Agent 0 has costs"),
        ({"costs": [[0, 0.1, 0.2]]}, "Agent 0 has 2 efforts"),
        ({"costs": []}, "0 agents need"),
        ({"costs": [[0, 0.1]] * 2}, "2 agents need"),
        ({"utility": [[1, 0, 0]]}, "2 states"),
        ({"utility": [[1, float("inf")]]}, "2 states"),
        ({"cap": -1}, "cap on one agent's pay is -1"),
        ({"cap": float("inf")}, "cap on one agent's pay is inf"),
    ],
)
def test_a_problem_that_makes_no_sense_is_refused(change: dict[str, Any], sentence: str) -> None:
    sound: dict[str, Any] = {"P": COIN, "costs": [[0, 0.1]], "utility": np.eye(2), "cap": 1}
    with pytest.raises(InputError, match=sentence):
        problem(**{**sound, **change})


def test_signals_that_depend_on_anothers_effort_are_refused() -> None:
    P = common_noise().P.copy()
    P[0, 1] = P[1, 1]
    with pytest.raises(InputError, match=r"Agent 0's signals at the efforts"):
        problem(P, [[0, 0.1]] * 2, np.eye(2), 1)


def test_a_problem_too_large_to_solve_jointly_is_refused_and_solved_alone() -> None:
    case = independent_noise(8, cost=0.02)
    big = np.broadcast_to(np.float64(0), (2,) * 9 + (2,) + (2,) * 9)
    with pytest.raises(ConfigError, match=r"variables, more than 2,000,000: .* uncorrelated"):
        best_contract(big, (*case.differences, case.differences[0]), case.utility, 1.0)
    assert solve_uncorrelated(case).terms.utility > case.unhired


def test_a_program_that_is_not_solved_raises_with_its_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import scipy.optimize

    unsolved = scipy.optimize.OptimizeResult(status=1, message="Iteration limit.", x=None)
    monkeypatch.setattr(scipy.optimize, "linprog", lambda *_, **__: unsolved)
    with pytest.raises(SolverError, match=r"status 1, Iteration limit"):
        solve_correlated(common_noise())


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(MissingExtra, match=r"shoal\[mechanisms\]"):
        solve_correlated(common_noise())


def test_an_effort_that_no_pay_below_the_cap_brings_about_has_no_rule() -> None:
    case = independent_noise(1, cost=0.5)
    assert agent_rule(alone(case, 0), case.differences[0], 1, case.cap) is None


def hired(**options: Any) -> InformationAcquisition:
    case = common_noise(**options)
    return InformationAcquisition(case, solve_correlated(case))


def test_a_round_recommends_in_private_pays_by_the_state_and_logs() -> None:
    mechanism: Mechanism = hired()
    log = EventLog()
    round = Round(mechanism, ["a", "b"], id="r", log=log, seed=3)
    efforts = [round.message(agent)["effort"] for agent in ("a", "b")]
    assert sum(efforts) >= 1
    for agent in ("a", "b"):
        round.report(agent, 1)
    with pytest.raises(ReportError, match="stays open, unpaid"):
        round.settle()
    assert list(log.events("settlement")) == []
    found = round.settle(observed=1)
    assert found.decision.outcome == 1
    assert found.decision.details["efforts"] == dict(zip("ab", efforts, strict=True))
    assert "no side agreements" in found.assumes[0]
    assert len(list(log.events("settlement"))) == 1


def test_recommendations_follow_mu_and_payments_follow_the_contract() -> None:
    mechanism = hired()
    draws = [mechanism.recommendation(Opening(f"{k}", ("a", "b"))) for k in range(4_000)]
    assert draws.count((1, 1)) / 4_000 == pytest.approx(0.064, abs=0.015)
    assert (0, 0) not in draws
    for efforts in ((1, 1), (1, 0)):
        round = Round(mechanism, ["a", "b"], id=str(draws.index(efforts)))
        round.report("a", 0)
        round.report("b", 0)
        paid = round.settle(observed=0).decision.payments
        gamma = mechanism.contract.gamma[(slice(None), *efforts, 0, 0, 0)]
        assert [paid["a"], paid["b"]] == pytest.approx(gamma.tolist())


def test_who_is_absent_is_paid_nothing_and_left_out_of_the_action() -> None:
    mechanism = hired()
    key = next(
        k for k in range(500) if mechanism.recommendation(Opening(str(k), ("a", "b"))) == (1, 1)
    )
    round = Round(mechanism, ["a", "b"], id=str(key))
    round.report("b", 1)
    with pytest.raises(ReportError, match="'a' reports 2, which is not one of its signals 0 to 1"):
        round.report("a", 2)
    found = round.settle(observed=1)
    assert (found.decision.outcome, found.absent) == (1, ("a",))
    # both see the same when both work: the missing report is as good as known
    assert found.decision.payments == {
        "b": pytest.approx(mechanism.contract.gamma[1, 1, 1, 1, 1, 1])
    }
    empty = Round(mechanism, ["a", "b"]).settle(observed=0)
    assert (empty.decision.payments, empty.absent) == ({}, ("a", "b"))


def test_reports_that_cannot_have_been_seen_are_paid_by_the_contract() -> None:
    mechanism = hired()
    key = next(
        k for k in range(500) if mechanism.recommendation(Opening(str(k), ("a", "b"))) == (1, 1)
    )
    round = Round(mechanism, ["a", "b"], id=str(key))
    round.report("a", 0)
    round.report("b", 1)
    gamma = mechanism.contract.gamma[:, 1, 1, 0, 0, 1]
    assert list(round.settle(observed=0).decision.payments.values()) == pytest.approx(
        gamma.tolist()
    )


@pytest.mark.parametrize("value", [-1, 2, 0.0, True, "0", None])
def test_a_report_that_is_no_signal_is_refused(value: object) -> None:
    with pytest.raises(ReportError, match="not one of its signals"):
        Round(hired(), ["a", "b"]).report("a", value)


@pytest.mark.parametrize("state", [2, -1, "1", True, 0.5])
def test_a_state_there_is_not_is_refused(state: object) -> None:
    with pytest.raises(InputError, match="must be one of 0 to 1"):
        Round(hired(), ["a", "b"]).settle(observed=state)


def test_a_contract_is_for_its_own_number_of_agents() -> None:
    with pytest.raises(ConfigError, match="for 2 agents, not 3"):
        Round(hired(), ["a", "b", "c"]).message("a")
    with pytest.raises(ConfigError, match="for 2 agents, not 4"):
        hired().audit(4)
    assert hired().audit(2).exhaustive


def test_gains_are_by_what_was_told_and_what_was_played() -> None:
    case = common_noise()
    contract = solve_correlated(case)
    assert [gain.shape for gain in deviation_gains(contract, case.P, case.differences)] == [
        (2, 2)
    ] * 2
