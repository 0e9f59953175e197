"""Mechanisms by name in team files."""

from __future__ import annotations

import pytest

from shoal.agents import dump_team, parse_team, run
from shoal.agents.payoffs import payoffs
from shoal.agents.reducers import reducers
from shoal.core.errors import ConfigError
from shoal.core.log import EventLog
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine
from shoal.mechanisms.goods.contribution_game import Game


def says(numbers: dict[str, str]) -> ScriptedEngine:
    def answer(messages: tuple[Message, ...], seed: int) -> str:
        return numbers[messages[-1].content.rpartition("You are ")[2].split(".")[0]]

    return ScriptedEngine(answer)


NUMBERS = {"a": "10", "b": "20", "c": "90"}
MEMBERS = 'member = [{name = "a"}, {name = "b"}, {name = "c"}]\n'


@pytest.mark.parametrize(
    ("rule", "result"), [("median", "20"), ("mean", "40"), ("uniform-phantom", "33.3333")]
)
async def test_reports_are_settled_by_a_rule_named_in_the_file(rule: str, result: str) -> None:
    team = parse_team(
        'channels = "none"\nprotocol = {reduce = {settle = "facility_location", '
        f'rule = "{rule}", low = 0, high = 100}}}}\n{MEMBERS}'
    )
    assert parse_team(dump_team(team)) == team
    assert (await run(team, "How many?", engine=says(NUMBERS))).result == result


async def test_weights_are_given_by_name_and_must_be_members() -> None:
    text = (
        'channels = "none"\nprotocol = {reduce = {settle = "facility_location", rule = "mean", '
        f"high = 100, weights = {{c = 2}}}}}}\n{MEMBERS}"
    )
    assert (await run(parse_team(text), "How many?", engine=says(NUMBERS))).result == "52.5"
    with pytest.raises(ConfigError, match="names 'd', who is not a member"):
        parse_team(text.replace("c = 2", "d = 2"))


async def test_public_goods_pay_by_what_all_contribute_in_order() -> None:
    team = parse_team(
        f'channels = "chain"\nprotocol = {{turn = "chain", payoff = "public_goods"}}\n{MEMBERS}'
    )
    with EventLog() as log:
        result = await run(team, "Give.", engine=says({"a": "0.55", "b": "1", "c": "1"}), log=log)
        (note,) = log.events("note")
    rewards = Game(3, 1.5, 1.8, 1.5, 2.55).rewards([0.55, 1.0, 1.0])
    assert note.body["payoff"] == pytest.approx(dict(zip("abc", rewards, strict=True)))
    assert sum(rewards) == pytest.approx(3.91, abs=0.005)  # the published table's welfare
    assert "You all share what every one of you contributes" in (
        result.episode.steps[0].prompt[-1].content
    )


async def test_who_is_hired_joins_after_the_first_round() -> None:
    """Common noise: the contract pays one to work and now and then the other to check it."""
    team = parse_team(
        'channels = "mesh"\nprotocol = {until = "rounds(2)", rewire = '
        '{recruit = "hire(common-noise)", bench = ["b", "c"], most = 2}}\n' + MEMBERS
    )
    hired = set()
    for seed in range(12):
        result = await run(team, "Who?", engine=says(NUMBERS), seed=seed)
        first = [step.member for step in result.episode.steps if step.superstep == 0]
        second = [step.member for step in result.episode.steps if step.superstep == 1]
        assert first == ["a"]
        hired.add(tuple(second[1:]))
    assert ("b", "c") in hired or {("b",), ("c",)} & hired


def test_what_entry_points_offer_is_listed_and_an_unknown_name_finds_it() -> None:
    assert "settle" in reducers.names()
    assert "public_goods" in payoffs.names()
    with pytest.raises(ConfigError, match=r"no payoff rule 'public_good'\. Did you mean 'public_g"):
        payoffs.make("public_good")


async def test_a_hiring_problem_needs_a_bench_of_its_size() -> None:
    team = parse_team(
        'protocol = {until = "rounds(2)", rewire = {recruit = "hire(common-noise)", '
        f'bench = ["c"]}}}}\n{MEMBERS}'
    )
    with pytest.raises(ConfigError, match="is for 2 agents, but 1 sit on the bench: c"):
        await run(team, "Who?", engine=says(NUMBERS))
