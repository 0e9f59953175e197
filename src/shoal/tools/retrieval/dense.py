"""Vectors of tools in fp16, and their signs in bits to find the near ones quickly.

Shapes: S slots, D numbers of a vector, W words of 64 signs, N candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import ConfigError

Floats = NDArray[np.float32]


class Dense:
    """Unit vectors by slot. Not for several threads while it changes."""

    def __init__(self, dimensions: int) -> None:
        if dimensions % 64:
            raise ConfigError(f"Vectors have a multiple of 64 numbers here, not {dimensions}.")
        self.dimensions = dimensions
        self._vectors_SD = np.zeros((0, dimensions), np.float16)
        self._signs_WS = np.zeros((dimensions // 64, 0), np.uint64)
        self._used_S = np.zeros(0, bool)

    def add_all(self, slots: Sequence[int], vectors_ND: Floats) -> None:
        """Put vectors into slots."""
        if not len(slots):
            return
        self._reserve(max(slots) + 1)
        rows = np.asarray(slots)
        self._vectors_SD[rows] = vectors_ND
        self._signs_WS[:, rows] = _signs(vectors_ND).T
        self._used_S[rows] = True

    def remove(self, slot: int) -> None:
        """Take a vector out."""
        self._used_S[slot] = False

    def nearest(self, query_D: Floats, count: int, among: int = 4) -> NDArray[np.intp]:
        """Slots of about the ``count`` largest cosines, best first.

        Looks closely at ``among`` times as many, those with the most signs in common, and at all
        that have as many in common as the last of them.
        """
        used = int(self._used_S.sum())
        if not used or count <= 0:
            return np.zeros(0, np.intp)
        differ_S = np.zeros(len(self._used_S), np.int16)
        for signs_S, own in zip(self._signs_WS, _signs(query_D[None])[0], strict=True):
            differ_S += np.bitwise_count(signs_S ^ own)
        differ_S[~self._used_S] = self.dimensions + 1
        within = np.cumsum(np.bincount(differ_S))  # how many differ in at most so many signs
        near = np.flatnonzero(differ_S <= np.searchsorted(within, min(used, count * among)))
        cosine = self.cosines(query_D, near)
        return near[np.argsort(-cosine, kind="stable")[:count]]

    def cosines(self, query_D: Floats, slots_N: NDArray[np.intp]) -> Floats:
        """Cosines [N] of a query and the vectors in slots."""
        out: Floats = self._vectors_SD[slots_N].astype(np.float32) @ query_D
        return out

    def vectors(self, slots: Sequence[int]) -> NDArray[np.float16]:
        """The vectors in slots."""
        return self._vectors_SD[np.asarray(slots, np.intp)]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self._vectors_SD.nbytes + self._signs_WS.nbytes + self._used_S.nbytes

    def _reserve(self, slots: int) -> None:
        have = len(self._used_S)
        if slots <= have:
            return
        more = max(slots, have * 5 // 4) - have
        self._vectors_SD = np.pad(self._vectors_SD, ((0, more), (0, 0)))
        self._signs_WS = np.pad(self._signs_WS, ((0, 0), (0, more)))
        self._used_S = np.pad(self._used_S, (0, more))


def _signs(vectors_ND: NDArray[np.floating]) -> NDArray[np.uint64]:
    bits = np.packbits(vectors_ND > 0, axis=1)
    return bits.view(np.uint64)
