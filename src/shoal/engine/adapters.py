"""The adapters of an engine: by name, each in the bytes it is stored in, mixed freely in a batch.

A request names an adapter, or none. Its rows go through that adapter and everybody else's through
theirs in the same forward pass. Cache that was computed through one adapter is never found through
another: the scope of a request in the prefix tree holds a key that every loading draws anew, so
that a client cannot guess it and a replaced adapter does not find its predecessor's cache.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoal.core.errors import EngineError, nearest
from shoal.engine.compute import compute
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.bank import BYTES, Bank
from shoal.models.adapters.hosts import DecoderHost
from shoal.models.adapters.mixed import Mixed
from shoal.models.adapters.shelf import names_in, open_adapter
from shoal.models.decoder import Decoder


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """One adapter that can be asked for; ``key`` marks the scope of what it computed."""

    name: str
    adapter: Adapter
    key: str = field(default_factory=lambda: secrets.token_hex(8))

    def scope(self, salt: str) -> str:
        """The salt of a request that goes through this adapter."""
        return f"{salt}/{self.key}"


class EngineAdapters:
    """Adapters over one decoder.

    switches  how often a step's rows went through other adapters than those of the step before
    """

    def __init__(self, decoder: Decoder, *, limit_bytes: int = BYTES) -> None:
        self._decoder = decoder
        self._host = DecoderHost(decoder)
        self._known: dict[str, Resident] = {}
        self._last: frozenset[Adapter] = frozenset()
        self.bank = Bank(self._host, limit_bytes)
        self.switches = 0
        self._before: tuple[int, list[tuple[Adapter | None, int]]] = (0, [])
        self._seen = decoder

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters that can be asked for, in the order they were added."""
        return tuple(self._known)

    @property
    def resident_bytes(self) -> int:
        """Bytes of what all adapters store; assembled factors are the bank's."""
        return sum(one.adapter.nbytes for one in self._known.values())

    def add(self, name: str, adapter: Adapter, *, any_base: bool = False) -> None:
        """Take an adapter under a name; one that had the name is replaced.

        One in the model's number format is served as it is, also while it learns; of any other a
        copy is kept. Raises :class:`ModelError` for another base, and :class:`EngineError` where
        the model looks through an adapter already.
        """
        if self._decoder.adapting is not None:
            raise EngineError("The model carries an adapter already: detach it first.")
        adapter.fits(self._decoder, any_base=any_base)
        dtype = self._decoder.dtype
        if any(tensor.dtype != dtype for tensor in adapter.tensors.values()):
            adapter = adapter.copy().to(dtype=dtype)
        self.remove(name, missing_ok=True)
        self._known[name] = Resident(name, adapter)

    def load(self, name: str, path: Path) -> None:
        """Take an adapter from its file; raises as :func:`open_adapter` and :meth:`add`."""
        self.add(name, open_adapter(path, self._decoder))

    def load_folder(self, folder: Path) -> None:
        """Take all adapters of a folder; raises as :func:`names_in` and :meth:`load`."""
        for name, path in names_in(folder).items():
            self.load(name, path)

    def remove(self, name: str, *, missing_ok: bool = False) -> None:
        """Forget an adapter; requests that go through it already are finished.

        Raises :class:`EngineError` for one there is not.
        """
        if name in self._known:
            gone = self._known.pop(name).adapter
            compute.call(lambda: self.bank.drop(gone))
        elif not missing_ok:
            raise self._unknown(name)

    def find(self, name: str) -> Resident:
        """An adapter by name; raises :class:`EngineError`, naming the nearest."""
        if name not in self._known:
            raise self._unknown(name)
        return self._known[name]

    def take(self, adapters: Iterable[Adapter | None]) -> None:
        """Have what a step needs assembled; on the compute thread."""
        asked = [adapter for adapter in adapters if adapter is not None]
        used = frozenset(asked)
        self.switches += used != self._last
        self._last = used
        if used:
            self.bank.take(asked)

    def order(self, adapter: Adapter | None) -> int:
        """Where rows of a step had best stand: those without an adapter first."""
        return -1 if adapter is None else self.bank.order(adapter)

    def through(self, runs: Sequence[tuple[Adapter | None, int]]) -> Decoder:
        """The decoder for a step with these rows, whose adapters were taken."""
        if all(adapter is None for adapter, _ in runs):
            return self._decoder
        now = (self.bank.counters.assembled, list(runs))
        if now != self._before:  # answers under way go on with the same rows, step after step
            self._before = now
            self._seen = self._decoder.adapted(Mixed(self._host, runs, self.bank))
        return self._seen

    def _unknown(self, name: str) -> EngineError:
        if not self._known:
            return EngineError(f"There is no adapter {name!r}: none are loaded here.")
        return EngineError(
            f"There is no adapter {name!r}.{nearest(name, self._known)} Loaded are "
            f"{', '.join(self._known)}."
        )
