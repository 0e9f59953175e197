"""What a run will cost at most, before it is begun: the run itself, on an engine that says nothing.

The scheduler runs as it would; the engine counts prompts as the real one does and gives answers
of a given length. So topology, views, rounds and judges need no formulas of their own, and the
forecast is exact where answers have that length and nobody ends the work early. Functions, people
and remote agents are not asked: fillers answer for them. A turn counts as one request, also where
its strategy may take more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from shoal.agents.failures import failure_policies
from shoal.agents.material import Material, as_material
from shoal.agents.outside import Script
from shoal.agents.scheduler import run
from shoal.agents.team import Agent, Member, Team
from shoal.agents.turns import FINISH
from shoal.core.budget import Limits
from shoal.core.protocols import (
    Completion,
    Engine,
    EngineInfo,
    OnDelta,
    Prompt,
    Request,
    Segment,
    TokenLogprob,
)
from shoal.core.records import Usage

_WORD = " word"


@dataclass(frozen=True, slots=True)
class Superstep:
    """What the members who speak at once will ask for."""

    superstep: int
    members: tuple[str, ...]
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will ask for, superstep by superstep; turns inside teams count in their own.

    outcome  how the run would end, "budget_exhausted" where its limits do not suffice
    """

    supersteps: tuple[Superstep, ...]
    requests: int
    prompt_tokens: int
    answer_tokens: int
    outcome: str
    why: str
    limits: Limits

    @property
    def tokens(self) -> int:
        """Prompts and answers together, as budgets count them."""
        return self.prompt_tokens + self.answer_tokens


async def forecast(
    team: Team,
    task: str = "",
    material: Material | str = "",
    *,
    engine: Engine,
    answer_tokens: int | None = None,
) -> Forecast:
    """Foresee a run of ``team`` whose answers have ``answer_tokens`` each (or their full length).

    Raises :class:`~shoal.core.errors.ConfigError` where the run itself would.
    """
    silent: Any = _Silent(engine, answer_tokens)
    engines = dict.fromkeys((*_engines(team), "default"), silent)
    result = await run(_without_others(team), task, as_material(material), engine=engines)
    asked = [step for step in result.episode.steps if step.usage.prompt_tokens]
    places: dict[tuple[str, int], list[Any]] = {}
    for step in asked:
        places.setdefault((step.key.rpartition("/")[0], step.superstep), []).append(step)
    supersteps = tuple(
        Superstep(
            superstep,
            tuple(step.member for step in steps),
            sum(step.usage.prompt_tokens for step in steps),
            sum(step.usage.decoded_tokens for step in steps),
        )
        for (_, superstep), steps in places.items()
    )
    usage = result.episode.usage
    return Forecast(
        supersteps,
        len(asked),
        usage.prompt_tokens,
        usage.decoded_tokens,
        result.outcome,
        result.why,
        team.limits,
    )


class _Silent:
    """An engine that counts as another does and answers with fillers."""

    def __init__(self, engine: Engine, answer_tokens: int | None) -> None:
        self._engine = engine
        self._answer_tokens = answer_tokens

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        return [self._filler(request) for request in requests]

    def _filler(self, request: Request) -> Completion:
        prompt = self.count_tokens(request.prompt)
        choices = request.grammar.value if request.grammar else ()
        if isinstance(choices, tuple) and choices:
            text = choices[0] if FINISH in choices else choices[len(choices) // 2]
            count = self.count_tokens((Segment(text),))
            return Completion(text, usage=Usage(prompt, decoded_tokens=count))
        count = request.sampling.max_tokens
        if self._answer_tokens is not None:
            count = min(count, self._answer_tokens)
        if request.sampling.logprobs is not None:
            token = TokenLogprob(0, _WORD, 0.0, ((0, _WORD, 0.0),))
            return Completion(_WORD, (0,), "length", Usage(prompt, decoded_tokens=1), (token,))
        return Completion(_WORD * count, usage=Usage(prompt, decoded_tokens=count))

    def count_tokens(self, prompt: Prompt) -> int:
        return self._engine.count_tokens(prompt)


def _without_others(team: Team) -> Team:
    """The same team, whose people, functions and remote agents are fillers without a cost."""
    return replace(team, members=tuple(map(_stand_in, team.members)))


def _stand_in(member: Member) -> Member:
    if isinstance(member, Team):
        return _without_others(member)
    if isinstance(member.model, str):
        return replace(member, strategy="answer", tools=())
    words = _WORD * member.sampling.max_tokens
    return replace(member, model=Script(lambda messages, seed: words, "filler"))


def _engines(team: Team) -> set[str]:
    spare = failure_policies.make(team.protocol.on_failure).model
    named = {spare} if spare is not None else set()
    for member in team.members:
        if isinstance(member, Agent):
            named |= {member.model} if isinstance(member.model, str) else set()
        else:
            named |= _engines(member)
    return named
