"""What a caller has of an operation: arrays that are checked, a tag, scratch memory, a handle.

Until an operation is committed its input stays as it was: in place, the result comes in scratch
memory and is copied over the input at the end, so there is nothing to restore.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.collectives.engine import Engine
from shoal.collectives.errors import Aborted, TagInUse, TooFewPeers
from shoal.collectives.kernels import FLOATS, Op, division, reduction
from shoal.collectives.quantize import QUANTIZATIONS, Quantization
from shoal.collectives.ring import Cells, Lane, Plan, cut, lanes_for
from shoal.collectives.state import buffer_of
from shoal.collectives.traffic import Flight


@dataclass(frozen=True, slots=True)
class ReduceInfo:
    """A committed operation: peers in it, bytes this peer sent and received."""

    world: int
    tx: int
    rx: int


@dataclass(slots=True)
class _Finish:
    """Where a result goes once it is committed; scratch memory is used again."""

    target: NDArray[Any]
    scratch: NDArray[Any] | None
    key: tuple[str, int]
    released: bool = False


class Handle:
    """An operation in flight. Abandoning it is no error; its tag stays taken until it ends."""

    def __init__(
        self, owner: Reducer, tag: int, work: Flight | ReduceInfo, finish: _Finish | None
    ) -> None:
        self._owner, self.tag, self._work, self._finish = owner, tag, work, finish

    def done(self) -> bool:
        """Whether :meth:`wait` would return at once."""
        return isinstance(self._work, ReduceInfo) or self._work.future.done()

    def wait(self, timeout: float | None = None) -> ReduceInfo:
        """The committed result, which is then in the output.

        Raises :class:`Aborted` once a new ring stands, :class:`TooFewPeers` where nobody else is
        left, ``TimeoutError`` while it is still in flight.
        """
        if isinstance(self._work, ReduceInfo):
            return self._work
        flight, finish = self._work, self._finish
        assert finish is not None
        try:
            flight.future.result(timeout)
        except TimeoutError:
            raise
        except Aborted:
            self._owner.release(self.tag, finish)
            self._owner.relink(flight.epoch)
            raise
        except BaseException:
            self._owner.release(self.tag, finish)
            raise
        if finish.scratch is not None:
            np.copyto(finish.target, finish.scratch)
        self._owner.release(self.tag, finish)
        tx = sum(lane.tx_bytes for lane in flight.lanes)
        self._work = ReduceInfo(flight.world, tx, sum(lane.rx_bytes for lane in flight.lanes))
        return self._work


class Reducer:
    """Begins operations for one peer; any thread may call it."""

    def __init__(self, pool: int, relink: Callable[[int], None]) -> None:
        self.relink = relink
        self._pool = pool
        self._tags: set[int] = set()
        self._spare: dict[tuple[str, int], list[NDArray[Any]]] = {}
        self._cells = Cells()
        self._lock = threading.Lock()

    def begin(
        self, engine: Engine, x: Any, out: Any, kind: Op, tag: int, quantization: Quantization
    ) -> Handle:
        """Check the arrays, take the tag, ask the master; see ``Communicator.all_reduce``."""
        source = buffer_of(x, writable=out is None)
        target = source if out is None else buffer_of(out, writable=True)
        if (target.dtype, target.flat.size) != (source.dtype, source.flat.size):
            raise ValueError(
                f"The output has {target.flat.size} elements of {target.dtype}, "
                f"the input {source.flat.size} of {source.dtype}."
            )
        if quantization not in QUANTIZATIONS:
            raise ValueError(f"{quantization!r} is none of {', '.join(QUANTIZATIONS)}.")
        if quantization != "none" and source.dtype not in FLOATS:
            raise ValueError(f"{source.dtype} cannot be quantised, only {', '.join(FLOATS)}.")
        if out is not None and source.flat.size and np.shares_memory(source.flat, target.flat):
            raise ValueError("Input and output overlap: leave the output out to work in place.")
        if engine.linked and len(engine.ring) < 2:
            raise TooFewPeers(f"Tag {tag} needs a second peer, and this one is alone.")
        if not source.flat.size:
            return Handle(self, tag, ReduceInfo(len(engine.ring), 0, 0), None)
        finish = self._take(tag, source.flat, target.flat, in_place=out is None)
        result = target.flat if finish.scratch is None else finish.scratch

        def lanes_of(seq: int, rank: int, world: int) -> list[Lane]:
            divide = division(source.dtype, world) if kind is Op.AVG else None
            reduce = reduction(kind, source.dtype)
            plan = Plan(rank, world, reduce, divide, quantization, self._cells)
            stripes = cut(source.flat.size, lanes_for(source.flat.nbytes, self._pool))
            return [Lane(plan, source.flat[a:b], result[a:b], seq=seq) for a, b in stripes]

        count = source.flat.size
        signature = f"{kind} of {count} {source.dtype}, quantization {quantization}"
        flight = Flight(tag, signature, lanes_of, Future())
        engine.launch(flight)
        return Handle(self, tag, flight, finish)

    def _take(
        self, tag: int, source: NDArray[Any], target: NDArray[Any], *, in_place: bool
    ) -> _Finish:
        """A tag, and scratch memory where the input must stay until the commit."""
        key = (str(source.dtype), source.size)
        with self._lock:
            if tag in self._tags:
                raise TagInUse(f"Tag {tag} names an operation in flight: wait for it first.")
            self._tags.add(tag)
            if not in_place:
                return _Finish(target, None, key)
            spare = self._spare.get(key)
            return _Finish(target, spare.pop() if spare else np.empty_like(source), key)

    def release(self, tag: int, finish: _Finish) -> None:
        """A tag and its scratch memory are free again."""
        with self._lock:
            if finish.released:
                return
            finish.released = True
            self._tags.discard(tag)
            if finish.scratch is not None:
                self._spare.setdefault(finish.key, []).append(finish.scratch)


def reduce_many(
    begin: Callable[[int, Any], Handle], arrays: Sequence[Any], max_in_flight: int
) -> list[ReduceInfo]:
    """Reduce arrays, several at once, again after a leaver; ``begin(i, array)`` starts one.

    After the first failure all in flight are waited for, and those that committed stay. Raises
    :class:`TooFewPeers` where only this peer is left, naming the arrays that are not reduced.
    """
    done: dict[int, ReduceInfo] = {}
    left = list(range(len(arrays)))
    flying: dict[int, Handle] = {}
    broken = False
    while left or flying:
        while left and len(flying) < max_in_flight and not broken:
            i = left.pop(0)
            try:
                flying[i] = begin(i, arrays[i])
            except TooFewPeers:
                left.append(i)
                for j, handle in flying.items():
                    try:
                        done[j] = handle.wait()
                    except (Aborted, TooFewPeers):
                        left.append(j)
                names = ", ".join(map(str, sorted(left)))
                raise TooFewPeers(
                    f"Only one peer is left: arrays {names} are not reduced."
                ) from None
        i, handle = next(iter(flying.items()))
        try:
            done[i] = handle.wait()
        except (Aborted, TooFewPeers):
            left.append(i)
            broken = True
        del flying[i]
        if broken and not flying:
            left.sort()
            broken = False
    return [done[i] for i in range(len(arrays))]
