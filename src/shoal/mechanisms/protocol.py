"""What every mechanism is: open, collect sealed reports, settle, audit.

A :class:`Mechanism` is pure: it computes private messages and decisions from reports, and tries
to break its own promises. :class:`~shoal.mechanisms.round.Round` is the shell around it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shoal.core.errors import ShoalError


class ReportError(ShoalError, ValueError):
    """A report that a mechanism cannot count; the sentence names the agent and the value."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Report:
    """What one agent says, sealed until the round is settled.

    ``value`` is a plain JSON value, of the kind the mechanism asks for; it is left out of the
    printed form. ``seal`` may be shown at once and checked when the report is opened: ``nonce``
    keeps it from being guessed.
    """

    agent: str
    value: Any = field(repr=False)
    nonce: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    @property
    def seal(self) -> str:
        """SHA-256 of agent, value and nonce."""
        return digest([self.agent, self.value, self.nonce])


@dataclass(frozen=True, slots=True)
class Opening:
    """What is fixed before anybody reports.

    ``id`` names the round for ever. ``weights`` come from a ledger, never from the agents; an
    agent without one weighs 1. Every draw of the round follows from ``seed``.
    """

    id: str
    agents: tuple[str, ...]
    weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def weight(self, agent: str) -> float:
        """The weight of one agent's report."""
        return self.weights.get(agent, 1.0)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a mechanism makes of the reports.

    outcome    a plain JSON value: the number, the action, the allocation
    payments   what each agent gets out of the escrow, >= 0, in the mechanism's own unit
    utilities  what the round is worth to each agent by its own report, where that is known
    how        how it was computed: the rule by name, and how exact it is
    details    further plain JSON values that explain the outcome
    """

    outcome: Any
    payments: Mapping[str, float] = field(default_factory=dict)
    utilities: Mapping[str, float] = field(default_factory=dict)
    how: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settlement:
    """A settled round, as it is logged: what went in, what came out, and what it rests on.

    ``messages`` is what each agent was told in private. ``absent`` agents sent no report and do
    not count. ``inputs`` is the SHA-256 of all that the decision follows from; ``paid_tokens``
    left the budget.
    """

    id: str
    mechanism: str
    opening: Opening
    reports: tuple[Report, ...]
    decision: Decision
    inputs: str
    messages: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    observed: Any = None
    paid_tokens: int = 0
    assumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A case in which a promise fails, and by how much, in units of utility."""

    promise: str
    shortfall: float
    sentence: str
    case: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Audit:
    """Which promises were tried on how many cases, and the worst failure of each.

    ``exhaustive`` says that every case of the stated finite space was tried; otherwise silence
    proves nothing beyond the cases.
    """

    mechanism: str
    cases: Mapping[str, int]
    counterexamples: tuple[Counterexample, ...]
    exhaustive: bool

    @property
    def kept(self) -> frozenset[str]:
        """The promises for which no counterexample was found."""
        return frozenset(self.cases) - {found.promise for found in self.counterexamples}


class Mechanism(Protocol):
    """A way to decide and pay in a group. Pure: same opening and reports, same decision."""

    @property
    def name(self) -> str:
        """What settlements and audits call it, with its parameters."""
        ...

    @property
    def guarantees(self) -> frozenset[str]:
        """The promises it makes about agents that are as ``assumes`` says."""
        ...

    @property
    def assumes(self) -> tuple[str, ...]:
        """What the guarantees rest on, a sentence each; printed beside every result."""
        ...

    @property
    def most_paid(self) -> float:
        """The most a round can pay in all, in the mechanism's unit; 0 where nothing is paid."""
        ...

    def message(self, opening: Opening, agent: str, earlier: Sequence[Report]) -> Any:
        """What ``agent`` is told in private before it reports, a plain JSON value.

        ``earlier`` are the reports so far, in order; only a sequential mechanism shows them.
        """
        ...

    def check(self, opening: Opening, agent: str, value: Any) -> Any:
        """The report's value as it will count; raises :class:`ReportError`."""
        ...

    def settle(self, opening: Opening, reports: Sequence[Report], observed: Any = None) -> Decision:
        """The decision; ``observed`` is what became known after the reports.

        Raises :class:`ReportError` where the reports do not allow one (none came).
        """
        ...

    def audit(self, agents: int) -> Audit:
        """Try to break the guarantees in groups of that many agents."""
        ...


def digest(value: Any) -> str:
    """SHA-256 of a plain JSON value, keys in order."""
    text = json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
