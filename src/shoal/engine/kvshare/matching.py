"""A prompt in pieces: an exact beginning, runs that are found elsewhere, and what is new.

The longest exact prefix comes first (nothing approximate about it), then runs of chunks that are
stored for exactly these tokens; everything else is computed. Only equal tokens lend their cache:
text that merely means the same is new text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from shoal.engine.generation import Piece
from shoal.engine.kvshare.chunks import Chunk
from shoal.engine.kvshare.store import Entry

SHORTEST_RUN = 32
"""Tokens below which a run is computed: all that follows would be approximate for little."""


@dataclass(frozen=True, slots=True)
class Hit:
    """Tokens ``start .. end`` of a prompt are ``entry``'s from its ``offset``-th on."""

    start: int
    end: int
    entry: Entry
    offset: int = 0

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Match:
    """What a prompt finds: its exact beginning, hits behind it, and how many chunks missed."""

    exact: int
    hits: tuple[Hit, ...] = ()
    missed: int = 0

    @property
    def moved(self) -> int:
        """Tokens that are moved here."""
        return sum(map(len, self.hits))


Find = Callable[[Chunk], Entry | None]


def match(tokens: Sequence[int], cut: Sequence[Chunk], exact: int, find: Find) -> Match:
    """Look for every chunk that the exact beginning does not cover.

    The last token is always computed, as its state chooses the first token of the answer.
    """
    last = len(tokens) - 1
    hits: list[Hit] = []
    missed = 0
    for chunk in cut:
        start, end = max(chunk.start, exact), min(chunk.end, last)
        if start >= end:
            continue
        entry = find(chunk)
        if entry is None:
            missed += 1
        else:
            hits.append(Hit(start, end, entry, start - chunk.start))
    kept = tuple(hit for run in _runs(hits) if sum(map(len, run)) >= SHORTEST_RUN for hit in run)
    return Match(exact, kept, missed)


def _runs(hits: Sequence[Hit]) -> Iterator[list[Hit]]:
    """Hits that stand side by side."""
    numbers: list[int] = []
    for index, hit in enumerate(hits):
        joins = index > 0 and hits[index - 1].end == hit.start
        numbers.append(numbers[-1] if joins else index)
    for _, run in groupby(zip(numbers, hits, strict=True), key=lambda pair: pair[0]):
        yield [hit for _, hit in run]


def pieces(tokens: Sequence[int], hits: Sequence[Hit]) -> tuple[Piece, ...]:
    """The prompt as the scheduler places it; nothing where all of it is exact."""
    found: list[Piece] = []
    done = 0
    for hit in hits:
        if hit.start > done:
            found.append(Piece(tuple(tokens[done : hit.start])))
        segment = hit.entry.segment.slice(hit.offset, hit.offset + len(hit))
        found.append(Piece(segment.tokens, segment))
        done = hit.end
    if found:
        found.append(Piece(tuple(tokens[done:])))
    return tuple(found)
