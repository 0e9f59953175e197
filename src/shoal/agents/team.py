"""The four nouns: Agent, Channel, Protocol, Team. All are values; a team is checked when made."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from shoal.agents.channels import Channel, Channels, known_member, lay, topologies
from shoal.agents.failures import FailurePolicy, failure_policies
from shoal.agents.outside import Human, Model, Remote, Script
from shoal.agents.payoffs import Payoff, payoffs
from shoal.agents.reducers import Reducer, reducers
from shoal.agents.rewires import Rewire, rewires
from shoal.agents.rules import Call, Registry, parse
from shoal.agents.stops import Stop, is_finite, stop_rules
from shoal.agents.strategies import ANSWER, Strategy, strategies
from shoal.agents.tools import tool, tools
from shoal.agents.turns import FINISH, TurnRule, turn_rules
from shoal.agents.world import World
from shoal.core.budget import Limits
from shoal.core.errors import ConfigError
from shoal.core.protocols import Sampling
from shoal.tools.functions import Tool

__all__ = [
    "Agent",
    "Channel",
    "Human",
    "Member",
    "Protocol",
    "Reads",
    "Remote",
    "Script",
    "Team",
    "World",
]

Reads = Literal["all", "part", "none"]

MOST_COPIES = 10_000

_NAME = re.compile(r"[^\W\d][\w.-]*")


@dataclass(frozen=True, slots=True)
class Agent:
    """A member: who it is, what it reads and what it may spend.

    role       what it is told to do, at the very end of its prompt
    objective  what it is after, in one sentence
    model      the key of an engine; or a Script, a Human, a Remote agent, a World
    strategy   how it takes its turns: it answers, calls tools, reflects
    tools      what it may call: names, functions with type hints, or Tools
    reads      the whole material; one part (there is then one copy per part); or none of it
    copies     how many alike, told apart by name and seed
    sampling   how its tokens are chosen; the seed comes from the run
    dense      asks for nothing but exact prefixes, also of what ``carry="kv"`` brings (judges)
    """

    name: str
    role: str = ""
    objective: str = ""
    model: Model = "default"
    reads: Reads = "all"
    copies: int = 1
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    dense: bool = False
    strategy: str | Call | Strategy = "answer"
    tools: tuple[str | Tool | Callable[..., Any], ...] = ()

    @property
    def kit(self) -> tuple[Tool, ...]:
        """The tools themselves."""
        return tuple(
            tools.make(one) if isinstance(one, str | Tool) else tool(one) for one in self.tools
        )

    def __post_init__(self) -> None:
        _check_name(self.name, "member")
        if not 1 <= self.copies <= MOST_COPIES:
            raise ConfigError(
                f"Member {self.name!r} has {self.copies} copies: give 1 to {MOST_COPIES}."
            )
        if self.copies > 1 and self.reads == "part":
            raise ConfigError(
                f"Member {self.name!r} has one copy for each part of the material: "
                "leave copies out, or let it read all."
            )
        strategies.make(self.strategy)
        names = [one.name for one in self.kit]
        if len(set(names)) < len(names) or ANSWER in names:
            raise ConfigError(
                f"Member {self.name!r} has tools named {', '.join(names)}: give each its own "
                f"name, and none the name {ANSWER!r}."
            )
        uses = isinstance(self.strategy, str | Call) and _is_tools(self.strategy)
        if isinstance(self.strategy, str | Call) and uses != bool(names):
            raise ConfigError(
                f"Member {self.name!r} has {len(names)} tools and the strategy "
                f"{str(self.strategy)!r}: tools and the strategy 'tools' belong together."
            )
        if self.strategy != "answer" and not isinstance(self.model, str):
            raise ConfigError(
                f"Member {self.name!r} has the strategy {str(self.strategy)!r}, which needs an "
                "engine to ask: leave it out for people, functions and remote agents."
            )


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a team works: who speaks when, how a result is made, when it ends, what failure does,
    what it is worth to whom, and how the team changes after a round.

    Each rule is a call such as ``"judge(editor)"`` or a function of the family's type.
    """

    turn: str | Call | TurnRule = "all"
    reduce: str | Call | Reducer = "last"
    until: str | Call | Stop = "rounds(1)"
    on_failure: str | Call | FailurePolicy = "retry"
    payoff: str | Call | Payoff = "none"
    rewire: str | Call | Rewire = "none"

    def __post_init__(self) -> None:
        turn_rules.make(self.turn)
        reducers.make(self.reduce)
        stop_rules.make(self.until)
        failure_policies.make(self.on_failure)
        payoffs.make(self.payoff)
        rewires.make(self.rewire)


