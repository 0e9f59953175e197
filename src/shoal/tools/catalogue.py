"""Tools on disk: names and versions in memory, everything else read when it is asked for.

A catalogue is one SQLite file, written whole or not at all and never changed: a new version of
its source makes a new file. Several are read as one with :meth:`Catalogue.joined`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from shoal.core.errors import InputError, ShoalError, nearest
from shoal.core.files import atomic_path
from shoal.core.records import ToolSpec, from_json, to_json

FORMAT = 1
"""Counts up when files of an older shoal cannot be read any more."""


class DamagedCatalogue(ShoalError):
    """A catalogue's file that cannot be read."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A second tool under a name that was taken; the first was kept."""

    name: str
    kept: str
    refused: str

    def __str__(self) -> str:
        return (
            f"There are two tools {self.name!r}: the one of {self.kept} is kept, the one of "
            f"{self.refused} is refused."
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    version: str
    served: bool
    file: int


class Catalogue:
    """Tools by qualified name, in one or several files; safe for several threads.

    ``refused`` lists tools whose names were taken.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open catalogues that :func:`write` wrote; raises :class:`DamagedCatalogue`."""
        self.paths = tuple(paths)
        self._files = [_opened(path) for path in paths]
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self.refused: list[Refusal] = []
        for number, (path, file) in enumerate(zip(paths, self._files, strict=True)):
            try:
                self._refusals(file)
                for name, version, served in file.execute(
                    "SELECT name, version, served FROM tools ORDER BY rowid"
                ):
                    if name in self._entries:
                        kept = self[name].origin
                        self.refused.append(Refusal(name, kept, self._read(file, name).origin))
                    else:
                        self._entries[name] = _Entry(version, bool(served), number)
            except (sqlite3.DatabaseError, ValueError, zlib.error) as error:
                self.close()
                raise DamagedCatalogue(f"The catalogue {path} cannot be read: {error}.") from error

    def _refusals(self, file: sqlite3.Connection) -> None:
        (text,) = file.execute("SELECT value FROM facts WHERE name = 'refused'").fetchone()
        self.refused += [Refusal(*one) for one in json.loads(text)]

    @classmethod
    def joined(cls, catalogues: Iterable[Catalogue]) -> Catalogue:
        """Several catalogues as one; of two tools with one name the first is kept."""
        return cls([path for one in catalogues for path in one.paths])

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> ToolSpec:
        """The tool of this name; raises :class:`InputError` with the nearest name for none."""
        if name not in self._entries:
            raise InputError(f"There is no tool {name!r}.{nearest(name, self._entries)}")
        return self._read(self._files[self._entries[name].file], name)

    def __iter__(self) -> Iterator[ToolSpec]:
        """All tools in the order of their sources."""
        for number, file in enumerate(self._files):
            with self._lock:
                rows = file.execute("SELECT name, spec FROM tools ORDER BY rowid").fetchall()
            for name, spec in rows:
                if self._entries[name].file == number:
                    yield from_json(ToolSpec, zlib.decompress(spec))

    def _read(self, file: sqlite3.Connection, name: str) -> ToolSpec:
        with self._lock:
            (spec,) = file.execute("SELECT spec FROM tools WHERE name = ?", (name,)).fetchone()
        return from_json(ToolSpec, zlib.decompress(spec))

    @property
    def names(self) -> tuple[str, ...]:
        """All qualified names, in the order of their sources."""
        return tuple(self._entries)

    @property
    def versions(self) -> Mapping[str, str]:
        """Version of every tool by its name."""
        return {name: entry.version for name, entry in self._entries.items()}

    @property
    def served(self) -> int:
        """How many tools can be called here; the others are described only."""
        return sum(entry.served for entry in self._entries.values())

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the names and versions of all tools."""
        lines = sorted(f"{name} {entry.version}\n" for name, entry in self._entries.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def close(self) -> None:
        """Close the files; names stay known, specs cannot be read any more."""
        for file in self._files:
            file.close()


def _opened(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise DamagedCatalogue(f"There is no catalogue {path}.")
    file = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    try:
        (form,) = file.execute("SELECT value FROM facts WHERE name = 'format'").fetchone()
    except (sqlite3.DatabaseError, TypeError) as error:
        file.close()
        raise DamagedCatalogue(f"The catalogue {path} cannot be read: {error}.") from error
    if form != str(FORMAT):
        file.close()
        raise DamagedCatalogue(f"The catalogue {path} has format {form}, not {FORMAT}.")
    return file


def write(specs: Iterable[ToolSpec], path: Path) -> Catalogue:
    """A catalogue of tools at ``path``, whole or not at all.

    Of two tools with one name the first is kept and the second is among ``refused``.
    """
    origins: dict[str, str] = {}
    refused: list[tuple[str, str, str]] = []

    def rows() -> Iterator[tuple[str, str, int, bytes]]:
        for spec in specs:
            if spec.name in origins:
                refused.append((spec.name, origins[spec.name], spec.origin))
                continue
            origins[spec.name] = spec.origin
            packed = zlib.compress(to_json(spec).encode(), 1)
            yield spec.name, spec.version, int(spec.served), packed

    with atomic_path(path) as temporary, closing(sqlite3.connect(temporary)) as file, file:
        file.execute("PRAGMA journal_mode=OFF")  # the file gets its name when it is whole
        file.execute("PRAGMA synchronous=OFF")
        file.execute("CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT)")
        file.execute(
            "CREATE TABLE tools (name TEXT UNIQUE, version TEXT, served INTEGER, spec BLOB)"
        )
        file.executemany("INSERT INTO tools VALUES (?, ?, ?, ?)", rows())
        facts = {"format": str(FORMAT), "refused": json.dumps(refused)}
        file.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
    return Catalogue([path])
