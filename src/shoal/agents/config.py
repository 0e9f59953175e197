"""Teams as TOML: read, checked, written. What is wrong is named with its place and its fix.

shoal = 1                             # version of this format
name = "pair"
task = "..."                          # worked on when a run brings no task
channels = "mesh"                     # or [[channel]] tables with from, to, view

[protocol]
turn = "all(but=editor)"
reduce = "judge(editor)"
until = "rounds(2)"                   # or a list: the first rule that holds stops the run
payoff = "shared"                     # what members play for; "none" where left out
rewire = "prune(2)"                   # how the team changes after a round

[[member]]
name = "reader"
role = "Say what the text is about."
max_tokens = 64

[[member]]
name = "editor"
role = "Write the final answer."
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.agents.channels import Channel
from shoal.agents.config_errors import explained
from shoal.agents.outside import model_from, named
from shoal.agents.rules import Call, from_table, parse
from shoal.agents.team import MOST_COPIES, Agent, Member, Protocol, Reads, Team
from shoal.core.budget import Limits
from shoal.core.errors import ConfigError
from shoal.core.protocols import Sampling

FORMAT = 1

_SAMPLING = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop",
    "min_tokens",
)

_Count = Annotated[int, Field(ge=0)]
_Rule = str | dict[str, Any]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Limits(_Table):
    tokens: _Count | None = None
    calls: _Count | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None


class _Channel(_Table):
    src: str | list[str] = Field(alias="from")
    dst: str | list[str] = Field(alias="to")
    view: _Rule = "last"
    carry: _Rule = "text"
    when: _Rule = "always"


class _Protocol(_Table):
    turn: _Rule = "all"
    reduce: _Rule = "last"
    until: _Rule | list[str] = "rounds(1)"
    on_failure: _Rule = "retry"
    payoff: _Rule = "none"
    rewire: _Rule = "none"


class _Member(_Table):
    name: str
    role: str = ""
    objective: str = ""
    model: str = "default"
    reads: Reads = "all"
    copies: Annotated[int, Field(ge=1, le=MOST_COPIES)] = 1
    limits: _Limits = _Limits()
    team: str | _Team | None = None
    max_tokens: _Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: _Count | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: list[str] | None = None
    min_tokens: _Count | None = None
    dense: bool = False
    strategy: _Rule = "answer"
    tools: list[str] = []


class _Team(_Table):
    shoal: int = FORMAT
    name: str = "team"
    about: str = ""
    preamble: str = ""
    task: str = ""
    objective: str = ""
    channels: _Rule | None = None
    channel: list[_Channel] = []
    protocol: _Protocol = _Protocol()
    member: list[_Member] = []
    limits: _Limits = _Limits()


_TABLES: dict[str, type[BaseModel]] = {
    "": _Team,
    "limits": _Limits,
    "channel": _Channel,
    "protocol": _Protocol,
    "member": _Member,
    "team": _Team,
}


LoadTeam = Callable[[str], Team]
"""Finds the team that a member names."""


def parse_team(text: str, *, source: str = "The team", load: LoadTeam | None = None) -> Team:
    """The team a TOML text describes.

    ``source`` names the text in errors; ``load`` finds the teams that members name. Raises
    :class:`ConfigError`, saying what is wrong and, where it can be told, on which line.
    """
    try:
        raw = tomllib.loads(text)
        _check_version(raw, source)
        config = _Team.model_validate(raw)
        return _team(config, load)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}.") from error
    except ValidationError as error:
        raise ConfigError(explained(error, text, source, _TABLES)) from error
    except RecursionError as error:
        raise ConfigError(f"{source} nests too deep to be read.") from error
    except ConfigError as error:
        known = str(error).startswith(source)
        raise error if known else ConfigError(f"{source}: {error}") from error


def _check_version(raw: dict[str, Any], source: str) -> None:
    version = raw.get("shoal", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise ConfigError(
            f"{source} is written for format {version}, newer than this version of shoal reads "
            f"({FORMAT}): upgrade shoal to use it."
        )


def _team(config: _Team, load: LoadTeam | None) -> Team:
    if config.channels is not None and config.channel:
        raise ConfigError("There are both channels and [[channel]] tables: keep one of them.")
    until = config.protocol.until
    return Team(
        name=config.name,
        members=tuple(_member(member, load) for member in config.member),
        protocol=Protocol(
            _called(config.protocol.turn),
            _called(config.protocol.reduce),
            Call("any", tuple(map(parse, until))) if isinstance(until, list) else _called(until),
            _called(config.protocol.on_failure),
            _called(config.protocol.payoff),
            _called(config.protocol.rewire),
        ),
        channels=tuple(
            Channel(_names(c.src), _names(c.dst), *map(_called, (c.view, c.carry, c.when)))
            for c in config.channel
        )
        or (_called(config.channels) if config.channels is not None else "mesh"),
        preamble=config.preamble.strip(),
        task=config.task.strip(),
        about=config.about.strip(),
        objective=config.objective.strip(),
        limits=_limits(config.limits),
    )


def _member(config: _Member, load: LoadTeam | None) -> Member:
    if config.team is not None:
        return _nested(config, load)
    chosen = {name: getattr(config, name) for name in _SAMPLING}
    if config.stop is not None:
        chosen["stop"] = tuple(config.stop)
    try:
        sampling = Sampling(**{name: value for name, value in chosen.items() if value is not None})
    except ValueError as error:
        raise ConfigError(f"Member {config.name!r}: {error}") from error
    return Agent(
        name=config.name,
        role=config.role.strip(),
        objective=config.objective.strip(),
        model=model_from(config.model),
        reads=config.reads,
        copies=config.copies,
        sampling=sampling,
        limits=_limits(config.limits),
        dense=config.dense,
        strategy=_called(config.strategy),
        tools=tuple(config.tools),
    )


def _nested(config: _Member, load: LoadTeam | None) -> Team:
    foreign = config.model_fields_set - {"name", "team", "objective", "limits"}
    if foreign:
        raise ConfigError(
            f"Member {config.name!r} is a team, so it cannot have {min(foreign)!r}: give that to "
            "the team's own members."
        )
    if isinstance(config.team, _Team):
        team = _team(config.team, load)
    elif load is not None:
        team = load(str(config.team))
    else:
        raise ConfigError(f"Member {config.name!r} names a team, which cannot be looked up here.")
    return replace(
        team,
        name=config.name,
        objective=config.objective.strip() or team.objective,
        limits=_limits(config.limits) if "limits" in config.model_fields_set else team.limits,
    )


def _called(rule: str | dict[str, Any]) -> str:
    return rule if isinstance(rule, str) else str(from_table(rule))


def _limits(config: _Limits) -> Limits:
    return Limits(config.tokens, config.calls, config.seconds)


def _names(names: str | list[str]) -> str | tuple[str, ...]:
    return names if isinstance(names, str) else tuple(names)


def dump_team(team: Team) -> str:
    """TOML that :func:`parse_team` reads back as an equal team, teams inside it included.

    Raises :class:`ConfigError` for rules or models that are Python functions.
    """
    return tomli_w.dumps({"shoal": FORMAT, **_dumped(team)}, multiline_strings=True)


def _dumped(team: Team) -> dict[str, Any]:
    table: dict[str, Any] = {"name": team.name}
    table |= _given(team, ("about", "preamble", "task", "objective"))
    if not isinstance(team.channels, tuple):
        table["channels"] = _rule(team.channels)
    elif team.channels:
        table["channel"] = [
            {"from": _listed(c.src), "to": _listed(c.dst), "view": _rule(c.view)}
            | {
                name: _rule(getattr(c, name))
                for name, usual in (("carry", "text"), ("when", "always"))
                if getattr(c, name) != usual
            }
            for c in team.channels
        ]
    else:
        table["channels"] = "none"
    names = ["turn", "reduce", "until", "on_failure"]
    names += [name for name in ("payoff", "rewire") if getattr(team.protocol, name) != "none"]
    table["protocol"] = {name: _rule(getattr(team.protocol, name)) for name in names}
    table["member"] = [_dumped_member(member) for member in team.members]
    return table | _dumped_limits(team.limits)


def _dumped_member(member: Member) -> dict[str, Any]:
    if isinstance(member, Team):
        return {"name": member.name, "team": _dumped(member)}
    model = named(member.model)
    if model is None:
        raise ConfigError(f"Member {member.name!r} is a function, which no file can hold.")
    table = {"name": member.name, **_given(member, ("role", "objective"))}
    if model != "default":
        table["model"] = model
    if member.strategy != "answer":
        table["strategy"] = _rule(member.strategy)
    if member.tools:
        if not all(isinstance(one, str) for one in member.tools):
            raise ConfigError(
                f"Member {member.name!r} has tools that are functions, which no file can hold: "
                "offer them by name, through an entry point of the group shoal.tools."
            )
        table["tools"] = list(member.tools)
    for name, usual in (("reads", "all"), ("copies", 1), ("dense", False)):
        if getattr(member, name) != usual:
            table[name] = getattr(member, name)
    usual_sampling = Sampling()
    for name in _SAMPLING:
        value = getattr(member.sampling, name)
        if value != getattr(usual_sampling, name):
            table[name] = list(value) if isinstance(value, tuple) else value
    return table | _dumped_limits(member.limits)


def _dumped_limits(limits: Limits) -> dict[str, Any]:
    given = {"tokens": limits.tokens, "calls": limits.calls, "seconds": limits.seconds}
    given = {name: value for name, value in given.items() if value is not None}
    return {"limits": given} if given else {}


def _given(value: object, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names if getattr(value, name)}


def _listed(select: str | tuple[str, ...]) -> str | list[str]:
    return select if isinstance(select, str) else list(select)


def _rule(rule: object) -> str:
    if not isinstance(rule, str | Call):
        raise ConfigError("A rule that is a function cannot be written to a file: name it.")
    return str(rule)
