"""What code may use: time, memory, processes, files, output, calls of tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shoal.core.errors import ConfigError, ShoalError
from shoal.core.records import ToolSpec

TierName = Literal["bubblewrap", "sandlock", "monty", "none"]

UNPROTECTED = "run this code without isolation"
"""What a policy must say in so many words before code runs without protection."""

MIB = 1 << 20


class NoSandbox(ShoalError):
    """No tier of isolation works here, and nobody has allowed to run without."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of one session.

    wall_seconds    of one run; the session is killed then
    cpu_seconds     of one process of the session, over its whole life
    memory_bytes    address space of one process; the session together may hold as much in memory
    processes       processes and threads beside the worker itself
    open_files, file_bytes, folder_bytes  descriptors, size of a file, size of its own folder
    output_bytes    what one run may print; the session is killed beyond it
    message_bytes   one message to or from the worker: a result, a tool's arguments or answer
    calls           tool calls of one run
    tier            the tier to take; None takes the best that works
    unprotected     must be the sentence :data:`UNPROTECTED` for code to run in the tier "none"
    """

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 256 * MIB
    processes: int = 8
    open_files: int = 64
    file_bytes: int = 16 * MIB
    folder_bytes: int = 32 * MIB
    output_bytes: int = 256 * 1024
    message_bytes: int = MIB
    calls: int = 100
    tier: TierName | None = None
    unprotected: str = ""

    def __post_init__(self) -> None:
        numbers = (n for n in self.__slots__ if n not in ("tier", "unprotected", "processes"))
        for name in numbers:
            if getattr(self, name) <= 0:
                raise ConfigError(f"A sandbox's {name} is {getattr(self, name)}: give more than 0.")
        if self.processes < 0:
            raise ConfigError(f"A sandbox's processes are {self.processes}: give 0 or more.")
        if self.unprotected and self.unprotected != UNPROTECTED:
            raise ConfigError(
                f"unprotected is {self.unprotected!r}: write {UNPROTECTED!r}, or leave it out."
            )


Permit = Callable[[ToolSpec, Mapping[str, Any]], str | None]
"""Asked before each tool call with its arguments; answers why not, or None where it may be made."""


def reads_only(spec: ToolSpec, arguments: Mapping[str, Any]) -> str | None:
    """The usual permission: tools that only read."""
    if spec.side_effect == "read":
        return None
    return f"{spec.name} would {spec.side_effect}, which this session may not"


@dataclass(frozen=True, slots=True)
class Callback:
    """A tool that sandboxed code may call; ``fn`` runs outside and takes its arguments by name.

    In the sandbox it is a function called ``alias``: the tool's name with what no identifier
    holds replaced by an underscore.
    """

    spec: ToolSpec
    fn: Callable[..., Any] = field(repr=False)

    @property
    def alias(self) -> str:
        """Its name as an identifier."""
        return "".join(c if c.isidentifier() or c.isdigit() else "_" for c in self.spec.name)


def by_alias(tools: Sequence[Callback]) -> dict[str, Callback]:
    """Tools by their names in the sandbox; raises :class:`ConfigError` where two have the same."""
    named: dict[str, Callback] = {}
    for tool in tools:
        if tool.alias in named:
            other = named[tool.alias].spec.name
            raise ConfigError(
                f"The tools {other!r} and {tool.spec.name!r} are both called {tool.alias!r} in a "
                "sandbox: rename one."
            )
        named[tool.alias] = tool
    return named
