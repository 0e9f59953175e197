"""Agents that are models answer tasks in a fixed order, and every task is a settled round.

"Everyone Contributes!" (arXiv 2508.02076): each agent sees the texts before its own that it may
see, somebody decides with which settings it speaks, an evaluator scores what it said, and the
rewards are those of :class:`~shoal.mechanisms.goods.public_goods.PublicGoods`. Effort is the share
of its token limit that an agent really used. All tasks go side by side: one group of requests a
place.

Legend: B tasks, n agents, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from shoal.core.errors import ConfigError
from shoal.core.log import EventLog
from shoal.core.protocols import Sampling
from shoal.mechanisms.generations import Generations, Spoken
from shoal.mechanisms.goods.evaluators import Evaluator
from shoal.mechanisms.goods.features import State, state_of
from shoal.mechanisms.goods.prompts import Asking, Heard
from shoal.mechanisms.goods.public_goods import PublicGoods
from shoal.mechanisms.goods.tasks import Task, is_right
from shoal.mechanisms.protocol import ReportError, Settlement
from shoal.mechanisms.round import Round


@dataclass(frozen=True, slots=True)
class Group:
    """Who answers, by which model each, how it is asked, and what it gets.

    generations  of each agent's model, by name; agents of one model share one
    longest      the token limit at which an agent's effort counts as 1
    """

    mechanism: PublicGoods
    agents: tuple[str, ...]
    generations: Mapping[str, Generations]
    asking: Asking
    evaluator: Evaluator
    longest: int

    def __post_init__(self) -> None:
        if len(set(self.agents)) != len(self.agents):
            raise ConfigError(f"An agent is named twice in the order {', '.join(self.agents)}.")
        if len(self.agents) != self.mechanism.game.agents:
            raise ConfigError(
                f"The game is for {self.mechanism.game.agents} agents, but {len(self.agents)} "
                "are in the order."
            )
        missing = [agent for agent in self.agents if agent not in self.generations]
        if missing:
            raise ConfigError(f"The agent {missing[0]!r} has no model.")
        if self.longest < 1:
            raise ConfigError(f"A token limit of {self.longest} lets nobody speak.")


class Decide(Protocol):
    """Chooses the settings with which one agent speaks on each task."""

    def __call__(self, place: int, states: Sequence[State]) -> Sequence[Sampling]:
        """Settings for the agent at ``place`` (from 0); their stop and seed are set here."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """One agent's part: what it saw, how it was set, what it said and what that scored.

    ``score`` is not finite where the evaluator failed; ``spoken.text`` is None for one skipped.
    """

    agent: str
    state: State = field(repr=False)
    sampling: Sampling
    spoken: Spoken
    score: float

    @property
    def skipped(self) -> bool:
        """Whether the agent said nothing, as its engine failed or took too long."""
        return self.spoken.text is None


@dataclass(frozen=True, slots=True)
class Play:
    """One task from the first agent to the last.

    ``settlement`` is None where a score was none: such a round is not settled, and ``refused`` says
    why. ``right`` is whether the last text answers rightly.
    """

    task: Task
    turns: tuple[Turn, ...]
    settlement: Settlement | None
    refused: str = ""

    @property
    def final(self) -> str:
        """The group's answer: the last text there is."""
        said = [turn.spoken.text for turn in self.turns if turn.spoken.text is not None]
        return said[-1] if said else ""

    @property
    def right(self) -> bool:
        """Whether the group's answer is right."""
        return is_right(self.final, self.task)

    @property
    def tokens(self) -> int:
        """Tokens that were generated."""
        return sum(turn.spoken.tokens for turn in self.turns)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts."""
        return sum(turn.spoken.prompt_tokens for turn in self.turns)

    def reward(self, agent: str) -> float:
        """R_i; not a number where the round was not settled or the agent was skipped."""
        if self.settlement is None:
            return math.nan
        return float(self.settlement.decision.utilities.get(agent, math.nan))

    @property
    def details(self) -> Mapping[str, Any]:
        """Of the settlement: contributions, efforts, bar, welfare, free riders."""
        return self.settlement.decision.details if self.settlement else {}


async def play(
    group: Group,
    tasks: Sequence[Task],
    decide: Decide,
    *,
    name: str = "play",
    seeds: Sequence[int] | None = None,
    log: EventLog | None = None,
    without: int | None = None,
) -> list[Play]:
    """Play all tasks. ``seeds`` are of each task's generations, by default all 0.

    ``without`` leaves the agent at that place out, as if it had failed. ``name`` and a task's place
    name its round in the log.
    """
    seeds = [0] * len(tasks) if seeds is None else seeds
    turns: list[list[Turn]] = [[] for _ in tasks]
    n = len(group.agents)
    for place, agent in enumerate(group.agents):
        earlier = [_visible(group, one) for one in turns]
        states = [
            state_of(task.question, place + 1, n, heard)
            for task, heard in zip(tasks, earlier, strict=True)
        ]
        chosen = [
            replace(one, stop=group.asking.stop, seed=seed * n + place)
            for one, seed in zip(decide(place, states), seeds, strict=True)
        ]
        if place == without:
            spoken = [Spoken(None) for _ in tasks]
        else:
            prompts = [
                group.asking(task.question, agent, place + 1, n, heard)
                for task, heard in zip(tasks, earlier, strict=True)
            ]
            spoken = await group.generations[agent].generate(prompts, chosen)
        scores = await _scores(group, tasks, spoken)
        rows = zip(turns, states, chosen, spoken, scores, strict=True)
        for each, state, sampling, one, score in rows:
            each.append(Turn(agent, state, sampling, one, score))
    return [
        _settled(group, task, tuple(one), f"{name}/{place}", log)
        for place, (task, one) in enumerate(zip(tasks, turns, strict=True))
    ]


def _visible(group: Group, turns: Sequence[Turn]) -> list[Heard]:
    """What the next agent sees of those before it, gaps included."""
    first = {"none": len(turns), "last": len(turns) - 1, "all": 0}[group.mechanism.observe]
    return [Heard(turn.agent, turn.spoken.text) for turn in turns[max(first, 0) :]]


async def _scores(group: Group, tasks: Sequence[Task], spoken: Sequence[Spoken]) -> list[float]:
    """What each text contributes; the least possible where it is empty."""
    game = group.mechanism.game
    said = [(task, one.text) for task, one in zip(tasks, spoken, strict=True)]
    texts = [(task, text) for task, text in said if text is not None and text.strip()]
    found = iter(await group.evaluator(texts) if texts else ())
    return [
        math.nan if text is None else next(found) if text.strip() else game.low for _, text in said
    ]


def _settled(
    group: Group, task: Task, turns: tuple[Turn, ...], name: str, log: EventLog | None
) -> Play:
    observed = {
        turn.agent: {
            "score": turn.score,
            "effort": float(np.clip(turn.spoken.tokens / group.longest, 0, 1)),
        }
        for turn in turns
        if not turn.skipped
    }
    try:
        with Round(group.mechanism, group.agents, id=name, log=log) as round:
            for turn in turns:
                if turn.spoken.text is not None:
                    round.report(turn.agent, turn.spoken.text)
            return Play(task, turns, round.settle(observed))
    except ReportError as error:
        return Play(task, turns, None, str(error))
