"""Tools by name: what a gateway needs of a catalogue, and a small one that may change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from shoal.core.errors import InputError, nearest
from shoal.core.records import ToolSpec


class Tools(Protocol):
    """What a gateway asks of a catalogue."""

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> ToolSpec: ...


class Shelf:
    """Tools in memory, by name; they may come and go."""

    def __init__(self, specs: Iterable[ToolSpec] = ()) -> None:
        self._specs: dict[str, ToolSpec] = {}
        for spec in specs:
            self.add(spec)

    def add(self, spec: ToolSpec) -> None:
        """Put a tool in, or a new version of it."""
        self._specs[spec.name] = spec

    def remove(self, name: str) -> None:
        """Take a tool out."""
        self._specs.pop(name, None)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order they came."""
        return tuple(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __iter__(self) -> Iterator[ToolSpec]:
        return iter(self._specs.values())

    def __getitem__(self, name: str) -> ToolSpec:
        """The tool of this name; raises :class:`InputError`."""
        if name not in self._specs:
            raise InputError(f"There is no tool {name!r}.{nearest(name, self._specs)}")
        return self._specs[name]


class Joined:
    """Several catalogues as one; of two tools with one name the first is there."""

    def __init__(self, *parts: Tools) -> None:
        self._parts = parts

    @property
    def names(self) -> tuple[str, ...]:
        """All names, part by part."""
        return tuple(dict.fromkeys(name for part in self._parts for name in part.names))

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return any(name in part for part in self._parts)

    def __getitem__(self, name: str) -> ToolSpec:
        """The tool of this name; raises :class:`InputError`."""
        for part in self._parts:
            if name in part:
                return part[name]
        raise InputError(f"There is no tool {name!r}.{nearest(name, self.names)}")


def close_names(name: str, names: Sequence[str], count: int = 3) -> tuple[str, ...]:
    """The names that one may have meant, best first; quick among many thousands."""
    wanted = _pairs(name)
    scored = ((len(wanted & _pairs(one)) / (len(wanted) + len(one)), one) for one in names)
    best = sorted(scored, key=lambda pair: (-pair[0], pair[1]))[: 10 * count]
    ordered = difflib.get_close_matches(name, [one for _, one in best], count, 0.3)
    return tuple(ordered)


def _pairs(text: str) -> set[str]:
    low = text.lower()
    return {low[at : at + 3] for at in range(len(low) - 2)}
