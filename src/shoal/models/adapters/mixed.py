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

Run = tuple[Adapter | None, int]
"""An adapter, or none, and how many consecutive rows of a batch go through it."""


class Stacked(NamedTuple):
    """Factors of several adapters at one site; the scale is in B."""

    A_GrI: torch.Tensor
    B_GrO: torch.Tensor


class Stacks(Protocol):
    """Gives factors of adapters of one signature."""

    def stack(self, adapters: Sequence[Adapter], site: str) -> Stacked: ...


class Fresh:
    """Factors assembled at every use, with gradients."""

    def stack(self, adapters: Sequence[Adapter], site: str) -> Stacked:
        found = [adapter.materialise(site) for adapter in adapters]
        return Stacked(
            torch.stack([one.A_RI for one in found]),
            torch.stack([one.B_OR.T * one.scale for one in found]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Adapters that are computed together.

    rows    [G·M] rows of the batch, None where they are all rows in order; short ones are padded
    real    places among G·M that are no padding, None where all are
    into    [real] rows that are added to
    """

    adapters: tuple[Adapter, ...]
    rows: torch.Tensor | None
    real: torch.Tensor | None
    into: torch.Tensor | None


def grouped(runs: Iterable[Run]) -> list[Group]:
    """The rows of a batch by adapter, as few groups as sizes allow."""
    rows: dict[Adapter, list[int]] = {}
    total = 0
    for adapter, count in runs:
        if adapter is not None:
            rows.setdefault(adapter, []).extend(range(total, total + count))
        total += count
    alike: dict[tuple[object, int], list[Adapter]] = {}
    for adapter, own in rows.items():
        size = len(own) if len(rows) == 1 else 1 << (len(own) - 1).bit_length()
        alike.setdefault((adapter.signature, size), []).append(adapter)
    counts = {len(own) for own in rows.values()}
    if len(counts) == 1 and len(alike) == 1:  # nothing needs padding
        (adapters,) = alike.values()
        flat = [row for adapter in adapters for row in rows[adapter]]
        if flat == list(range(total)):
            return [Group(tuple(adapters), None, None, None)]
        index = torch.tensor(flat)
        return [Group(tuple(adapters), index, None, index)]
    groups = []
    for (_, size), adapters in alike.items():
        padded, real, into = list[int](), list[int](), list[int]()
        for place, adapter in enumerate(adapters):
            own = rows[adapter]
            padded += own + [own[0]] * (size - len(own))
            real += range(place * size, place * size + len(own))
            into += own
        whole = len(real) == len(padded)
        groups.append(
            Group(
                tuple(adapters),
                torch.tensor(padded),
                None if whole else torch.tensor(real),
                torch.tensor(into),
            )
        )
    return groups


class Mixed:
    """What a decoder calls for each product of a batch with these rows."""

    def __init__(self, host: DecoderHost, runs: Iterable[Run], stacks: Stacks) -> None:
        self.groups = grouped(runs)
        self._host, self._stacks = host, stacks

    def __call__(
        self, layer: int, matrix: str, x_TK: torch.Tensor, y_TN: torch.Tensor
    ) -> torch.Tensor:
        for group in self.groups:
            first_adapter = group.adapters[0]
            x_GMI: torch.Tensor | None = None
            for site, first, last in self._host.within(layer, matrix):
                if site not in first_adapter.sites:
                    continue
                A_GrI, B_GrO = self._stacks.stack(group.adapters, site)
                if x_GMI is None:
                    x = x_TK if group.rows is None else x_TK.index_select(0, group.rows)
                    x_GMI = x.to(A_GrI.dtype).view(len(group.adapters), -1, x.shape[-1])
                d = torch.bmm(torch.bmm(x_GMI, A_GrI.transpose(1, 2)), B_GrO)
                d = d.view(-1, last - first).to(y_TN.dtype)
                if group.real is not None:
                    d = d.index_select(0, group.real)
                part = y_TN[:, first:last]
                if group.into is None:
                    part += d
                else:
                    part.index_add_(0, group.into, d)
        return y_TN


def mixed(decoder: Decoder, runs: Iterable[Run], stacks: Stacks | None = None) -> Decoder:
    """A decoder over the same weights for one batch with these rows, differentiable by default.

    Raises :class:`ModelError` for an adapter that does not fit the decoder.
    """
    runs = list(runs)
    for adapter in dict.fromkeys(adapter for adapter, _ in runs if adapter is not None):
        adapter.fits(decoder)
    return decoder.adapted(Mixed(DecoderHost(decoder), runs, stacks or Fresh()))
