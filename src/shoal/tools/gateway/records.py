"""What a gateway answers: replies, faults by kind, and who may do what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from shoal.core.records import SideEffect, ToolSpec

FaultKind = Literal[
    "unknown_tool",
    "not_found_yet",
    "gone",
    "changed",
    "not_served",
    "not_permitted",
    "not_approved",
    "bad_arguments",
    "bad_schema",
    "bad_key",
    "budget",
    "unavailable",
    "timeout",
    "uncertain",
    "too_large",
    "failed",
]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a call brought nothing.

    kind       what an agent can decide by
    message    one sentence
    path       where in the arguments, as a JSON path such as ``$.Tags[0].Key``
    retryable  whether the same call, under the same key, may be made again
    sent       whether the service may have seen it
    nearest    names that may have been meant
    """

    kind: FaultKind
    message: str
    path: str = ""
    retryable: bool = False
    sent: bool = False
    nearest: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call brought.

    text      the result, or its head where it is long: the rest is had by ``handle``
    size      characters of the whole result
    key       what the call is known by: another call under it is not made again
    repeated  whether this is the answer of an earlier call under the same key
    dry       whether nothing was sent, as this was a dry run
    sent      whether it got as far as its service, or may have
    """

    tool: str
    version: str = ""
    text: str = ""
    size: int = 0
    handle: str | None = None
    fault: Fault | None = None
    key: str = ""
    repeated: bool = False
    dry: bool = False
    sent: bool = False
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the call was made, or would have been."""
        return self.fault is None


Approve = Callable[[ToolSpec, Mapping[str, Any]], bool | Awaitable[bool]]
"""Asked before a call that needs approval; with a human, an auditor or a rule behind it."""


@dataclass(frozen=True, slots=True)
class Access:
    """What one agent may do.

    may       classes of side effects it may call at all
    approval  classes whose calls somebody must approve, one by one
    approve   who is asked; where nobody is, such calls are refused
    tools     patterns of names, such as ``aws.s3.*``, of which one must fit
    dry_run   check everything and send nothing that is more than a read
    any_name  whether tools may be called that were not found before
    served    find only what can be called here
    """

    may: frozenset[SideEffect] = frozenset(("read", "write", "destroy"))
    approval: frozenset[SideEffect] = frozenset(("destroy",))
    approve: Approve | None = field(default=None, compare=False)
    tools: tuple[str, ...] = ("*",)
    dry_run: bool = False
    any_name: bool = False
    served: bool = False

    def forbids(self, spec: ToolSpec) -> str | None:
        """Why a tool is not for this agent, or None."""
        if spec.side_effect not in self.may:
            return f"{spec.name} would {spec.side_effect}, which this agent may not"
        if not any(fnmatchcase(spec.name, pattern) for pattern in self.tools):
            return f"{spec.name} is not among the tools of this agent"
        return None


@dataclass(frozen=True, slots=True)
class Span:
    """One find, describe or call, for whoever measures."""

    kind: Literal["find", "describe", "call"]
    tool: str
    version: str
    seconds: float
    ok: bool
    detail: str = ""
