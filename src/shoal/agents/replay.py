"""Runs that are over: read again from their log, put in order, compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shoal.agents.events import (
    OnEvent,
    RunEnded,
    RunStarted,
    TeamResult,
    TurnEnded,
)
from shoal.core.errors import LogError
from shoal.core.log import EventLog
from shoal.core.records import Episode, Step


def in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Steps by superstep, then name; the turns inside a member that is a team stand before it.

    This order depends on the keys alone, not on what happened to be logged first.
    """
    return tuple(sorted(steps, key=_place))


def _place(step: Step) -> tuple[tuple[float, str], ...]:
    places = step.key.split("/")[1:]
    pairs = zip(places[::2], places[1::2], strict=True)
    return *((float(superstep), name) for superstep, name in pairs), (float("inf"), "")


def replay(log: EventLog, on_event: OnEvent | None = None) -> Episode:
    """The episode a log holds, told again as events where somebody listens.

    Raises :class:`LogError` for a log without a run.
    """
    start = next(log.events("run"), None)
    if start is None:
        raise LogError(f"The event log {log.path} holds no run.")
    whole = log.episode()
    steps = in_order(whole.steps)
    episode = Episode(
        whole.id, whole.task, steps, whole.result, whole.outcome, whole.reward, whole.seed
    )
    if on_event is not None:
        members = tuple(start.body.get("members", ()))
        on_event(RunStarted(episode.id, str(start.body["team"]), episode.task, members, len(steps)))
        for step in steps:
            on_event(TurnEnded(step, recorded=True))
        end = next(log.events("end"), None)
        if end is not None:
            why = str(end.body.get("why", ""))
            on_event(RunEnded(TeamResult(episode, episode.result, episode.outcome, why)))
    return episode


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two episodes part: the step's number from 0, and what differs."""

    index: int
    member: str
    superstep: int
    what: str
    first: str
    second: str


def diff(first: Episode, second: Episode) -> Difference | None:
    """Where two episodes part; None where every turn saw, drew and said the same.

    Run ids, times and what was shared do not count: they may differ between equal runs.
    """
    for index, (a, b) in enumerate(zip(first.steps, second.steps, strict=False)):
        for what in ("member", "superstep", "prompt", "seed", "output", "finish", "data"):
            if getattr(a, what) != getattr(b, what):
                left, right = str(getattr(a, what)), str(getattr(b, what))
                return Difference(index, a.member, a.superstep, what, left, right)
    count = min(len(first.steps), len(second.steps))
    if len(first.steps) != len(second.steps):
        step = max(first.steps, second.steps, key=len)[count]
        lengths = f"{len(first.steps)} turns", f"{len(second.steps)} turns"
        return Difference(count, step.member, step.superstep, "length", *lengths)
    if first.result != second.result:
        return Difference(count, "", -1, "result", str(first.result), str(second.result))
    return None
