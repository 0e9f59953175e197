"""What a run tells while it runs, for those who draw it live. Everything lasting is in the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from shoal.core.budget import Limits
from shoal.core.records import Episode, Step


@dataclass(frozen=True, slots=True)
class TeamResult:
    """How a run ended.

    outcome  "done"; "degraded" (done, but a turn failed and was passed over); "undecided" (the
             reducer found no result); "budget_exhausted"; "failed" (stopped by failure; the log
             can be resumed)
    why      the stop rule's reason, or what went wrong, as a short phrase
    seconds  wall time of this process's part of the run
    """

    episode: Episode = field(repr=False)  # asyncio.run writes down what its task returns
    result: str | None
    outcome: str
    why: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run begins or goes on; ``recorded`` counts the turns its log already holds."""

    run_id: str
    team: str
    task: str
    members: tuple[str, ...]
    recorded: int


@dataclass(frozen=True, slots=True)
class SuperstepStarted:
    """These members (paths) take their turns now, at once."""

    superstep: int
    round: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """A member's request goes out; ``choosing`` where it picks one of several names."""

    member: str
    superstep: int
    choosing: bool = False


@dataclass(frozen=True, slots=True)
class TurnDelta:
    """A piece of a member's answer."""

    member: str
    superstep: int
    text: str


FailureAction = Literal["retry", "skip", "replace", "abort", "fallback"]


@dataclass(frozen=True, slots=True)
class TurnFailed:
    """A turn went wrong; what was streamed of it is void, and ``action`` happens next."""

    member: str
    superstep: int
    error: str
    action: FailureAction


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """A turn is logged; ``recorded`` where it was in the log before and was not taken again."""

    step: Step
    recorded: bool = False


@dataclass(frozen=True, slots=True)
class SuperstepEnded:
    """All turns of a superstep are logged; ``left`` is what remains of the team's budget."""

    superstep: int
    left: Limits


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over."""

    result: TeamResult


TeamEvent = (
    RunStarted
    | SuperstepStarted
    | TurnStarted
    | TurnDelta
    | TurnFailed
    | TurnEnded
    | SuperstepEnded
    | RunEnded
)

OnEvent = Callable[[TeamEvent], None]