@dataclass(frozen=True, slots=True)
class Team:
    """Members, what they hear of each other, and how they work; itself fit to be a member.

    preamble  opens the system message that all members share, byte for byte; the outermost
              team's holds for the teams inside it
    task      what it works on when a run is not given a task
    about     one line for lists
    limits    what a whole run may spend
    """

    name: str
    members: tuple[Agent | Team, ...]
    protocol: Protocol = field(default_factory=Protocol)
    channels: Channels = "mesh"
    preamble: str = ""
    task: str = ""
    about: str = ""
    objective: str = ""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        _check_name(self.name, "team")
        if not self.members:
            raise ConfigError(f"Team {self.name!r} has no members: give it at least one.")
        _check_unique(self)
        self._check_named()
        lay(self.channels, self.names)
        if not self._ends():
            raise ConfigError(
                f"Team {self.name!r} may never stop: until is {str(self.protocol.until)!r}; add a "
                "finite bound, for instance any(rounds(5), ...), or limit its calls."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names as declared."""
        return tuple(member.name for member in self.members)

    def _ends(self) -> bool:
        scripted = any(isinstance(m, Agent) and not isinstance(m.model, str) for m in self.members)
        limits = self.limits
        return (
            is_finite(self.protocol.until)
            or limits.calls is not None
            or limits.seconds is not None
            or (limits.tokens is not None and not scripted)
        )

    def _check_named(self) -> None:
        """Rules name members, and those that act alone have no copies."""
        protocol = self.protocol
        rules: tuple[tuple[Registry[Any], Any], ...] = (
            (turn_rules, protocol.turn),
            (reducers, protocol.reduce),
            (stop_rules, protocol.until),
            (payoffs, protocol.payoff),
            (rewires, protocol.rewire),
            (topologies, self.channels if not isinstance(self.channels, tuple) else None),
        )
        several = [member.name for member in self.members if len(copies_of(member, 2)) > 1]
        for registry, rule in rules:
            who = f"The {registry.family} rule of team {self.name!r}"
            for name in registry.members_of(rule):
                known_member(name, self.names, who)
            for name in registry.members_of(rule, single=True):
                if name in several:
                    raise ConfigError(
                        f"{who} needs {name!r} to be one member: leave out copies and let it "
                        "read all or none of the material."
                    )


Member = Agent | Team


def _is_tools(strategy: str | Call) -> bool:
    return (parse(strategy) if isinstance(strategy, str) else strategy).name == "tools"


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a {what}: start with a letter, then letters, digits, '-', "
            "'_' or '.'."
        )
    if name in (FINISH, "true", "false"):
        raise ConfigError(f"No {what} can be named {name!r}: the word is used by rules.")


def _check_unique(team: Team) -> None:
    seen: set[str] = set()
    for member in team.members:
        for name in (member.name, *copies_of(member, 0)):
            if name in seen:
                raise ConfigError(f"Team {team.name!r} has two members named {name!r}: rename one.")
        seen.update((member.name, *copies_of(member, 0)))


def copies_of(member: Member, parts: int) -> tuple[str, ...]:
    """The names under which a member takes part, given the number of the material's parts."""
    if isinstance(member, Team) or (member.copies == 1 and member.reads != "part"):
        return (member.name,)
    count = parts if member.reads == "part" else member.copies
    width = len(str(count))
    return tuple(f"{member.name}-{i:0{width}}" for i in range(1, count + 1))
