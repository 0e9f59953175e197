"""What became of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal[
    "ok", "error", "timeout", "cpu", "memory", "processes", "output", "protocol", "died"
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    status     "ok"; "error": the code raised, the session lives on. All others ended the
               session: a limit by its name, "protocol" for nonsense on the line to the worker,
               "died" for a worker that went away by itself
    value      the last expression, as JSON; where it is none, its ``repr``
    output     what was printed, both streams in their order
    error      what was raised, or which limit was met, in one sentence
    line       line of the code where it was raised
    calls      tool calls that were made; ``refused`` those that were not permitted
    seconds    wall time
    isolation  the tier it ran in
    """

    status: Status
    value: Any = None
    output: str = ""
    error: str = ""
    line: int | None = None
    calls: int = 0
    refused: int = 0
    seconds: float = 0.0
    isolation: str = ""

    @property
    def ended(self) -> bool:
        """Whether the session is over with it."""
        return self.status not in ("ok", "error")
