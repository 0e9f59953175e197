"""Turn rules: who speaks next. Each is a pure function of what has happened so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from shoal.agents.rules import Member, Members, Registry
from shoal.core.errors import ConfigError

if TYPE_CHECKING:
    from shoal.agents.payloads import Heard
    from shoal.agents.state import State

FINISH = "finish"
"""What a selecting member chooses to end the work; no member may have this name."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One member's turn; with ``choices`` it answers ``question`` with one of them.

    A choice is no message: channels do not carry it. Turns that are ``joint`` are answered as
    one, from the mean of their members' distributions over each next token.
    """

    member: str
    choices: tuple[str, ...] = ()
    question: str = ""
    joint: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The turns of one superstep, taken at once; without turns the work is over, ``why`` says."""

    turns: tuple[Turn, ...]
    ends_round: bool = True
    why: str = "nobody had a turn left"


TurnRule = Callable[["State"], Plan]

turn_rules: Registry[TurnRule] = Registry("turn", "shoal.turns")


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
        place = min(state.place, len(names) - 1)
        return _plan((names[place],), ends_round=place == len(names) - 1)

    return rule


@turn_rules.register("chain")
def chain(but: Members = ()) -> TurnRule:
    """Like round_robin, but the copies of a member take their turn together."""

    def rule(state: State) -> Plan:
        layers = [
            seated
            for member, names in state.copies.items()
            if member not in but and (seated := tuple(n for n in names if n in state.active))
        ]
        place = min(state.place, len(layers) - 1)
        return _plan(layers[place], ends_round=place == len(layers) - 1)

    return rule


@turn_rules.register("dag")
def dag(but: Members = ()) -> TurnRule:
    """Members speak once all that a channel brings them from others is there; a round is all.

    Raises :class:`ConfigError` where the channels form a cycle.
    """

    def rule(state: State) -> Plan:
        layers = layered(state.names_except(but), state.wiring.sources)
        place = min(state.place, len(layers) - 1)
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
def select(hub: Member, may_finish: bool = True) -> TurnRule:
    """The hub chooses who works next, that member works, and so on until the hub says finish.

    Its choice is held to the members' names; the first one must name a worker, and without
    ``may_finish`` all must. Where the hub did not answer at all, the workers take turns. A round
    is one choice and one piece of work.
    """

    def rule(state: State) -> Plan:
        workers = tuple(name for name in state.names_except((hub,)) if name not in state.out)
        if not workers:
            return Plan((), why="no worker has budget left")
        if state.place == 0:
            choices = (*workers, FINISH) if state.rounds and may_finish else workers
            return Plan((Turn(hub, choices, "Who works next?"),), ends_round=False)
        choice = state.choice_of(hub, at=state.superstep - 1)
        if choice == FINISH:
            return Plan((), why=f"{hub} said {FINISH}")
        return _plan((choice or workers[state.rounds % len(workers)],))

    return rule


@turn_rules.register("handoff")
def handoff(first: Member) -> TurnRule:
    """Who has spoken names who speaks next, or says finish; ``first`` begins.

    The choice is held to the others' names. Who did not choose keeps the floor. A round is one
    thing said and one choice, so ``rounds(n)`` bounds the hops.
    """

    def rule(state: State) -> Plan:
        speaker = _floor(state, first)
        if state.place == 0:
            chosen = _named_next(state, speaker)
            if chosen == FINISH:
                return Plan((), why=f"{speaker} said {FINISH}")
            return _plan((chosen if chosen in state.active else speaker,), ends_round=False)
        others = tuple(name for name in state.names if name not in (speaker, *state.out))
        return Plan((Turn(speaker, (*others, FINISH), "Who goes on with the task?"),))

    return rule


def _floor(state: State, first: str) -> str:
    """Who spoke last, or the one that begins."""
    if state.superstep == 0:
        return first
    steps = [said[-1] for said in state.said.values() if said]
    last = max(steps, key=lambda step: step.superstep, default=None)
    return last.member.rpartition("/")[2] if last is not None else first


def _named_next(state: State, speaker: str) -> str:
    """Whom the speaker has named since it spoke; itself where nobody."""
    made, said = state.choices_of(speaker), state.last(speaker)
    if not made or (said is not None and said.superstep > made[-1].superstep):
        return speaker
    return str(made[-1].data["choice"])


