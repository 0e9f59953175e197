"""What became of calls, tool by tool: counted for everybody, and used to rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

PRIOR = 4.0
"""Calls that a tool must have had before what became of them counts for half."""


@dataclass(frozen=True, slots=True)
class Record:
    """Counts of one tool: how often it was shown, called, failed, and what calls cost in all."""

    shown: int = 0
    calls: int = 0
    failures: int = 0
    cost: float = 0.0

    @property
    def success(self) -> float:
        """From -1 (all its many calls failed) over 0 (unknown) to 1."""
        return (self.calls - 2 * self.failures) / (self.calls + PRIOR)


class Ledger:
    """Records by tool and version: what a tool was says little about what it has become."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], Record] = {}

    def of(self, name: str, version: str) -> Record:
        """The record of a tool in a version."""
        return self._records.get((name, version), Record())

    def shown(self, name: str, version: str) -> None:
        """Count that a tool was among the answers of a search."""
        record = self.of(name, version)
        self._records[name, version] = replace(record, shown=record.shown + 1)

    def called(self, name: str, version: str, *, ok: bool, cost: float = 0.0) -> Record:
        """Count a call and what became of it; returns the record."""
        record = self.of(name, version)
        record = replace(
            record,
            calls=record.calls + 1,
            failures=record.failures + (not ok),
            cost=record.cost + cost,
        )
        self._records[name, version] = record
        return record

    @property
    def records(self) -> dict[tuple[str, str], Record]:
        """All records by (name, version)."""
        return dict(self._records)
