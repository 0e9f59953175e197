"""A team's last words are reports: settled by a rule, and what is no report is absent."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from shoal.agents import Agent, Protocol, Team, TeamResult, run
from shoal.agents.reducers import Reducer
from shoal.core.errors import ConfigError
from shoal.core.log import EventLog
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine
from shoal.mechanisms.location.rules import Mean, Median
from shoal.mechanisms.location.teams import number_in, settle

CAPS = {"a": "10", "b": "I think 10.", "c": "Answer: 10 fish", "d": "10", "e": "100"}


async def caps(
    reduce: Reducer, says: Mapping[str, str] = CAPS, log: EventLog | None = None
) -> TeamResult:
    def answer(messages: tuple[Message, ...], seed: int) -> str:
        return says[messages[-1].content.split()[-1]]

    members = tuple(Agent(name, f"Your name is {name}") for name in says)
    team = Team("lake", members, Protocol(reduce=reduce), channels="none", task="How many?")
    return await run(team, engine=ScriptedEngine(answer), log=log)


async def test_the_reports_of_a_team_are_settled() -> None:
    assert (await caps(settle(low=0, high=100))).result == "20"
    assert (await caps(settle(Median(), low=0, high=100))).result == "10"
    assert (await caps(settle(Mean(), low=0, high=100))).result == "28"
    weighted = settle(low=0, high=100, weights={"e": 4.0, "nobody": 9.0})
    assert (await caps(weighted)).result == "50"


async def test_who_reports_no_number_in_the_interval_is_absent_and_the_log_says_why() -> None:
    log = EventLog()
    says = {**CAPS, "e": "1000", "d": "as much as I can"}
    result = await caps(settle(low=0, high=100), says, log)
    assert result.result == "10"
    (event,) = [event for event in log.events() if "refused" in str(event.body)]
    assert "'e' reports 1000.0" in str(event.body)
    assert "'d' reports 'as much as I can'" in str(event.body)
    assert "facility_location(uniform-phantom, 0, 100)" in str(event.body)


async def test_a_team_that_reports_nothing_has_no_result() -> None:
    assert (await caps(settle(), {"a": "much", "b": "more"})).result is None


def test_an_empty_interval_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="no interval"):
        settle(low=1, high=0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42.0),
        ("I propose 1,500 tokens", 1500.0),
        ("between 10 and 20, so Answer: 12.5", 12.5),
        ("-3", -3.0),
        ("none", "none"),
    ],
)
def test_the_last_number_of_an_answer_is_the_report(text: str, number: float | str) -> None:
    assert number_in(text) == number
