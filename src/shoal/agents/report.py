"""The sharing report: what a group asked for, what was really computed, and what sharing saved.

Pure functions over episodes; nothing is printed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from shoal.agents.replay import Difference, diff
from shoal.core.records import Episode, Step, Usage


@dataclass(frozen=True, slots=True)
class Row:
    """One member's turns together, or the whole team's.

    asked_tokens     prompt and generated tokens of all its requests
    computed_tokens  those that went through the model
    shared_tokens    prompt tokens that were found in a cache
    decoded_tokens   tokens generated
    first_token_ms   milliseconds to the first token, mean over turns
    wall_ms          milliseconds of its turns, one after the other
    kv_bytes         bytes of cache it held beside what it shares; for the team: of the superstep
                     that held most
    """

    member: str
    turns: int
    asked_tokens: int
    computed_tokens: int
    shared_tokens: int
    decoded_tokens: int
    first_token_ms: float
    wall_ms: float
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class SharingReport:
    """What every member cost, and the team."""

    rows: tuple[Row, ...]
    total: Row

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same job with sharing and without.

    Ratios are without / with, so 3.0 means that sharing does a third of the work; None where
    nothing was computed or no time was measured. ``difference`` is the first place where the
    two runs part, None where their texts are identical, turn by turn.
    """

    shared: SharingReport
    unshared: SharingReport
    computed_ratio: float | None
    wall_ratio: float | None
    difference: Difference | None

    @property
    def identical(self) -> bool:
        """Whether every turn of both runs saw and said the same."""
        return self.difference is None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "identical": self.identical}


def sharing_report(episode: Episode, *, wall_seconds: float | None = None) -> SharingReport:
    """The report of one episode, members in order of name.

    ``wall_seconds`` is the measured time of the run; without it the slowest turns of all
    supersteps are added up, as the turns of a superstep are taken at once.
    """
    steps = [step for step in episode.steps if step.usage != Usage()]
    by_member: dict[str, list[Step]] = {}
    for step in steps:
        by_member.setdefault(step.member, []).append(step)
    rows = tuple(_row(member, by_member[member]) for member in sorted(by_member))
    total = _row("all", steps)
    supersteps = _supersteps(steps)
    wall = sum(max(step.usage.total_ms for step in group) for group in supersteps)
    total = Row(
        total.member,
        total.turns,
        total.asked_tokens,
        total.computed_tokens,
        total.shared_tokens,
        total.decoded_tokens,
        total.first_token_ms,
        wall if wall_seconds is None else 1000 * wall_seconds,
        max((sum(step.usage.kv_bytes for step in group) for group in supersteps), default=0),
    )
    return SharingReport(rows, total)


def compare(shared: TimedEpisode, unshared: TimedEpisode) -> Comparison:
    """Compare a run with sharing to the same run without."""
    reports = [sharing_report(episode, wall_seconds=wall) for episode, wall in (shared, unshared)]
    with_, without = (report.total for report in reports)
    return Comparison(
        shared=reports[0],
        unshared=reports[1],
        computed_ratio=_ratio(without.computed_tokens, with_.computed_tokens),
        wall_ratio=_ratio(without.wall_ms, with_.wall_ms),
        difference=diff(shared[0], unshared[0]),
    )


TimedEpisode = tuple[Episode, float | None]
"""An episode and its measured wall time in seconds, where there is one."""


def _row(member: str, steps: Iterable[Step]) -> Row:
    usages = [step.usage for step in steps]
    total = sum(usages, Usage())
    return Row(
        member=member,
        turns=len(usages),
        asked_tokens=total.asked_tokens,
        computed_tokens=total.computed_prompt_tokens + total.decoded_tokens,
        shared_tokens=total.shared_tokens,
        decoded_tokens=total.decoded_tokens,
        first_token_ms=total.first_token_ms / len(usages) if usages else 0.0,
        wall_ms=total.total_ms,
        kv_bytes=total.kv_bytes,
    )


def _supersteps(steps: Iterable[Step]) -> list[list[Step]]:
    """Turns that were taken at once: those whose keys differ only in the member."""
    groups: dict[str, list[Step]] = {}
    for step in steps:
        groups.setdefault(step.key.rpartition("/")[0], []).append(step)
    return list(groups.values())


def _ratio(without: float, with_: float) -> float | None:
    return without / with_ if with_ > 0 and without > 0 else None
