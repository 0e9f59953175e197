"""Stop rules: when a team is done. Each returns why it stops, or None to go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from shoal.agents.rules import Call, Inner, Members, Registry, parse
from shoal.agents.votes import ballot, tally

if TYPE_CHECKING:
    from shoal.agents.state import State

Stop = Callable[["State"], str | None]

stop_rules: Registry[Stop] = Registry("stop", "shoal.stops")

_FINITE = {"rounds", "turns"}


@stop_rules.register("rounds")
def rounds(n: Annotated[int, Field(ge=1)]) -> Stop:
    """After ``n`` rounds; how long a round is, the turn rule says."""
    return lambda state: _counted(n, "round") if state.rounds >= n else None


@stop_rules.register("turns")
def turns(n: Annotated[int, Field(ge=1)]) -> Stop:
    """As soon as ``n`` turns were taken by all members together."""
    return lambda state: _counted(n, "turn") if state.turns >= n else None


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


@stop_rules.register("consensus")
def consensus(share: Annotated[float, Field(gt=0, le=1)] = 1.0) -> Stop:
    """When at least ``share`` of the members, all having spoken, gave the same answer."""

    def rule(state: State) -> str | None:
        proposals = state.proposals()
        if len(proposals) < 2 or len(proposals) < len(state.speakers & state.active):
            return None
        most = max(tally(ballot(step.output) for step in proposals).values())
        agreed = most >= share * len(proposals)
        return f"{most} of {len(proposals)} agree" if agreed else None

    return rule


@stop_rules.register("verdict")
def verdict(by: Members, word: str) -> Stop:
    """When the last word of a member ``by`` contains ``word`` (upper or lower case)."""

    def rule(state: State) -> str | None:
        for name in state.names:
            said = state.last(name) if state.member[name].name in by else None
            if said is not None and word.casefold() in said.output.casefold():
                return f"{name} said {word!r}"
        return None

    return rule


@stop_rules.register("quorum")
def quorum(n: Annotated[int, Field(ge=1)], of: Members = ()) -> Stop:
    """When ``n`` members (of these, or of all) have answered at least once."""

    def rule(state: State) -> str | None:
        asked = (
            state.names
            if not of
            else tuple(name for name in state.names if state.member[name].name in of)
        )
        answered = sum(1 for name in asked if state.said[name])
        return f"{answered} of {len(asked)} answered" if answered >= n else None

    return rule


@stop_rules.register("idle")
def idle() -> Stop:
    """When nobody said anything else in the last round than in the one before."""

    def rule(state: State) -> str | None:
        pairs = [said[-2:] for name in state.names if (said := state.said[name])]
        still = pairs and all(len(p) == 2 and p[0].output == p[1].output for p in pairs)
        return "nobody says anything new" if still else None

    return rule


@stop_rules.register("budget")
def budget(share: Annotated[float, Field(gt=0, le=1)] = 0.8) -> Stop:
    """When ``share`` of the team's own tokens or calls is used, so that a result can still be made.

    A team without such limits is not stopped by this.
    """

    def rule(state: State) -> str | None:
        limits = state.team.limits
        for what, used, most in (
            ("tokens", state.tokens, limits.tokens),
            ("calls", state.calls, limits.calls),
        ):
            if most is not None and used >= share * most:
                return f"{used:,} of {most:,} {what} are used"
        return None

    return rule


@stop_rules.register("any")
def any_of(*stops: Inner) -> Stop:
    """When one of several rules says so."""
    rules = [stop_rules.make(stop) for stop in stops]
    return lambda state: next((why for rule in rules if (why := rule(state))), None)


@stop_rules.register("all")
def all_of(*stops: Inner) -> Stop:
    """When all of several rules say so."""
    rules = [stop_rules.make(stop) for stop in stops]

    def rule(state: State) -> str | None:
        reasons = [one(state) for one in rules]
        said = [why for why in reasons if why]
        return " and ".join(said) if rules and len(said) == len(rules) else None

    return rule


def is_finite(rule: Call | str | Stop) -> bool:
    """Whether a rule stops every run by itself; a function is not trusted to."""
    if not isinstance(rule, Call | str):
        return False
    call = parse(rule) if isinstance(rule, str) else rule
    if call.name not in ("any", "all"):
        return call.name in _FINITE
    parts = [is_finite(part) for part in call.args if isinstance(part, Call | str)]
    return any(parts) if call.name == "any" else bool(parts) and all(parts)


def most_rounds(rule: Call | str | Stop, unknown: int = 8) -> int:
    """The fewest rounds or turns that a rule names as a bound, for estimates."""
    if not isinstance(rule, Call | str):
        return unknown
    call = parse(rule) if isinstance(rule, str) else rule
    if call.name in _FINITE:
        bound = [*call.args, *dict(call.options).values()][0]
        return bound if isinstance(bound, int) else unknown
    parts = [most_rounds(part, unknown) for part in call.args if isinstance(part, Call)]
    return min(parts, default=unknown)
