"""Samples of a run's episodes in its event log, and a group shown with its credit by token.

An episode's steps are ordinary steps of the log; what training adds (tokens, log-probabilities,
advantage, state) is in their data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.core.errors import InputError
from shoal.core.log import EventLog
from shoal.core.records import Message, Step
from shoal.training.loop import Iteration
from shoal.training.policies import Policy
from shoal.training.rows import Row

GROUPS = 2
"""Groups of an iteration that are logged."""


def log_iteration(log: EventLog, iteration: Iteration, policy: Policy) -> None:
    """Write the first groups of an iteration; writing an iteration twice is writing it once."""
    wanted = list(dict.fromkeys(row.task for row in iteration.rows))[:GROUPS]
    for row, advantage in zip(iteration.rows, iteration.credit.total.tolist(), strict=True):
        if row.task in wanted:
            log.append_step(as_step(iteration.number, row, advantage, policy))


def as_step(number: int, row: Row, advantage: float, policy: Policy) -> Step:
    """A row as a step of the log."""
    member = f"{row.task}/{row.agent or 'agent'}/{row.episode}"
    return Step(
        key=f"train/{number}/{member}/{row.t}",
        member=member,
        superstep=row.t,
        prompt=(Message("user", policy.tokenizer.decode(row.prompt, special=True)),),
        output=policy.decode(row.action),
        reward=row.reward,
        data={
            "iteration": number,
            "task": row.task,
            "episode": row.episode,
            "pieces": [policy.tokenizer.decode([token], special=True) for token in row.action],
            "logprobs": list(row.logprobs),
            "advantage": advantage,
            "state": repr(row.state_key),
            "valid": row.valid,
            "answer": None if row.answer is None else str(row.answer),
            "parts": dict(row.parts),
            "version": row.version,
        },
    )


@dataclass(frozen=True, slots=True)
class Shown:
    """One logged step of a group."""

    episode: str
    t: int
    prompt: str
    pieces: tuple[str, ...]
    logprobs: tuple[float, ...]
    advantage: float
    reward: float
    state: str


def groups_of(log: EventLog) -> dict[tuple[int, str], list[Shown]]:
    """All logged groups by (iteration, task), in order."""
    found: dict[tuple[int, str], list[Shown]] = {}
    for step in log.steps():
        data: Mapping[str, Any] = step.data
        if "advantage" in data:
            found.setdefault((data["iteration"], data["task"]), []).append(_shown(step, data))
    return found


def find_group(log: EventLog, number: int | None = None) -> tuple[tuple[int, str], list[Shown]]:
    """The number-th logged group, from 0, or the last; raises :class:`InputError` for none."""
    groups = list(groups_of(log).items())
    if not groups:
        raise InputError("No groups were logged: set log_every in the run file.")
    if number is None:
        return groups[-1]
    if not 0 <= number < len(groups):
        raise InputError(f"There is no group {number}: {len(groups)} were logged, from 0.")
    return groups[number]


def by_episode(steps: Sequence[Shown]) -> dict[str, list[Shown]]:
    """Steps of a group by episode, each in order."""
    found: dict[str, list[Shown]] = {}
    for step in sorted(steps, key=lambda step: (step.episode, step.t)):
        found.setdefault(step.episode, []).append(step)
    return found


def _shown(step: Step, data: Mapping[str, Any]) -> Shown:
    return Shown(
        data["episode"],
        step.superstep,
        step.prompt[0].content,
        tuple(data["pieces"]),
        tuple(data["logprobs"]),
        data["advantage"],
        step.reward or 0.0,
        data["state"],
    )
