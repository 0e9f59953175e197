"""Many adapters in one batch: rows go through their own adapter, or through none, in one product.

Rows of adapters that have equally many of them (up to the next power of two) and factors of the
same sizes are computed together, as one batched product: the number of operations does not grow
with the number of adapters. Factors come stacked from a :class:`Stacks`: freshly assembled and
differentiable to train several adapters at once, or kept (:mod:`shoal.models.adapters.bank`).

Shapes: T rows of the batch, G adapters of a group, M rows of each, r rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.hosts import DecoderHost
from shoal.models.decoder import Decoder

WIDE = 16
"""Rows of an adapter from which on factors in the model's own number format beat fp32."""

Run = tuple[Adapter | None, int]
"""An adapter, or none, and how many consecutive rows of a batch go through it."""


class Stacked(NamedTuple):
    """Factors of several adapters at the sites of one matrix, which have the same inputs.

    A_GRI    R is the sum of the sites' ranks
    B_GrO    of each site, with the scale in it
    """

    A_GRI: torch.Tensor
    B_GrO: tuple[torch.Tensor, ...]


class Stacks(Protocol):
    """Gives factors of adapters of one signature, soonest in the order it likes best.

    keeps  whether factors that were given may be used again for the same batch of rows
    """

    keeps: bool

    def order(self, adapter: Adapter) -> int: ...

    def stack(self, adapters: Sequence[Adapter], sites: Sequence[str]) -> Stacked: ...


class Fresh:
    """Factors assembled at every use, with gradients."""

    keeps = False

    def order(self, adapter: Adapter) -> int:
        return 0

    def stack(self, adapters: Sequence[Adapter], sites: Sequence[str]) -> Stacked:
        found = [[adapter.materialise(site) for adapter in adapters] for site in sites]
        return Stacked(
            torch.cat([torch.stack([one.A_RI for one in site]) for site in found], 1),
            tuple(torch.stack([one.B_OR.T * one.scale for one in site]) for site in found),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Adapters that are computed together.

    size    M
    rows    [G·M] rows of the batch, the last of each adapter repeated where it has fewer
    real    places among G·M that are no repetition, None where all are
    into    [real] rows that are added to
    """

    adapters: tuple[Adapter, ...]
    size: int
    rows: slice | torch.Tensor
    real: torch.Tensor | None
    into: slice | torch.Tensor

    @property
    def neighbours(self) -> bool:
        """Whether its rows lie side by side, without repetitions."""
        return self.real is None and isinstance(self.into, slice)


class _Part(NamedTuple):
    """What a group adds to one matrix: of each site its rows of A, its B, its columns of y."""

    group: Group
    A_GIR: torch.Tensor
    updates: list[tuple[slice, torch.Tensor, int, int]]


def grouped(runs: Iterable[Run], stacks: Stacks) -> list[Group]:
    """The rows of a batch by adapter, as few groups as sizes allow."""
    rows: dict[Adapter, list[int]] = {}
    total = 0
    for adapter, count in runs:
        if adapter is not None:
            rows.setdefault(adapter, []).extend(range(total, total + count))
        total += count
    alike: dict[tuple[object, int], list[Adapter]] = {}
    for adapter, own in sorted(rows.items(), key=lambda item: stacks.order(item[0])):
        size = len(own) if len(rows) == 1 else 1 << (len(own) - 1).bit_length()
        alike.setdefault((adapter.signature, size), []).append(adapter)
    groups = []
    for (_, size), adapters in alike.items():
        padded, real, into = list[int](), list[int](), list[int]()
        for place, adapter in enumerate(adapters):
            own = rows[adapter]
            padded += own + [own[-1]] * (size - len(own))
            real += range(place * size, place * size + len(own))
            into += own
        kept = None if len(real) == len(padded) else torch.tensor(real)
        groups.append(Group(tuple(adapters), size, _rows(padded), kept, _rows(into)))
    return groups


def _rows(rows: list[int]) -> slice | torch.Tensor:
    """Rows as a slice, which copies nothing, where they are neighbours."""
    first, last = rows[0], rows[-1] + 1
    return slice(first, last) if rows == list(range(first, last)) else torch.tensor(rows)


class Mixed:
    """What a decoder calls for each product of a batch with these rows."""

    def __init__(self, host: DecoderHost, runs: Iterable[Run], stacks: Stacks) -> None:
        self.groups = grouped(runs, stacks)
        self._host, self._stacks = host, stacks
        self._kept: dict[tuple[int, str], list[_Part]] = {}

    def _parts(self, layer: int, matrix: str, dtype: torch.dtype) -> list[_Part]:
        """What the groups add to a matrix whose product is of this type."""
        kept = self._kept.get((layer, matrix))
        if kept is not None:
            return kept
        parts = []
        for group in self.groups:
            sites = self._host.inside(group.adapters[0].sites, layer, matrix)
            if not sites:
                continue
            A_GRI, Bs_GrO = self._stacks.stack(group.adapters, tuple(name for name, *_ in sites))
            if group.size >= WIDE:
                A_GRI, Bs_GrO = A_GRI.to(dtype), tuple(B_GrO.to(dtype) for B_GrO in Bs_GrO)
            updates, done = [], 0
            for (_, first, last), B_GrO in zip(sites, Bs_GrO, strict=True):
                updates.append((slice(done, done + B_GrO.shape[1]), B_GrO, first, last))
                done += B_GrO.shape[1]
            parts.append(_Part(group, A_GRI.transpose(1, 2), updates))
        if self._stacks.keeps:
            self._kept[layer, matrix] = parts
        return parts

    def __call__(
        self, layer: int, matrix: str, x_TK: torch.Tensor, y_TN: torch.Tensor
    ) -> torch.Tensor:
        for group, A_GIR, updates in self._parts(layer, matrix, y_TN.dtype):
            x_GMI = x_TK[group.rows].to(A_GIR.dtype).view(len(group.adapters), -1, x_TK.shape[-1])
            h_GMR = torch.bmm(x_GMI, A_GIR)
            for own, B_GrO, first, last in updates:
                if group.neighbours and y_TN.dtype == B_GrO.dtype == torch.bfloat16:
                    part_GMO = y_TN[group.into, first:last].unflatten(0, (len(x_GMI), -1))  # type: ignore[no-untyped-call]
                    part_GMO.baddbmm_(h_GMR[..., own], B_GrO)
                    continue
                delta = torch.bmm(h_GMR[..., own], B_GrO).view(-1, last - first)
                if group.real is not None:
                    delta = delta[group.real]
                if isinstance(group.into, slice):
                    y_TN[group.into, first:last] += delta
                else:
                    y_TN[:, first:last].index_add_(0, group.into, delta.to(y_TN.dtype))
        return y_TN


def mixed(decoder: Decoder, runs: Iterable[Run], stacks: Stacks | None = None) -> Decoder:
    """A decoder over the same weights for one batch with these rows, differentiable by default.

    Raises :class:`ModelError` for an adapter that does not fit the decoder.
    """
    runs = list(runs)
    for adapter in dict.fromkeys(adapter for adapter, _ in runs if adapter is not None):
        adapter.fits(decoder)
    return decoder.adapted(Mixed(DecoderHost(decoder), runs, stacks or Fresh()))
