"""Who reads which keys: tasks of one loop, divided until all threads have as much to do.

A step of one team is a few tasks over many keys: three key-value heads keep two threads busy for
as long as four would. So the keys of a task may be read in pieces whose sums are joined
afterwards (Flash-Decoding, Dao et al., 2023).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 128  # keys of a piece; joining fewer costs what it saves
IDLE = 1.2  # times the ideal time that is good enough


@dataclass(frozen=True, slots=True)
class Task:
    """Queries of an item from ``first`` on; all of them see ``common`` keys, some see ``most``."""

    item: int
    first: int
    common: int
    most: int


@dataclass(frozen=True, slots=True)
class Division:
    """Tasks as a loop takes them.

    tasks_n5   item, first query, first key, end of keys, and where the sums are kept; -1: the
               task is whole, and its result goes where it belongs
    joins_m4   item, first query, the first of its places, and how many pieces it has
    places     of all pieces
    """

    tasks_n5: NDArray[np.int64]
    joins_m4: NDArray[np.int64]
    places: int


def divided(tasks: Iterable[Task], heads: int, threads: int) -> Division:
    """Every task is done for each of ``heads`` key-value heads; those that read most come first."""
    tasks = list(tasks)
    found, joins, places = [], list[tuple[int, int, int, int]](), 0
    for task in tasks:
        count = _pieces(task.common, len(tasks) * heads, threads)
        cuts = [task.common * piece // count for piece in range(count)] + [task.most]
        for piece in range(count):
            place = places + piece if count > 1 else -1
            found.append((task.item, task.first, cuts[piece], cuts[piece + 1], place))
        if count > 1:
            joins.append((task.item, task.first, places, count))
            places += count
    found.sort(key=lambda each: each[2] - each[3])
    return Division(_table(found, 5), _table(joins, 4), places)


def _pieces(keys: int, tasks: int, threads: int) -> int:
    """Into how many pieces each of so many like tasks is divided."""

    def idle(count: int) -> float:
        rounds = -(-tasks * count // threads)
        return rounds * threads / (tasks * count)

    counts = range(1, max(1, min(keys // LEAST, 2 * threads)) + 1)
    return next((count for count in counts if idle(count) <= IDLE), min(counts, key=idle))


def _table(rows: list[Any], columns: int) -> NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(len(rows), columns)
