"""How much material a team can read: what its prompts leave free of its models' contexts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shoal.agents.material import Material
from shoal.agents.prompt import DEFAULT_PREAMBLE, PromptWriter
from shoal.agents.reducers import reducers
from shoal.agents.state import State
from shoal.agents.stops import most_rounds
from shoal.agents.team import Agent, Member, Team
from shoal.agents.turns import Turn
from shoal.core.protocols import Engine

_MARGIN = 16
"""Tokens kept free for what a template or the joint between two texts may add."""
_HEADER = 8
"""Tokens that name who said something."""


@dataclass(frozen=True, slots=True)
class Room:
    """Tokens of material that fit beside the rest of the longest prompt and its answer.

    whole  for members that read all of it; part: for members that read one part. None where no
           member reads so, or no engine tells how long its context is; below 1 nothing fits.
    """

    whole: int | None
    part: int | None


def material_room(team: Team, task: str, engine: Engine | Mapping[str, Engine]) -> Room:
    """The room for material in a run of ``team`` on ``task`` (its own where that is empty).

    Answers of the length that is allowed at most are counted for all that a member may hear.
    """
    engines = engine if isinstance(engine, Mapping) else {"default": engine}
    preamble = team.preamble or DEFAULT_PREAMBLE
    rooms = list(_rooms(team, task or team.task, preamble, engines, 0))
    return Room(
        min((room for reads, room in rooms if reads == "all"), default=None),
        min((room for reads, room in rooms if reads == "part"), default=None),
    )


def _rooms(
    team: Team, task: str, preamble: str, engines: Mapping[str, Engine], above: int
) -> Iterator[tuple[str, int]]:
    """What each member's prompt leaves free; ``above`` tokens are heard outside the team."""
    state = State(team, parts=1)
    writer = PromptWriter(state, task, Material(), preamble)
    for name in state.names:
        member = state.member[name]
        prompt = writer.messages(Turn(name), writer.common(()), ())
        heard = above + _heard(state, name)
        if isinstance(member, Team):
            yield from _rooms(member, prompt[-1].content, preamble, engines, heard)
        elif isinstance(member.model, str) and member.reads != "none":
            engine = engines[member.model]
            context = engine.info.context_tokens
            if context is not None:
                taken = engine.count_tokens(prompt) + heard + member.sampling.max_tokens
                yield member.reads, context - taken - _MARGIN


def _heard(state: State, name: str) -> int:
    """Tokens of others' answers that a prompt may hold at most."""
    team = state.team
    rounds = list(range(most_rounds(team.protocol.until)))
    by_channels = sum(
        _answer(state.member[src]) * len(view(rounds)) for src, view in state.wiring.inlets(name)
    )
    if name not in reducers.members_of(team.protocol.reduce):
        return by_channels
    return max(by_channels, sum(_answer(state.member[other]) for other in state.names))


def _answer(member: Member) -> int:
    """Tokens of one answer at most, the name of who gave it included."""
    if isinstance(member, Agent):
        return member.sampling.max_tokens + _HEADER
    return max(_answer(inner) for inner in member.members)
