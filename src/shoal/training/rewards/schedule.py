"""How much each part of a reward is worth as training goes on.

A part is a share in [0, 1]; a range says what its 0 and its 1 are worth, and may move linearly with
the progress of training. Stages follow each other. Progress is a share of the whole run, so a run
of another length, or one that is resumed, has the same schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Range:
    """What a share of 0 and of 1 are worth: at the beginning of training, and at its end."""

    low: float
    high: float
    low_end: float | None = None
    high_end: float | None = None

    def at(self, progress: float) -> tuple[float, float]:
        """Both at some progress."""
        return (
            _between(self.low, self.low_end, progress),
            _between(self.high, self.high_end, progress),
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """Ranges of all parts until some progress, exclusive; the last stage ends at 1."""

    ranges: Mapping[str, Range]
    until: float = 1.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Stages, one after the other.

    length  words of thinking for which the length part is 1: at the beginning, and at the end

    Raises :class:`ConfigError` for stages that do not end one after the other, the last at 1.
    """

    stages: tuple[Stage, ...]
    length: tuple[float, float] = field(default=(512.0, 512.0))

    def __post_init__(self) -> None:
        ends = [stage.until for stage in self.stages]
        if not ends or ends[-1] != 1 or sorted(set(ends)) != ends or ends[0] <= 0:
            raise ConfigError(f"Stages that end at {ends} cannot be: they must rise, up to 1.")
        if min(self.length) <= 0:
            raise ConfigError(f"A target of {min(self.length):g} words is none.")

    def stage(self, progress: float) -> Stage:
        """The stage at some progress, which must lie in [0, 1]."""
        if not 0 <= progress <= 1:
            raise ValueError(f"A progress of {progress} is outside of [0, 1].")
        return next((one for one in self.stages if progress < one.until), self.stages[-1])

    def words(self, progress: float) -> float:
        """The target of the length part."""
        return _between(*self.length, progress)


def _between(first: float, last: float | None, progress: float) -> float:
    return first if last is None else first + (last - first) * progress


def constant(**ranges: tuple[float, float]) -> Schedule:
    """One stage, in which nothing moves."""
    return Schedule((Stage({name: Range(*ends) for name, ends in ranges.items()}),))
