"""Material: what the members of a team read, whole or in parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from shoal.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Material:
    """A text, and the parts it falls into for members that read one part each.

    Without parts the whole text is the only part.
    """

    text: str = ""
    parts: tuple[str, ...] = ()

    @property
    def pieces(self) -> tuple[str, ...]:
        """The parts, at least one."""
        return self.parts or (self.text,)


def as_material(material: Material | str) -> Material:
    """A plain text is material without parts."""
    return Material(material) if isinstance(material, str) else material


_CUTS = tuple(map(re.compile, (r"\n\s*\n", r"\n", r"(?<=[.!?])\s+", r"\s+")))
"""Between paragraphs, lines, sentences, words."""


def split(text: str, size: int, count: Callable[[str], int]) -> tuple[str, ...]:
    """Cut a text into parts of at most ``size`` tokens, as ``count`` counts them.

    Cuts between paragraphs where it can, else between lines, sentences, words, and at last
    within a word. Only white space at the cuts is lost. Parts are filled in order.
    """
    if size < 1:
        raise InputError(f"A part of the material cannot hold {size} tokens: give 1 or more.")
    return tuple(_pack(text.strip(), size, count, 0))


def _pack(text: str, size: int, count: Callable[[str], int], level: int) -> list[str]:
    if not text:
        return []
    if count(text) <= size:
        return [text]
    if level == len(_CUTS):
        middle = max(1, len(text) // 2)
        if len(text) == 1:
            return [text]
        return [
            *_pack(text[:middle], size, count, level),
            *_pack(text[middle:], size, count, level),
        ]
    parts: list[str] = []
    start = 0
    ends = [(match.start(), match.end()) for match in _CUTS[level].finditer(text)]
    ends.append((len(text), len(text)))
    begin = 0
    while begin < len(ends):
        fits = _furthest(text, start, ends, begin, size, count)
        if fits is None:
            parts += _pack(text[start : ends[begin][0]], size, count, level + 1)
            fits = begin
        else:
            parts.append(text[start : ends[fits][0]])
        start, begin = ends[fits][1], fits + 1
    return [part for part in parts if part]


def _furthest(
    text: str,
    start: int,
    ends: list[tuple[int, int]],
    begin: int,
    size: int,
    count: Callable[[str], int],
) -> int | None:
    """The last of ``ends`` from ``begin`` on up to which the text from ``start`` fits."""
    low, high, fits = begin, len(ends) - 1, None
    while low <= high:
        middle = (low + high) // 2
        if count(text[start : ends[middle][0]]) <= size:
            fits, low = middle, middle + 1
        else:
            high = middle - 1
    return fits
