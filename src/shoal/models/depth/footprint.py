"""Bytes that a decoder really holds: every storage once, however many names it has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from shoal.models.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of distinct memory.

    blocks  attention and MLP matrices, biases and norms of the blocks
    others  embedding, head and final norm
    added   of what adapters hold beside them
    """

    blocks: int
    others: int
    added: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.blocks + self.others + self.added


def distinct_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes behind these tensors; memory that several of them show counts once."""
    seen: set[tuple[int, int]] = set()
    for tensor in tensors:
        seen.add((tensor.data_ptr(), tensor.numel() * tensor.element_size()))
    return sum(size for _, size in seen)


def footprint(decoder: Decoder, added: Iterable[torch.Tensor] = ()) -> Footprint:
    """What one decoder's weights take, in their plain layout."""
    names = decoder.weights.items()
    return Footprint(
        distinct_bytes(t for name, t in names if name.startswith("layers.")),
        distinct_bytes(t for name, t in names if not name.startswith("layers.")),
        distinct_bytes(added),
    )
