"""What ``result.json`` holds. Numbers are finite; nothing names a host, a user or a path."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from shoal.core.stats import Interval

Mode = Literal["full", "smoke"]
Metric = int | FiniteFloat | Interval


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(_Record):
    """One side of a comparison and what was measured on it; units are in the metrics' names."""

    name: str
    metrics: Annotated[dict[str, Metric], Field(min_length=1)]


class Threshold(_Record):
    """The range a measured value must lie in, ends included; None is no bound."""

    low: FiniteFloat | None = None
    high: FiniteFloat | None = None

    def admits(self, value: float) -> bool:
        """Whether ``value`` lies in the range."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


class Verdict(_Record):
    """One promise, what was measured, and whether it holds."""

    claim: str
    measured: FiniteFloat
    threshold: Threshold
    holds: bool
    interval: Interval | None = None


class Environment(_Record):
    """Where it ran. ``load`` is the one-minute load average before the run began."""

    shoal: str
    python: str
    torch: str | None
    cpu: str
    cores: int
    load: float | None


class Result(_Record):
    """One run of one claim; ``seconds`` is its wall time."""

    name: str
    paper: str
    mode: Mode
    workload: Annotated[str, Field(min_length=1)]
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    verdicts: Annotated[tuple[Verdict, ...], Field(min_length=1)]
    seconds: float
    seed: int
    environment: Environment

    @property
    def held(self) -> int:
        """How many verdicts hold."""
        return sum(verdict.holds for verdict in self.verdicts)

    @property
    def holds(self) -> bool:
        """Whether all of them do."""
        return self.held == len(self.verdicts)

    @property
    def summary(self) -> str:
        """One line for a list."""
        return f"{self.held} of {len(self.verdicts)} hold ({self.mode}, {self.seconds:.0f} s)"
