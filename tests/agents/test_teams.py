"""A team that makes no sense is refused when it is made, in one sentence that helps."""

from __future__ import annotations

import dataclasses

import pytest
from traces import members

from shoal.agents import Agent, Channel, Protocol, Script, Team, run
from shoal.agents.stops import is_finite, most_rounds
from shoal.core.budget import Limits
from shoal.core.errors import ConfigError
from shoal.core.protocols import Sampling
from shoal.engine.scripted import ScriptedEngine


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Team("t", ()), "'t' has no members"),
        (lambda: Team("t", members("a", "a")), "two members named 'a'"),
        (lambda: Team("t", (Agent("a", copies=2), Agent("a-1"))), "two members named 'a-1'"),
        (lambda: Team("t", (Agent("a-1"), Agent("a", copies=2))), "two members named 'a-1'"),
        (lambda: Agent("two words"), "'two words' cannot name a member"),
        (lambda: Agent("a/b"), "'a/b' cannot name a member"),
        (lambda: Team("", members("a")), "'' cannot name a team"),
        (lambda: Agent("finish"), "can be named 'finish'"),
        (lambda: Agent("a", copies=0), "0 copies: give 1 to 10000"),
        (lambda: Agent("a", copies=2, reads="part"), "one copy for each part"),
        (
            lambda: Team("t", members("reader"), channels=(Channel("raeder", "*"),)),
            r"A channel names 'raeder', who is not a member\. Did you mean 'reader'",
        ),
        (
            lambda: Team("t", members("reader"), channels=(Channel("*", ("reader", "x")),)),
            r"A channel names 'x'.*Members: reader",
        ),
        (
            lambda: Team("t", members("hub", "b"), channels="star(hubb)"),
            r"The channels rule of team 't' names 'hubb', who.*Did you mean 'hub'",
        ),
        (
            lambda: Team("t", members("editor"), Protocol(reduce="judge(editr)")),
            r"The reduce rule of team 't' names 'editr'.*Did you mean 'editor'",
        ),
        (
            lambda: Team("t", members("a"), Protocol("all(but=[a, b])")),
            "The turn rule of team 't' names 'b'",
        ),
        (
            lambda: Team("t", members("a"), Protocol(until="verdict(crit, ok)")),
            "The stop rule of team 't' names 'crit'",
        ),
        (
            lambda: Team("t", members("a"), Protocol(until="any(turns(3), verdict(crit, ok))")),
            "The stop rule of team 't' names 'crit'",
        ),
        (
            lambda: Team(
                "t", (Agent("a", copies=2),), Protocol("handoff(a)", until="any(idle, turns(2))")
            ),
            "The turn rule of team 't' needs 'a' to be one member",
        ),
        (
            lambda: Protocol("al"),
            r"no turn rule 'al'\. Did you mean 'all'\? Known: all, bid",
        ),
        (lambda: Protocol(reduce="judge(a, b)"), "too many positional arguments"),
        (
            lambda: Protocol(reduce="vote(choices=2)"),
            "wrong choices: Input should be",
        ),
        (lambda: Protocol(reduce="vote(most)"), "'plurality', 'majority', .*form is vote"),
        (lambda: Protocol(until="rounds"), r"form rounds\(n\): missing a required argument: 'n'"),
        (lambda: Protocol(until="rounds(0)"), "greater than or equal to 1"),
        (lambda: Protocol(until="rounds(two)"), "wrong n: Input should be a valid integer"),
        (lambda: Protocol(until="any(rounds(2), consens)"), "no stop rule 'consens'"),
        (lambda: Protocol(on_failure="retry(then=panic)"), "'skip' or 'abort'"),
        (lambda: Team("t", members("a"), channels="mesh(view=lst)"), "no view rule 'lst'"),
        (lambda: Team("t", members("a"), channels="mash"), r"no channels rule 'mash'.*'mesh'"),
        (
            lambda: Team("t", (Agent("j", copies=2),), Protocol(reduce="judge(j)")),
            "The reduce rule of team 't' needs 'j' to be one member: leave out copies",
        ),
        (
            lambda: Team("t", (Agent("j", reads="part"), *members("b")), Protocol("select(j)")),
            "The turn rule of team 't' needs 'j' to be one member",
        ),
        (lambda: Agent("a", limits=Limits(tokens=-1)), "tokens is -1"),
    ],
)
def test_nonsense_is_refused(make: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("until", ["consensus", "all(rounds(3), consensus)", "verdict(a, ok)"])
def test_a_cycle_needs_a_finite_stop(until: str) -> None:
    with pytest.raises(ConfigError, match=r"may never stop.*finite bound.*any\(rounds\(5\)"):
        Team("t", members("a", "b"), Protocol(until=until), channels="ring")
    bounded = [Limits(calls=9), Limits(seconds=9), Limits(tokens=99)]
    for limits in bounded:
        assert Team("t", members("a", "b"), Protocol(until=until), limits=limits)


def test_tokens_do_not_bound_a_script() -> None:
    script = Agent("a", model=Script(lambda messages, seed: "x"))
    with pytest.raises(ConfigError, match="may never stop"):
        Team("t", (script,), Protocol(until="consensus"), limits=Limits(tokens=10))


@pytest.mark.parametrize(
    ("rule", "finite", "rounds"),
    [
        ("rounds(3)", True, 3),
        ("rounds(n=3)", True, 3),
        ("turns(7)", True, 7),
        ("consensus", False, 8),
        ("any(consensus, rounds(2))", True, 2),
        ("any(consensus, verdict(a, b))", False, 8),
        ("any(rounds(4), verdict(a, 'it is over'))", True, 4),
        ("all(rounds(2), turns(9))", True, 2),
        ("all(consensus, rounds(2))", False, 2),
        ("any(all(rounds(4), turns(5)), consensus)", True, 4),
    ],
)
def test_which_rules_are_finite(rule: str, finite: bool, rounds: int) -> None:
    assert is_finite(rule) is finite
    assert most_rounds(rule) == rounds


def test_teams_are_values() -> None:
    def make() -> Team:
        return Team("t", (Agent("a", sampling=Sampling(max_tokens=5)),), Protocol("all"))

    assert make() == make()
    assert hash(make()) == hash(make())
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().name = "other"  # type: ignore[misc]


async def test_an_unknown_engine_is_named_before_anything_runs() -> None:
    engine = ScriptedEngine()
    team = Team("t", (Agent("a", model="smal"),))
    with pytest.raises(ConfigError, match=r"'a' uses the model 'smal'.*Did you mean 'small'"):
        await run(team, "?", engine={"small": engine})
    inner = Team("outer", (team,))
    with pytest.raises(ConfigError, match="'a' uses the model"):
        await run(inner, "?", engine={"small": engine})
    spare = Team("t", members("a"), Protocol(on_failure="replace(spare)"))
    with pytest.raises(ConfigError, match="failure policy of team 't' uses the model 'spare'"):
        await run(spare, "?", engine=engine)
    assert engine.groups == []
