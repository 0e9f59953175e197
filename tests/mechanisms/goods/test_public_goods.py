"""Rounds of the public goods game: who sees what, who is rewarded how, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from shoal.core.errors import ConfigError
from shoal.core.log import EventLog
from shoal.mechanisms import Mechanism, ReportError, Round
from shoal.mechanisms.goods.contribution_game import Game
from shoal.mechanisms.goods.public_goods import Observe, PublicGoods
from shoal.mechanisms.goods.subgame_perfect import reply

MECHANISM: Mechanism = PublicGoods()
TEXTS = {"anna": "About 12.", "ben": "12 + 5 = 17", "carl": "The answer is 17."}
SCORES = {"anna": 0.55, "ben": 1.0, "carl": 1.0}


def told(observe: Observe) -> dict[str, Any]:
    """What each agent was told in a round of texts."""
    round = Round(PublicGoods(observe=observe), list(TEXTS))
    messages = {}
    for agent, text in TEXTS.items():
        messages[agent] = round.message(agent)
        round.report(agent, text)
    return messages


def test_each_sees_all_contributions_before_its_own_and_none_after() -> None:
    assert told("all") == {
        "anna": {"position": 1, "of": 3, "earlier": []},
        "ben": {
            "position": 2,
            "of": 3,
            "earlier": [{"agent": "anna", "contribution": "About 12."}],
        },
        "carl": {
            "position": 3,
            "of": 3,
            "earlier": [
                {"agent": "anna", "contribution": "About 12."},
                {"agent": "ben", "contribution": "12 + 5 = 17"},
            ],
        },
    }


def test_a_mask_hides_all_but_the_last_or_all() -> None:
    seen = {
        observe: [len(message["earlier"]) for message in told(observe).values()]
        for observe in ("none", "last", "all")
    }
    assert seen == {"none": [0, 0, 0], "last": [0, 1, 1], "all": [0, 1, 2]}
    (last,) = told("last")["carl"]["earlier"]
    assert last["agent"] == "ben"


def test_texts_are_rewarded_by_their_scores_and_the_last_is_the_answer() -> None:
    with EventLog() as log:
        round = Round(PublicGoods(), list(TEXTS), log=log)
        for agent, text in TEXTS.items():
            round.report(agent, text)
        decision = round.settle(SCORES).decision
        (event,) = log.events("settlement")
    assert event.body["observed"] == SCORES
    assert decision.outcome == "The answer is 17."
    expected = Game().rewards([0.55, 1, 1]).tolist()
    assert list(decision.utilities.values()) == pytest.approx(expected)
    details = decision.details
    assert details["total"] == pytest.approx(2.55)
    assert details["reaches_bar"]
    assert details["synergies"] == pytest.approx({"anna": 0, "ben": 0.55, "carl": 0.775})
    assert details["welfare"] == pytest.approx(3.9124, abs=1e-4)
    assert details["free_riders"] == details["empty"] == details["late"] == []


def test_agents_that_answer_what_they_see_end_in_the_equilibrium() -> None:
    round = Round(PublicGoods(), ["a", "b", "c"])
    for agent in ("a", "b", "c"):
        seen = [one["contribution"] for one in round.message(agent)["earlier"]]
        round.report(agent, reply(Game(), seen))
    contributions = round.settle().decision.details["contributions"]
    assert contributions == {"a": 0.55, "b": 1.0, "c": 1.0}


def test_an_empty_text_scores_the_least_and_is_listed() -> None:
    round = Round(PublicGoods(), list(TEXTS))
    for agent, text in {**TEXTS, "ben": " \n"}.items():
        round.report(agent, text)
    details = round.settle({"anna": 0.55, "carl": 1.0}).decision.details
    assert details["contributions"] == {"anna": 0.55, "ben": 0.1, "carl": 1.0}
    assert details["empty"] == details["free_riders"] == ["ben"]


def test_a_skipped_agent_leaves_a_gap_and_shares_still_go_by_all() -> None:
    round = Round(PublicGoods(Game(bar=1.5)), ["a", "b", "c"])
    round.report("a", 0.6)
    assert round.message("c")["earlier"] == [
        {"agent": "a", "contribution": 0.6},
        {"agent": "b", "contribution": None},
    ]
    round.report("c", 1.0)
    settlement = round.settle()
    assert settlement.absent == ("b",)
    assert settlement.decision.details["synergies"] == {"a": 0.0, "c": 0.6}
    share = 1.8 / 3 * 1.6
    assert settlement.decision.utilities == pytest.approx(
        {"a": share - 0.618, "c": share - 1.05 + 1.5 * 0.6}
    )


def test_a_report_after_one_further_back_is_late_and_does_not_count() -> None:
    round = Round(PublicGoods(), ["a", "b", "c"])
    round.report("b", 0.7)
    round.report("a", 1.0)
    assert [one["contribution"] for one in round.message("c")["earlier"]] == [None, 0.7]
    round.report("c", 1.0)
    decision = round.settle().decision
    assert decision.details["late"] == ["a"]
    assert decision.details["contributions"] == {"b": 0.7, "c": 1.0}


@pytest.mark.parametrize("score", [math.nan, 0.05, 1.2, None, "good", True])
def test_a_score_that_is_none_spoils_its_round_only(score: object) -> None:
    rounds = [Round(PublicGoods(), list(TEXTS)) for _ in range(2)]
    for round in rounds:
        for agent, text in TEXTS.items():
            round.report(agent, text)
    with pytest.raises(ReportError, match="'ben' is scored"):
        rounds[0].settle({**SCORES, "ben": score})
    assert rounds[1].settle(SCORES).decision.details["reaches_bar"]
    assert rounds[0].settle(SCORES).decision.details["reaches_bar"], "it can be scored again"


@pytest.mark.parametrize("value", [0.05, 1.5, math.nan, None, True, ["0.5"]])
def test_a_contribution_that_is_none_names_agent_and_value(value: object) -> None:
    round = Round(PublicGoods(), ["a", "b", "c"])
    with pytest.raises(ReportError, match="'a' contributes"):
        round.report("a", value)
    assert round.seals == {}


def test_rounds_that_are_not_the_games_are_refused() -> None:
    with pytest.raises(ConfigError, match="'a' is named twice"):
        Round(PublicGoods(), ["a", "b", "a"])
    with pytest.raises(ConfigError, match="for 3 agents, but 2 take part"):
        Round(PublicGoods(), ["a", "b"]).message("a")
    with pytest.raises(ConfigError, match="shared equally"):
        Round(PublicGoods(), ["a", "b", "c"], weights={"a": 2.0}).message("a")
    with pytest.raises(ReportError, match="Nobody has contributed"):
        Round(PublicGoods(), ["a", "b", "c"]).settle()
    with pytest.raises(ConfigError, match="none, last, all, not 'some'"):
        PublicGoods(observe="some")  # type: ignore[arg-type]


def test_it_promises_what_is_proved_and_only_where_all_is_seen() -> None:
    assert PublicGoods().guarantees == {"the bar is reached", "nobody rides free"}
    assert PublicGoods(Game(bar=1.8)).guarantees == {"the bar is reached"}
    assert PublicGoods(Game(penalty=0)).guarantees == frozenset()
    assert PublicGoods(observe="last").guarantees == PublicGoods(observe="none").guarantees == set()
    assert PublicGoods(Game(agents=2, bar=1.5), "last").guarantees
    assert any("language model" in sentence for sentence in PublicGoods().assumes)


def test_an_audit_keeps_what_is_promised_and_shows_what_is_not() -> None:
    found = PublicGoods().audit(3)
    assert found.exhaustive
    assert found.counterexamples == ()
    assert found.cases["one equilibrium"] == 19**3
    broken = {
        one.promise: one for one in PublicGoods(Game(gamma=0, penalty=0)).audit(3).counterexamples
    }
    assert broken["the bar is reached"].shortfall == pytest.approx(2.25)
    assert broken["nobody rides free"].case["contributions"] == [0.1, 0.1, 0.1]


def test_an_audit_without_a_view_finds_the_second_equilibrium() -> None:
    found = {one.promise: one for one in PublicGoods(observe="none").audit(3).counterexamples}
    assert set(found) == {"the bar is reached", "nobody rides free", "one equilibrium"}
    sentence = found["one equilibrium"].sentence
    assert "In the equilibrium (0.1, 0.1, 0.1)" in sentence
    assert "best of 2" in sentence


def test_an_audit_of_what_cannot_be_solved_says_so() -> None:
    with pytest.raises(ConfigError, match="last contribution only are not solved"):
        PublicGoods(observe="last").audit(3)
    with pytest.raises(ConfigError, match="unreachable"):
        PublicGoods().audit(2)
    game = replace(Game(), agents=2, bar=1.7)
    assert PublicGoods(game, "last").audit(2).kept == PublicGoods(game, "all").audit(2).kept
