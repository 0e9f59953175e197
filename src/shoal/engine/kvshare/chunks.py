"""Content-defined chunks of token ids: the same text is cut alike wherever it stands.

A chunk ends where a hash of its last 16 tokens is small, at a blank line however short that makes
it, and around the special tokens of a chat template. Nothing before a chunk decides where it ends,
so an edit changes the chunks around it and no others: as soon as two texts have one boundary in
common, equal text behind it is cut alike. The idea is LBFS's (Muthitacharoen et al., SOSP 2001)
with the gear hash of FastCDC (Xia et al., USENIX ATC 2016); KVShare (arXiv 2503.16525) asks for
"adaptive-length token chunking" without saying which.

Shapes: T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shoal.models.tokenizer import Tokenizer

SHORTEST = 16
"""Tokens of a chunk that a hash ends, at least; blank lines and special tokens end shorter ones."""
MEAN = 64
LONGEST = 256
_WINDOW = 16  # tokens the hash sees: no more than a chunk has, so it never looks across its start
_CUTS = (1 << _WINDOW) // (MEAN - SHORTEST)  # hash values that end a chunk


@dataclass(frozen=True, slots=True)
class Marks:
    """Where a vocabulary forces boundaries.

    special    ids that are chunks of their own
    blank      ids whose text holds a blank line
    opens, closes  ids whose text begins, ends with a line break
    """

    special: frozenset[int] = frozenset()
    blank: frozenset[int] = frozenset()
    opens: frozenset[int] = frozenset()
    closes: frozenset[int] = frozenset()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Marks:
        """The marks of a model's vocabulary."""
        return _marks(tokenizer)


@lru_cache(maxsize=8)
def _marks(tokenizer: Tokenizer) -> Marks:
    special, blank, opens, closes = set(), set(), set(), set()
    for token in range(tokenizer.vocab_size):
        if tokenizer.is_special(token):
            special.add(token)
            continue
        text = tokenizer.token_bytes(token).replace(b"\r", b"")
        if b"\n\n" in text:
            blank.add(token)
        if text.startswith(b"\n"):
            opens.add(token)
        if text.endswith(b"\n"):
            closes.add(token)
    return Marks(frozenset(special), frozenset(blank), frozenset(opens), frozenset(closes))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``start .. end`` of a text; ``digest`` names their content."""

    start: int
    end: int
    digest: bytes

    def __len__(self) -> int:
        return self.end - self.start


def chunks(tokens: Sequence[int], marks: Marks = Marks()) -> list[Chunk]:
    """The chunks of a text, in order; joined they are the text."""
    ids_T = np.asarray(tokens, dtype=np.int64)
    return [
        Chunk(start, end, digest(ids_T[start:end])) for start, end in _bounds(tokens, ids_T, marks)
    ]


def digest(tokens: ArrayLike) -> bytes:
    """128 bits of BLAKE2b: nobody can make another text with the same ones."""
    content = np.asarray(tokens, dtype="<i4").tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def _bounds(tokens: Sequence[int], ids_T: NDArray[np.int64], marks: Marks) -> list[tuple[int, int]]:
    small_T, blank_T = _small_hashes(ids_T), _blank_lines(tokens, marks)
    special_T = np.isin(ids_T, list(marks.special))
    found: list[tuple[int, int]] = []
    start = 0
    while start < len(tokens):
        end = start + 1 if special_T[start] else _end(start, small_T, blank_T, special_T)
        found.append((start, end))
        start = end
    return found


def _end(
    start: int,
    small_T: NDArray[np.bool_],
    blank_T: NDArray[np.bool_],
    special_T: NDArray[np.bool_],
) -> int:
    """Where a chunk of ordinary tokens ends."""
    limit = min(start + LONGEST, len(small_T))
    if (specials := np.flatnonzero(special_T[start:limit])).size:
        limit = start + int(specials[0])
    if (blanks := np.flatnonzero(blank_T[start:limit])).size:
        limit = start + int(blanks[0]) + 1
    cuts = np.flatnonzero(small_T[start + SHORTEST - 1 : limit])
    return start + SHORTEST + int(cuts[0]) if cuts.size else limit


def _small_hashes(ids_T: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the gear hash of the last tokens ends a chunk: sum over j of gear[t - j] 2^j."""
    gear_T = _mixed(ids_T.astype(np.uint64)) & np.uint64((1 << _WINDOW) - 1)
    hash_T = np.zeros(len(ids_T), dtype=np.uint64)
    for back in range(min(_WINDOW, len(ids_T))):
        hash_T[back:] += gear_T[: len(ids_T) - back] << np.uint64(back)
    small_T: NDArray[np.bool_] = (hash_T & np.uint64((1 << _WINDOW) - 1)) < _CUTS
    return small_T


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64: ids that differ by one get unrelated bits."""
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _blank_lines(tokens: Sequence[int], marks: Marks) -> NDArray[np.bool_]:
    """Tokens that end a blank line."""
    blank_T = np.zeros(len(tokens), dtype=bool)
    for index, token in enumerate(tokens):
        blank_T[index] = token in marks.blank or (
            index > 0 and token in marks.opens and tokens[index - 1] in marks.closes
        )
    return blank_T
