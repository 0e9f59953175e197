"""The event log: everything a run does, append-only, in one SQLite file.

Each append is one transaction in WAL mode, so a process killed at any moment leaves a log that
opens, holds every event whose append returned, and holds none by half. An event's ``key`` makes
it idempotent: appending it again returns the first one.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from shoal.core.errors import LogError
from shoal.core.ids import new_id
from shoal.core.records import Episode, Step, from_json, to_json

FORMAT = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (
    seq  INTEGER PRIMARY KEY AUTOINCREMENT,
    key  TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    at   REAL NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS event_kind ON event (kind, seq);
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log; ``at`` is seconds since the epoch, ``body`` a JSON object."""

    seq: int
    key: str
    kind: str
    at: float
    body: Mapping[str, Any]


class EventLog:
    """Append-only log of one run. Kinds in use: run, resume, step, settlement,
    note, end.

    One object may be used from several threads. Several processes may read; one writes.
    ``path`` None keeps the log in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                str(path) if path else ":memory:",
                timeout=30,
                check_same_thread=False,
                isolation_level=None,
            )
        except (sqlite3.Error, OSError) as error:
            raise LogError(f"Cannot open the event log {path}: {error}.") from error
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        """Make the tables of a new log; leave one of a newer format untouched."""
        try:
            written = self._db.execute("PRAGMA user_version").fetchone()[0]
            if written <= FORMAT:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(_SCHEMA)
                self._db.execute(f"PRAGMA user_version={FORMAT}")
        except sqlite3.Error as error:
            raise LogError(f"Cannot open the event log {self.path}: {error}.") from error
        if written > FORMAT:
            raise LogError(
                f"The event log {self.path} has format {written}, newer than this version of "
                f"shoal reads ({FORMAT}): upgrade shoal to open it."
            )

    def append(self, kind: str, body: Mapping[str, Any], *, key: str | None = None) -> Event:
        """Write one event, or return the one that has this key already.

        Raises :class:`LogError` when it cannot be written; the log then stays as it was.
        """
        key, at, text = key or new_id(), time.time(), json.dumps(body, ensure_ascii=False)
        seq = self._insert(kind, text, key, at)
        if seq is not None:
            return Event(seq, key, kind, at, json.loads(text))
        found = self.get(key)
        assert found is not None, "a key that cannot be inserted is there"
        return found

    def append_step(self, step: Step) -> None:
        """Write a turn; its own key makes it idempotent. Raises as :meth:`append` does."""
        self._insert("step", to_json(step), step.key, time.time())

    def _insert(self, kind: str, body: str, key: str, at: float) -> int | None:
        """The new event's number; None where the key was there already."""
        with self._lock:
            try:
                done = self._db.execute(
                    "INSERT INTO event (key, kind, at, body) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (key) DO NOTHING",
                    (key, kind, at, body),
                )
            except (sqlite3.Error, UnicodeEncodeError) as error:
                raise LogError(
                    f"Cannot write to the event log {self.path}: {error}; "
                    "what was logged before is safe and the run can be resumed."
                ) from error
        return done.lastrowid if done.rowcount else None

    def get(self, key: str) -> Event | None:
        """The event with this key, or None."""
        return next(self._select("WHERE key = ?", (key,)), None)

    def events(self, kind: str | None = None, *, after: int = 0) -> Iterator[Event]:
        """Events in order of writing, of one kind or all, with ``seq`` greater than ``after``."""
        if kind is None:
            return self._select("WHERE seq > ? ORDER BY seq", (after,))
        return self._select("WHERE kind = ? AND seq > ? ORDER BY seq", (kind, after))

    def steps(self) -> Iterator[Step]:
        """All turns, in order of writing."""
        with self._lock:
            rows = self._read("SELECT body FROM event WHERE kind = 'step' ORDER BY seq", ())
        return (from_json(Step, row[0]) for row in rows)

    def seconds(self) -> float:
        """How long the run was at work: the time between events, without the pauses that a
        "resume" event ends."""
        with self._lock:
            rows = self._read("SELECT kind, at FROM event ORDER BY seq", ())
        gaps = itertools.pairwise(rows)
        return sum(max(0.0, float(b[1] - a[1])) for a, b in gaps if b[0] != "resume")

    def episode(self) -> Episode:
        """The run as one episode: its task, its steps so far, its end where it has one."""
        run = next(self.events("run"), None)
        end = next(self.events("end"), None)
        start: Mapping[str, Any] = run.body if run else {}
        last: Mapping[str, Any] = end.body if end else {}
        return Episode(
            id=str(start.get("id", "")),
            task=str(start.get("task", "")),
            steps=tuple(self.steps()),
            result=last.get("result"),
            outcome=str(last.get("outcome", "open")),
            reward=last.get("reward"),
            seed=int(start.get("seed", 0)),
        )

    def _select(self, where: str, values: tuple[Any, ...]) -> Iterator[Event]:
        with self._lock:
            rows = self._read(f"SELECT seq, key, kind, at, body FROM event {where}", values)
        return (_event(row) for row in rows)

    def _read(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise LogError(f"Cannot read the event log {self.path}: {error}.") from error

    def close(self) -> None:
        """Close the file; the log cannot be used afterwards."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _event(row: tuple[Any, ...]) -> Event:
    seq, key, kind, at, body = row
    return Event(seq, key, kind, at, json.loads(body))
