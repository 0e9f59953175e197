"""Rounds: reports stay sealed, the escrow covers the payments, a settlement happens once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shoal.core.budget import Budget, Limits
from shoal.core.errors import BudgetExhausted, ConfigError
from shoal.core.log import EventLog
from shoal.mechanisms import (
    Audit,
    Decision,
    Mechanism,
    Opening,
    Report,
    ReportError,
    Round,
    stakes,
)


@dataclass(frozen=True)
class Auction:
    """The highest bid wins, and the seller is paid half of it; bids are at most 10."""

    name: str = "auction"
    guarantees: frozenset[str] = frozenset()
    assumes: tuple[str, ...] = ("Bidders have money.",)
    most_paid: float = 5.0

    def message(self, opening: Opening, agent: str, earlier: Sequence[Report]) -> Any:
        return {"before you": len(earlier), "you weigh": opening.weight(agent)}

    def check(self, opening: Opening, agent: str, value: Any) -> float:
        if not isinstance(value, int | float) or not 0 <= value <= 10:
            raise ReportError(f"{agent!r} bids {value!r}, but a bid lies between 0 and 10.")
        return float(value)

    def settle(self, opening: Opening, reports: Sequence[Report], observed: Any = None) -> Decision:
        if not reports:
            raise ReportError("Nobody has bid.")
        best = max(reports, key=lambda report: report.value)
        return Decision(best.agent, {"seller": best.value / 2}, how="exact")

    def audit(self, agents: int) -> Audit:
        return Audit(self.name, {}, (), exhaustive=True)


MECHANISM: Mechanism = Auction()


def settled(round: Round) -> Any:
    round.report("a", 3)
    round.report("b", 8.0)
    return round.settle()


def test_a_settlement_holds_all_that_went_in_and_came_out() -> None:
    round = Round(MECHANISM, ["a", "b", "c"], weights={"a": 2.0}, seed=5)
    assert round.message("b") == {"before you": 0, "you weigh": 1.0}
    found = settled(round)
    assert (found.decision.outcome, found.decision.payments) == ("b", {"seller": 4.0})
    assert [(report.agent, report.value) for report in found.reports] == [("a", 3.0), ("b", 8.0)]
    assert (found.absent, found.assumes) == (("c",), ("Bidders have money.",))
    assert found.messages == {"b": {"before you": 0, "you weigh": 1.0}}
    assert found.opening == Opening(round.opening.id, ("a", "b", "c"), {"a": 2.0}, 5)


def test_a_private_message_stays_as_it_was_first_given() -> None:
    round = Round(MECHANISM, ["a", "b"])
    first = round.message("b")
    round.report("a", 1)
    assert round.message("b") == first


def test_reports_are_sealed_until_the_end_and_the_seal_fits_what_was_said() -> None:
    log = EventLog()
    round = Round(MECHANISM, ["a", "b"], log=log)
    seal = round.report("a", 7)
    assert round.seals == {"a": seal}
    assert seal != Round(MECHANISM, ["a"]).report("a", 7), "equal bids must not look equal"
    assert list(log.events()) == []
    (report,) = round.settle().reports
    assert report.seal == seal
    assert "7" not in repr(Report("a", 7))


def test_the_inputs_have_one_digest_whatever_the_nonces() -> None:
    digests = {settled(Round(MECHANISM, ["a", "b"], id="one", seed=s)).inputs for s in (1, 1, 2)}
    assert len(digests) == 2


def test_settling_twice_is_one_event_also_in_another_process(tmp_path: Path) -> None:
    with EventLog(tmp_path / "log.sqlite") as log:
        round = Round(MECHANISM, ["a", "b"], id="r1", log=log, budget=Budget(Limits(tokens=100)))
        first = settled(round)
        assert round.settle() == first
    with EventLog(tmp_path / "log.sqlite") as log:
        budget = Budget(Limits(tokens=100))
        again = Round(MECHANISM, ["a", "b"], id="r1", log=log, budget=budget)
        with pytest.raises(ReportError, match="after round r1 was settled"):
            again.report("a", 9)
        assert again.settle() == first
        assert budget.used_tokens == first.paid_tokens
        assert [event.key for event in log.events("settlement")] == ["settlement:r1"]


def test_payments_come_out_of_an_escrow() -> None:
    budget = Budget(Limits(tokens=500, calls=0))
    round = Round(MECHANISM, ["a", "b"], budget=budget, tokens_per_unit=100)
    assert budget.remaining().tokens == 0
    assert settled(round).paid_tokens == 400
    assert (budget.used_tokens, budget.remaining().tokens) == (400, 100)
    with pytest.raises(BudgetExhausted, match="100 tokens left"):
        Round(MECHANISM, ["a"], budget=budget, tokens_per_unit=100)


def test_a_round_left_unsettled_gives_its_escrow_back() -> None:
    budget = Budget(Limits(tokens=5))
    with Round(MECHANISM, ["a"], budget=budget) as round, pytest.raises(ReportError):
        round.settle()
    assert budget.remaining().tokens == 5


@pytest.mark.parametrize(
    ("agent", "value", "sentence"),
    [
        ("a", 11, "'a' bids 11"),
        ("a", None, "'a' bids None"),
        ("x", 1, "'x' takes no part"),
        ("b", 1, "'b' has reported already"),
    ],
)
def test_a_bad_report_names_agent_and_value_and_keeps_the_others(
    agent: str, value: object, sentence: str
) -> None:
    round = Round(MECHANISM, ["a", "b"])
    seal = round.report("b", 2)
    with pytest.raises(ReportError, match=sentence):
        round.report(agent, value)
    assert round.seals == {"b": seal}


@pytest.mark.parametrize(
    ("agents", "weights", "sentence"),
    [
        ([], {}, "at least one agent"),
        (["a", "a"], {}, "'a' is named twice"),
        (["a"], {"b": 1.0}, "weight for 'b'"),
        (["a", "b"], {"b": -1.0}, "weight of 'b' is -1.0"),
        (["a", "b"], {"b": float("nan")}, "weight of 'b' is nan"),
        (["a", "b"], {"b": float("inf")}, "weight of 'b' is inf"),
        (["a", "b"], {"a": 0.0, "b": 0.0}, "All weights"),
    ],
)
def test_an_opening_that_makes_no_sense_is_refused(
    agents: list[str], weights: dict[str, float], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Round(MECHANISM, agents, weights=weights)


def test_stakes_are_what_the_ledger_has_left() -> None:
    team = Budget(Limits(tokens=10))
    budgets = {"a": team.child(Limits(tokens=4), "a"), "b": team.child(Limits(), "b")}
    budgets["a"].spend(1)
    assert stakes(budgets) == {"a": 3.0, "b": 9.0}
    with pytest.raises(ConfigError, match="'free' has no bound"):
        stakes({"free": Budget()})