@turn_rules.register("on")
def on(first: Members = ()) -> TurnRule:
    """Whoever hears something new from others speaks; ``first`` (or all) begin.

    With guards on channels this is publish and subscribe, or a graph with loops. When nobody
    hears anything new the work is over. Each superstep is a round.
    """

    def rule(state: State) -> Plan:
        if state.superstep == 0:
            begin = (
                state.names
                if not first
                else tuple(name for name in state.names if state.member[name].name in first)
            )
            return _plan(begin)
        return Plan(
            tuple(Turn(name) for name in state.names if _hears_news(state, name)),
            why="nobody hears anything new",
        )

    return rule


def _hears_news(state: State, name: str) -> bool:
    return bool(_news(state, name))


def _news(state: State, name: str) -> list[Heard]:
    """What others have said that a member hears now and did not hear at its turns so far."""
    inbox = state.wiring.inbox(state.wiring.hears[name], state.carried())
    known = {key for step in state.said[name] for key in step.seen}
    known |= {step.key for step in state.said[name]}
    return [one for one in inbox if one.key not in known]


@turn_rules.register("first_come")
def first_come(first: Members = ()) -> TurnRule:
    """First come, first served: who has waited longest with something new to hear speaks alone.

    ``first`` (or all) wait from the beginning. Of those who wait equally long the first declared
    speaks. When nobody waits the work is over. A round is one turn.
    """

    def rule(state: State) -> Plan:
        waiting = {
            name: since for name in state.names if (since := _waits(state, name, first)) is not None
        }
        if not waiting:
            return Plan((), why="nobody waits to speak")
        return _plan((min(waiting, key=lambda name: waiting[name]),))

    return rule


def _waits(state: State, name: str, first: Members) -> int | None:
    """Since which superstep a member waits for a turn, -1 from the beginning; None: it does not."""
    starts = not first or state.member[name].name in first
    if starts and name not in state.speakers:
        return -1
    return min((one.step.superstep for one in _news(state, name)), default=None)


SCORES = tuple(map(str, range(10)))
"""What a bid or a rating is chosen from."""


@turn_rules.register("bid")
def bid(but: Members = ()) -> TurnRule:
    """All say from 0 to 9 how much they have to add; the highest speaks, then all bid again.

    Of equal bids the one of whom has spoken least wins, then the first declared. When all bid 0
    the work is over. A round is the bids and what the winner says.
    """

    def rule(state: State) -> Plan:
        names = tuple(name for name in state.names_except(but) if name not in state.out)
        if state.place == 0:
            asked = "How much can you add now, from 0 (nothing) to 9?"
            return Plan(tuple(Turn(name, SCORES, asked) for name in names), ends_round=False)
        bids = {name: int(state.choice_of(name, at=state.superstep - 1) or 0) for name in names}
        if not any(bids.values()):
            return Plan((), why="nobody bids")
        order = sorted(names, key=lambda name: (-bids[name], len(state.said[name])))
        return _plan((order[0],))

    return rule


@turn_rules.register("gate")
def gate(router: Member, k: Annotated[int, Field(ge=1)] = 1) -> TurnRule:
    """The router names ``k`` experts one after the other, then these work at once.

    Its choices are held to the names of experts it has not named in this round; an expert is
    drawn in the order declared where it did not answer. A round is k choices and their work.
    """

    def rule(state: State) -> Plan:
        experts = state.names_except((router,))
        asked = min(k, len(experts))
        place = min(state.place, asked)
        named = gated(state, router, state.superstep - place, place)
        if place == asked:
            return _plan(tuple(name for name in experts if name in named))
        left = tuple(name for name in experts if name not in named)
        return Plan((Turn(router, left, "Who is best for this?"),), ends_round=False)

    return rule


def gated(state: State, router: str, begin: int, count: int) -> tuple[str, ...]:
    """The experts that ``count`` choices from superstep ``begin`` on have named, in order."""
    experts = state.names_except((state.member[router].name,))
    made = {step.superstep: str(step.data["choice"]) for step in state.choices_of(router)}
    named: list[str] = []
    for at in range(begin, begin + count):
        spare = next(name for name in experts if name not in named)
        named.append(made.get(at, spare))
    return tuple(named)


@turn_rules.register("lockstep")
def lockstep(but: Members = ()) -> TurnRule:
    """All write one answer together: each token is drawn from the mean of their distributions.

    For members that exchange ``carry="logits"``; each superstep is a round.
    """

    def rule(state: State) -> Plan:
        return Plan(tuple(Turn(name, joint=True) for name in state.names_except(but)))

    return rule
