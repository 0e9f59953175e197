"""Assembled factors of the adapters in use, kept up to a limit of bytes.

What is resident of every adapter is what it stores: a MoS adapter's pools. Its factors are put
together when rows need them and stay while there is room; those of the same sizes that were used
longest ago make way. A batch gets all it needs, whatever the limit. Factors of one signature lie in
one tensor a matrix, an adapter in a slot, so that a batch of neighbouring slots is multiplied where
it lies; others are copied together once, for as long as the same adapters are in use. Factors are
fp32 also where the model is bf16: batched products of bf16 matrices this small take three times as
long on CPUs.

Shapes: S slots, G adapters asked for, r rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.hosts import DecoderHost
from shoal.models.adapters.mixed import Stacked

BYTES = 256 << 20
"""Assembled factors that are kept, by default."""


@dataclass(slots=True)
class BankCounters:
    """Adapters found assembled, assembled, and dropped to make room."""

    hits: int = 0
    assembled: int = 0
    evicted: int = 0


@dataclass(slots=True, eq=False)
class _Shelf:
    """Slots of one signature; ``slots`` are by adapter, in the order of use."""

    sites: dict[tuple[str, ...], Stacked] = field(default_factory=dict)  # by matrix, [S, …]
    slots: dict[Adapter, int] = field(default_factory=dict)
    stamps: dict[Adapter, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    slot_bytes: int = 0


class Bank:
    """Implements :class:`shoal.models.adapters.mixed.Stacks` for inference."""

    keeps = True

    def __init__(self, host: DecoderHost, limit_bytes: int = BYTES) -> None:
        self._host, self.limit_bytes = host, limit_bytes
        self.counters = BankCounters()
        self._shelves: dict[object, _Shelf] = {}
        self._needed: frozenset[Adapter] = frozenset()
        self._copies: dict[tuple[tuple[Adapter, ...], tuple[str, ...]], Stacked] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of assembled factors, free slots and copies included."""
        kept = [one for shelf in self._shelves.values() for one in shelf.sites.values()]
        return sum(
            tensor.nbytes for A, Bs in (*kept, *self._copies.values()) for tensor in (A, *Bs)
        )

    @torch.inference_mode()
    def take(self, adapters: Sequence[Adapter]) -> None:
        """Have the factors of all these adapters assembled, as the next batch needs them."""
        needed = frozenset(adapters)
        if needed != self._needed:
            self._needed, self._copies = needed, {}
        for adapter in dict.fromkeys(adapters):
            shelf = self._shelves.setdefault(adapter.signature, _Shelf())
            slot = shelf.slots.pop(adapter, None)
            if slot is not None and shelf.stamps[adapter] == adapter.stamp:
                self.counters.hits += 1
            else:
                self.counters.assembled += 1
                self._copies = {}
                if slot is None:
                    slot = self._slot(shelf, adapter, needed)
                self._assemble(shelf, adapter, slot)
            shelf.slots[adapter] = slot  # the youngest is last

    def drop(self, adapter: Adapter) -> None:
        """Forget an adapter's factors."""
        shelf = self._shelves.get(adapter.signature)
        if shelf is not None and adapter in shelf.slots:
            shelf.free.append(shelf.slots.pop(adapter))
            del shelf.stamps[adapter]

    def stack(self, adapters: Sequence[Adapter], sites: Sequence[str]) -> Stacked:
        """Factors of adapters that were taken, in this order."""
        shelf = self._shelves[adapters[0].signature]
        first, last = shelf.slots[adapters[0]], shelf.slots[adapters[-1]]
        where = tuple(sites)
        A_SRI, Bs_SrO = shelf.sites[where]
        if last - first == len(adapters) - 1:  # they come in the order of their slots
            near = slice(first, last + 1)
            return Stacked(A_SRI[near], tuple(B[near] for B in Bs_SrO))
        key = tuple(adapters), where
        if key not in self._copies:
            slots = torch.tensor([shelf.slots[adapter] for adapter in adapters])
            self._copies[key] = Stacked(A_SRI[slots], tuple(B[slots] for B in Bs_SrO))
        return self._copies[key]

    def order(self, adapter: Adapter) -> int:
        """Where an adapter that was taken lies; :meth:`stack` is asked in this order."""
        return self._shelves[adapter.signature].slots[adapter]

    def _slot(self, shelf: _Shelf, adapter: Adapter, needed: frozenset[Adapter]) -> int:
        if not shelf.free and shelf.slots:
            held = sum(len(one.slots) * one.slot_bytes for one in self._shelves.values())
            oldest = next((one for one in shelf.slots if one not in needed), None)
            if oldest is not None and held + shelf.slot_bytes > self.limit_bytes:
                self.drop(oldest)
                self.counters.evicted += 1
        if not shelf.free:
            alike = [one for one in needed if one.signature == adapter.signature]
            self._grow(shelf, adapter, sum(one not in shelf.slots for one in alike))
        return shelf.free.pop(0)

    def _grow(self, shelf: _Shelf, adapter: Adapter, missing: int) -> None:
        """More slots: as many as are missing, and up to twice as many as the limit allows."""
        shelf.slot_bytes = 4 * sum(
            adapter.rank(site.name) * (site.inputs + site.outputs)
            for site in adapter.sites.values()
        )
        old = len(shelf.slots)
        spare = (self.limit_bytes - self.nbytes) // shelf.slot_bytes
        more = max(missing, min(max(old, 4), spare))
        for names in self._host.matrices(adapter.sites):
            ranks = [adapter.rank(name) for name in names]
            outputs = [adapter.sites[name].outputs for name in names]
            A = torch.empty(old + more, sum(ranks), adapter.sites[names[0]].inputs)
            Bs = tuple(
                torch.empty(old + more, r, out) for r, out in zip(ranks, outputs, strict=True)
            )
            before = shelf.sites.get(names)
            if before is not None:
                A[:old] = before.A_GRI
                for B, known in zip(Bs, before.B_GrO, strict=True):
                    B[:old] = known
            shelf.sites[names] = Stacked(A, Bs)
        shelf.free = list(range(old, old + more))

    def _assemble(self, shelf: _Shelf, adapter: Adapter, slot: int) -> None:
        for names, (A_SRI, Bs_SrO) in shelf.sites.items():
            first = 0
            for name, B_SrO in zip(names, Bs_SrO, strict=True):
                A_RI, B_OR, scale = adapter.materialise(name)
                A_SRI[slot, first : first + len(A_RI)] = A_RI
                B_SrO[slot] = B_OR.T.float() * scale
                first += len(A_RI)
        shelf.stamps[adapter] = adapter.stamp
