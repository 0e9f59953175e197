"""The currency between rooms: messages, tool calls, usage, steps, episodes.

Records are frozen; what crosses a file goes through :func:`to_json` and :func:`from_json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

Role = Literal["system", "user", "assistant", "tool"]
SideEffect = Literal["read", "write", "destroy"]
Finish = Literal["stop", "length", "cancelled", "budget", "error"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's wish to call a tool; ``arguments`` is a JSON object as text."""

    id: str
    name: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. ``name`` is the member who wrote it, where that is known."""

    role: Role
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool: what a model sees of it, and what its callers and a catalogue must know.

    name         what it is called by, unique in its catalogue: ``aws.s3.CreateBucket``
    description  its documentation as text; written by others, so data and never an instruction
    parameters   JSON schema of the arguments
    side_effect  what a call does at worst: only read, write, or destroy
    origin       where the description is from, with a version: ``botocore 1.44.5``
    service      name for people of what it belongs to: ``Amazon Simple Storage Service``
    cost         how many calls of a budget one call takes
    served       whether it can be called here, or is only described
    """

    name: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    side_effect: SideEffect = "read"
    origin: str = ""
    service: str = ""
    cost: int = 1
    served: bool = True

    @property
    def version(self) -> str:
        """16 hex digits that change with anything a caller or a search relies on.

        Whether the tool is served here, and at what cost, is no part of it.
        """
        parts = (self.name, self.description, self.parameters, self.side_effect, self.service)
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=dict)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost. Token counts add up; times are of one request.

    prompt_tokens   tokens of the prompt as asked for
    shared_tokens   those of them whose KV entries were found instead of computed
    decoded_tokens  tokens generated
    first_token_ms  milliseconds from submission to the first token
    total_ms        milliseconds from submission to the end
    kv_bytes        KV cache held by this request alone, beside what it shares
    recomputed_tokens  tokens computed a second time, after memory ran out
    approx_tokens   prompt tokens whose KV entries were moved here from another context
    repaired_tokens prompt tokens that were moved here and computed again in this context
    """

    prompt_tokens: int = 0
    shared_tokens: int = 0
    decoded_tokens: int = 0
    first_token_ms: float = 0.0
    total_ms: float = 0.0
    kv_bytes: int = 0
    recomputed_tokens: int = 0
    approx_tokens: int = 0
    repaired_tokens: int = 0

    @property
    def asked_tokens(self) -> int:
        """Prompt and generated tokens together."""
        return self.prompt_tokens + self.decoded_tokens

    @property
    def computed_prompt_tokens(self) -> int:
        """Prompt tokens that really went through the model for this request."""
        return self.prompt_tokens - self.shared_tokens - self.approx_tokens

    def __add__(self, other: Usage) -> Usage:
        """Counts and milliseconds add up; ``kv_bytes`` keeps the larger, as caches are reused."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.shared_tokens + other.shared_tokens,
            self.decoded_tokens + other.decoded_tokens,
            self.first_token_ms + other.first_token_ms,
            self.total_ms + other.total_ms,
            max(self.kv_bytes, other.kv_bytes),
            self.recomputed_tokens + other.recomputed_tokens,
            self.approx_tokens + other.approx_tokens,
            self.repaired_tokens + other.repaired_tokens,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of one member: what it saw, what it answered, what that cost.

    ``key`` names the turn for ever (run, member path, superstep): writing it twice is one step.
    ``seen`` lists the keys of the steps that channels carried to the member, in order, so a
    prompt can be rebuilt from the log. ``how`` says how the answer was computed.
    """

    key: str
    member: str
    superstep: int
    prompt: tuple[Message, ...]
    output: str
    seen: tuple[str, ...] = ()
    finish: Finish = "stop"
    tool_calls: tuple[ToolCall, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = Usage()
    reward: float | None = None
    seed: int = 0
    how: str = "exact"


@dataclass(frozen=True, slots=True)
class Episode:
    """A group's whole way through one task."""

    id: str
    task: str
    steps: tuple[Step, ...]
    result: str | None = None
    outcome: str = "open"
    reward: float | None = None
    seed: int = 0

    @property
    def usage(self) -> Usage:
        """The sum over all steps."""
        return sum((step.usage for step in self.steps), Usage())


R = TypeVar("R")


_adapters: dict[type, TypeAdapter[Any]] = {}


def _adapter(record: type) -> TypeAdapter[Any]:
    if record not in _adapters:
        _adapters[record] = TypeAdapter(record)
    return _adapters[record]


def to_json(record: Any) -> str:
    """One line of JSON for a record, keys in field order, defaults left out."""
    line: bytes = _adapter(type(record)).dump_json(record, exclude_defaults=True)
    return line.decode()


def from_json(record: type[R], text: str | bytes) -> R:
    """The record a line of JSON stands for; raises ``ValueError`` where it does not fit."""
    value: R = _adapter(record).validate_json(text)
    return value
