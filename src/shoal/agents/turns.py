"""Turn rules: who speaks next. Each is a pure function of what has happened so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.agents.rules import Member, Members, Registry
from shoal.core.errors import ConfigError

if TYPE_CHECKING:
    from shoal.agents.state import State

FINISH = "finish"
"""What a selecting member chooses to end the work; no member may have this name."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One member's turn; with ``choices`` it answers ``question`` with one of them.

    A choice is no message: channels do not carry it.
    """

    member: str
    choices: tuple[str, ...] = ()
    question: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The turns of one superstep, taken at once; without turns the work is over, ``why`` says."""

    turns: tuple[Turn, ...]
    ends_round: bool = True
    why: str = "nobody had a turn left"


TurnRule = Callable[["State"], Plan]

turn_rules: Registry[TurnRule] = Registry("turn")


def _plan(names: tuple[str, ...], *, ends_round: bool = True) -> Plan:
    return Plan(tuple(Turn(name) for name in names), ends_round)


@turn_rules.register("all")
def everyone(but: Members = ()) -> TurnRule:
    """All members at once, except those named in ``but``; each superstep is a round."""

    def rule(state: State) -> Plan:
        return _plan(state.names_except(but))

    return rule


@turn_rules.register("round_robin")
def round_robin(but: Members = ()) -> TurnRule:
    """One member after the other, in the order they were declared; a round is once around."""

    def rule(state: State) -> Plan:
        names = state.names_except(but)
        place = state.superstep % len(names)
        return _plan((names[place],), ends_round=place == len(names) - 1)

    return rule


@turn_rules.register("chain")
def chain(but: Members = ()) -> TurnRule:
    """Like round_robin, but the copies of a member take their turn together."""

    def rule(state: State) -> Plan:
        layers = [names for member, names in state.copies.items() if member not in but]
        place = state.superstep % len(layers)
        return _plan(layers[place], ends_round=place == len(layers) - 1)

    return rule


@turn_rules.register("dag")
def dag(but: Members = ()) -> TurnRule:
    """Members speak once all that a channel brings them from others is there; a round is all.

    Raises :class:`ConfigError` where the channels form a cycle.
    """

    def rule(state: State) -> Plan:
        layers = layered(state.names_except(but), state.wiring.sources)
        place = state.superstep % len(layers)
        return _plan(layers[place], ends_round=place == len(layers) - 1)

    return rule


def layered(
    names: tuple[str, ...], sources: Callable[[str], frozenset[str]]
) -> list[tuple[str, ...]]:
    """Topological layers: each holds the names whose sources all stand in earlier ones."""
    placed: set[str] = set()
    layers: list[tuple[str, ...]] = []
    while len(placed) < len(names):
        ready = tuple(
            name
            for name in names
            if name not in placed and (sources(name) & set(names)) - {name} <= placed
        )
        if not ready:
            stuck = ", ".join(name for name in names if name not in placed)
            raise ConfigError(
                f"The turn rule dag needs channels without a cycle, but these wait: {stuck}."
            )
        layers.append(ready)
        placed.update(ready)
    return layers


@turn_rules.register("select")
def select(hub: Member) -> TurnRule:
    """The hub chooses who works next, that member works, and so on until the hub says finish.

    Its choice is held to the members' names; the first one must name a worker. Where the hub
    did not answer at all, the workers take turns. A round is one choice and one piece of work.
    """

    def rule(state: State) -> Plan:
        workers = tuple(name for name in state.names_except((hub,)) if name not in state.out)
        if not workers:
            return Plan((), why="no worker has budget left")
        if state.superstep % 2 == 0:
            choices = (*workers, FINISH) if state.rounds else workers
            return Plan((Turn(hub, choices, "Who works next?"),), ends_round=False)
        choice = state.choice_of(hub, at=state.superstep - 1)
        if choice == FINISH:
            return Plan((), why=f"{hub} said {FINISH}")
        return _plan((choice or workers[state.rounds % len(workers)],))

    return rule
