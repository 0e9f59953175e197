"""Cutting long texts where they may be cut, and saying what of many texts fits.

Chunks of a text are consecutive: joined, they are the text, character by character.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from shoal.core.documents import Document
from shoal.core.errors import InputError

CountTokens = Callable[[str], int]

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*|\n(?=#{1,6}[^\S\n])")
_HEADING = re.compile(r"#{1,6}[^\S\n]")
_BOUNDARIES = (
    re.compile(r"\n"),
    re.compile(r"[.!?…][\"')\]”’]*\s+|[。！？]"),
    re.compile(r"\s+"),
)
_MARGIN = 0.95
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a text: its characters, where they begin, how many tokens they take."""

    text: str
    start: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A document of which only the first ``kept`` of ``tokens`` tokens fit (0: none)."""

    name: str
    kept: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Fit:
    """The documents that fit, in order; the last one may be shortened.

    tokens  what they take; ``total`` is what all documents would have taken
    cut     what is missing, in order
    """

    documents: tuple[Document, ...]
    tokens: int
    total: int
    limit: int
    cut: tuple[Cut, ...] = ()

    def __str__(self) -> str:
        """One sentence for the user."""
        if not self.cut:
            return f"The documents have {self.total:,} tokens and fit into {self.limit:,}."
        parts = [
            f"{cut.name} was cut to {cut.kept:,} of {cut.tokens:,}"
            if cut.kept
            else f"{cut.name} ({cut.tokens:,}) was left out"
            for cut in self.cut[:_NAMED]
        ]
        if (more := len(self.cut) - _NAMED) > 0:
            parts.append(f"and {more} more were left out")
        return (
            f"The documents have {self.total:,} tokens, but only {self.limit:,} fit: "
            f"{', '.join(parts)}."
        )


def chunk(text: str, count_tokens: CountTokens, limit_tokens: int) -> list[Chunk]:
    """Consecutive chunks of at most ``limit_tokens`` tokens each.

    Paragraphs are kept whole and chunks end before headings where that leaves them half full; a
    longer paragraph is cut between lines, else sentences, else words, else characters.
    ``count_tokens`` counts a text by itself, about once a paragraph and once a chunk. Raises
    :class:`InputError` where a single character does not fit.
    """
    return list(_chunks(text, count_tokens, limit_tokens))


def fit(documents: Sequence[Document], limit_tokens: int, count_tokens: CountTokens) -> Fit:
    """Take documents in order until ``limit_tokens`` are full; the one that overflows is cut."""
    sizes = [count_tokens(document.text) for document in documents]
    taken: list[Document] = []
    cuts: list[Cut] = []
    used = 0
    full = False
    for document, size in zip(documents, sizes, strict=True):
        if not full and used + size <= limit_tokens:
            taken.append(document)
            used += size
            continue
        kept = None if full else _beginning(document.text, count_tokens, limit_tokens - used)
        full = True
        if kept is not None:
            taken.append(replace(document, text=kept.text, words=len(kept.text.split())))
            used += kept.tokens
        cuts.append(Cut(document.name, kept.tokens if kept else 0, size))
    return Fit(tuple(taken), used, sum(sizes), limit_tokens, tuple(cuts))


def _beginning(text: str, count: CountTokens, limit: int) -> Chunk | None:
    try:
        return next(_chunks(text, count, limit), None)
    except InputError:  # not even one character fits
        return None


def _chunks(text: str, count: CountTokens, limit: int) -> Iterator[Chunk]:
    """Greedy: fill with pieces; when the next one does not fit, end at the best boundary."""
    held: list[Chunk] = []
    tokens = 0
    for piece in _pieces(text, count, limit):
        while held and tokens + piece.tokens > limit:
            end = _best_end(held, piece, limit)
            yield from _joined(held[:end], count, limit)
            held = held[end:]
            tokens = sum(part.tokens for part in held)
        held.append(piece)
        tokens += piece.tokens
    yield from _joined(held, count, limit)


def _best_end(held: Sequence[Chunk], following: Chunk, limit: int) -> int:
    """How many pieces to release: up to the last heading, if that is half a chunk or more."""
    if not _HEADING.match(following.text):
        for end in range(len(held) - 1, 0, -1):
            if _HEADING.match(held[end].text):
                if sum(part.tokens for part in held[:end]) >= limit / 2:
                    return end
                break
    return len(held)


def _joined(parts: Sequence[Chunk], count: CountTokens, limit: int) -> Iterator[Chunk]:
    """One chunk of these pieces; two where the joined text takes more tokens than its pieces."""
    if len(parts) <= 1:
        yield from parts
        return
    text = "".join(part.text for part in parts)
    tokens = count(text)
    if tokens <= limit:
        yield Chunk(text, parts[0].start, tokens)
        return
    yield from _joined(parts[: len(parts) // 2], count, limit)
    yield from _joined(parts[len(parts) // 2 :], count, limit)


def _pieces(text: str, count: CountTokens, limit: int) -> Iterator[Chunk]:
    """Paragraphs with the white space after them, long ones cut."""
    start = 0
    for end in [*(match.end() for match in _PARAGRAPH.finditer(text)), len(text)]:
        if end > start:
            piece = Chunk(text[start:end], start, count(text[start:end]))
            yield from [piece] if piece.tokens <= limit else _cut(piece, count, limit)
        start = end


def _cut(piece: Chunk, count: CountTokens, limit: int) -> Iterator[Chunk]:
    """Cut a piece that is too long, guessing lengths from its tokens per character."""
    text, start = piece.text, 0
    per_character = piece.tokens / len(text)
    while start < len(text):
        size = max(1, int(limit / per_character * _MARGIN))
        while True:
            end = _boundary(text, start, start + size)
            tokens = count(text[start:end])
            if tokens <= limit:
                break
            if end - start == 1:
                raise InputError(
                    f"A chunk of {limit} tokens cannot hold {text[start]!r}, which takes {tokens}."
                )
            size = max(1, min(end - start - 1, int((end - start) * limit / tokens * _MARGIN)))
        yield Chunk(text[start:end], piece.start + start, tokens)
        start = end


def _boundary(text: str, start: int, end: int) -> int:
    """The last good place to cut in the second half of a window, else its end."""
    if end >= len(text):
        return len(text)
    middle = start + (end - start) // 2
    for boundary in _BOUNDARIES:
        places = [match.end() for match in boundary.finditer(text, middle, end)]
        if places and places[-1] > start:
            return places[-1]
    return end
