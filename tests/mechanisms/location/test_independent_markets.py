"""Budget splits: proportional, truthful in l1, and the Uniform Phantom with two alternatives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from shoal.core.errors import ConfigError
from shoal.mechanisms import ReportError, Round
from shoal.mechanisms.location.independent_markets import (
    IndependentMarkets,
    audit_markets,
    independent_markets,
)
from shoal.mechanisms.location.rules import UniformPhantom


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_two_alternatives_are_the_uniform_phantom(shares: list[float]) -> None:
    x = np.array(shares)
    assert independent_markets(np.c_[x, 1 - x])[0] == pytest.approx(
        float(UniformPhantom()(x)), abs=1e-12
    )


def plain(x_nm: np.ndarray) -> np.ndarray:
    """Medians of reports and phantoms min(t (n-k), 1), with t found by scipy."""
    n = len(x_nm)

    def medians(t: float) -> np.ndarray:
        phantoms = [min(t * (n - k), 1.0) for k in range(n + 1)]
        return np.array([np.median([*column, *phantoms]) for column in x_nm.T])

    return medians(brentq(lambda t: medians(t).sum() - 1, 0, 1, xtol=1e-15))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 3), (8, 4)])
def test_the_split_is_that_of_the_plain_median_form(n: int, m: int) -> None:
    rng = np.random.default_rng(n * 10 + m)
    for _ in range(30):
        x_nm = rng.dirichlet(np.ones(m), n)
        split = independent_markets(x_nm)
        assert split == pytest.approx(plain(x_nm), abs=1e-9)
        assert split.sum() == pytest.approx(1, abs=1e-12)


def test_one_agent_gets_what_it_proposes() -> None:
    assert independent_markets([[0.2, 0.3, 0.5]]) == pytest.approx([0.2, 0.3, 0.5])


def test_single_minded_agents_share_in_proportion() -> None:
    corners = np.eye(3)[[0, 0, 0, 1, 2]]
    assert independent_markets(corners) == pytest.approx([0.6, 0.2, 0.2], abs=1e-12)


def test_whole_weights_are_clones_and_zero_weights_nobody() -> None:
    x_nm = np.random.default_rng(1).dirichlet(np.ones(3), 4)
    weighted = independent_markets(x_nm, weights=[2, 0, 1, 3])
    assert weighted == pytest.approx(independent_markets(x_nm[[0, 0, 2, 3, 3, 3]]), abs=1e-12)


def test_no_lie_pays_in_l1_and_the_audit_would_see_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert audit_markets(3, 3).kept == {"strategyproof", "proportional"}
    assert IndependentMarkets(("a", "b", "c")).audit(3).counterexamples == ()
    monkeypatch.setattr(
        "shoal.mechanisms.location.independent_markets.independent_markets",
        lambda x: np.mean(x, axis=0),
    )
    (lie,) = audit_markets(3, 3).counterexamples
    assert lie.promise == "strategyproof"


def test_a_round_splits_a_budget_by_name() -> None:
    round = Round(IndependentMarkets(("generate", "verify")), ["a", "b", "c"])
    for agent, split in zip("abc", ([1, 0], [0.5, 0.5], [0, 1]), strict=True):
        round.report(agent, split)
    decision = round.settle().decision
    assert decision.outcome == pytest.approx({"generate": 0.5, "verify": 0.5})
    assert decision.utilities == pytest.approx({"a": 0.5, "b": 1.0, "c": 0.5})


@pytest.mark.parametrize(
    "value", [[0.5], [0.7, 0.7], [-0.5, 1.5], [float("nan"), 1], "half", None, [[1, 0]], 0.5]
)
def test_a_proposal_that_is_none_names_the_agent(value: object) -> None:
    round = Round(IndependentMarkets(("x", "y")), ["a"])
    with pytest.raises(ReportError, match="'a' proposes"):
        round.report("a", value)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(ReportError, match="rows of shares"):
        independent_markets([])
    with pytest.raises(ReportError, match="Agent 1 proposes"):
        independent_markets([[1, 0], [1, 1]])
    with pytest.raises(ReportError, match="at least one proposal"):
        Round(IndependentMarkets(("x", "y")), ["a"]).settle()
    for weights in ([1], [0, 0], [-1, 1], [float("nan"), 1]):
        with pytest.raises(ConfigError, match="weights"):
            independent_markets([[1, 0], [0, 1]], weights=weights)
    for names in ((), ("x",), ("x", "x")):
        with pytest.raises(ConfigError, match="two or more names"):
            IndependentMarkets(names)
