"""Assembled factors of the adapters in use, kept up to a limit of bytes.

What is resident of every adapter is what it stores: a MoS adapter's pools. Its factors are put
together when rows need them and stay while there is room; the ones used longest ago make way. A
batch gets all it needs, whatever the limit. Factors of one signature lie in one tensor a site, an
adapter in a slot, so that a batch of neighbouring slots is multiplied where it lies.

Shapes: S slots, G adapters asked for, r rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from shoal.models.adapters.adapter import Adapter
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

    sites: dict[str, Stacked] = field(default_factory=dict)  # [S, r, I], [S, r, O]
    slots: dict[Adapter, int] = field(default_factory=dict)
    stamps: dict[Adapter, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    slot_bytes: int = 0


class Bank:
    """Implements :class:`shoal.models.adapters.mixed.Stacks` for inference, in one dtype."""

    def __init__(self, dtype: torch.dtype, limit_bytes: int = BYTES) -> None:
        self.dtype, self.limit_bytes = dtype, limit_bytes
        self.counters = BankCounters()
        self._shelves: dict[object, _Shelf] = {}
        self._chosen: dict[tuple[Adapter, ...], slice | torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of assembled factors, free slots included."""
        return sum(
            pair.A_GrI.nbytes + pair.B_GrO.nbytes
            for shelf in self._shelves.values()
            for pair in shelf.sites.values()
        )

    @torch.inference_mode()
    def take(self, adapters: Sequence[Adapter]) -> None:
        """Have the factors of all these adapters assembled, as the next batch needs them."""
        self._chosen = {}
        needed = set(adapters)
        for adapter in needed:
            shelf = self._shelves.setdefault(adapter.signature, _Shelf())
            slot = shelf.slots.pop(adapter, None)
            if slot is not None and shelf.stamps[adapter] == adapter.stamp:
                self.counters.hits += 1
            else:
                self.counters.assembled += 1
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

    def stack(self, adapters: Sequence[Adapter], site: str) -> Stacked:
        """Factors of adapters that were taken, in this order."""
        shelf = self._shelves[adapters[0].signature]
        key = tuple(adapters)
        where = self._chosen.get(key)
        if where is None:
            slots = [shelf.slots[adapter] for adapter in adapters]
            together = slots == list(range(slots[0], slots[0] + len(slots)))
            where = slice(slots[0], slots[0] + len(slots)) if together else torch.tensor(slots)
            self._chosen[key] = where
        A_SrI, B_SrO = shelf.sites[site]
        return Stacked(A_SrI[where], B_SrO[where])

    def order(self, adapter: Adapter) -> int:
        """Where an adapter that was taken lies; batches in this order need no copies."""
        return self._shelves[adapter.signature].slots[adapter]

    def _slot(self, shelf: _Shelf, adapter: Adapter, needed: set[Adapter]) -> int:
        if not shelf.free and shelf.slots:
            held = sum(len(one.slots) * one.slot_bytes for one in self._shelves.values())
            oldest = next((one for one in shelf.slots if one not in needed), None)
            if oldest is not None and held + shelf.slot_bytes > self.limit_bytes:
                self.drop(oldest)
                self.counters.evicted += 1
        if not shelf.free:
            self._grow(shelf, adapter)
        return shelf.free.pop(0)

    def _grow(self, shelf: _Shelf, adapter: Adapter) -> None:
        """More slots: twice as many, as far as the limit allows."""
        size = torch.empty(0, dtype=self.dtype).element_size()
        shelf.slot_bytes = size * sum(
            adapter.rank(site.name) * (site.inputs + site.outputs)
            for site in adapter.sites.values()
        )
        old = len(shelf.slots)
        spare = (self.limit_bytes - self.nbytes) // shelf.slot_bytes
        more = max(1, min(max(old, 4), spare))
        for site in adapter.sites.values():
            r, before = adapter.rank(site.name), shelf.sites.get(site.name)
            A = torch.empty(old + more, r, site.inputs, dtype=self.dtype)
            B = torch.empty(old + more, r, site.outputs, dtype=self.dtype)
            if before is not None:
                A[:old], B[:old] = before
            shelf.sites[site.name] = Stacked(A, B)
        shelf.free = list(range(old, old + more))

    def _assemble(self, shelf: _Shelf, adapter: Adapter, slot: int) -> None:
        for site in adapter.sites:
            A_RI, B_OR, scale = adapter.materialise(site)
            A_SrI, B_SrO = shelf.sites[site]
            A_SrI[slot] = A_RI
            B_SrO[slot] = B_OR.T * scale
        shelf.stamps[adapter] = adapter.stamp
