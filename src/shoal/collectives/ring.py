"""A ring all-reduce as streams of blocks, without a socket: reduce-scatter, then all-gather.

PCCL (arXiv 2505.14065), "All-reduce". Of w chunks a peer of rank r sends chunk r, r-1, r-2, … and
receives chunk r-1, r-2, …, 2(w-1) each; the first w-1 it receives are reduced into its own, the
others replace them. What it sends at one place is what it received at the place before, so a
block goes on as soon as it is reduced. Results go to ``dst``; ``src`` is only read, so giving an
operation up needs no restoring.

Where the official code uses one connection an operation, here it is cut into *lanes*, one a
connection, each a small ring of its own over a part of the elements.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.collectives.errors import WireError
from shoal.collectives.kernels import Kernel
from shoal.collectives.quantize import META, Quantization, decode, encode, room

Array = NDArray[Any]
BLOCK = 1 << 20
"""Bytes of a block at most: what a core's second cache holds. Larger blocks cost less Python."""
SHARE = 8
"""A chunk has that many blocks, so that it moves on while it arrives, but none below 64 KiB."""
QUANTIZED_BLOCK = 64 << 10
"""Elements of a quantised block, which has a range of its own."""
HELD = 4
"""Blocks that wait in memory of their own until they are sent on; more wait in the output."""
LANE = 128 << 10
"""Bytes below which another lane does not pay."""


def cut(n: int, parts: int) -> list[tuple[int, int]]:
    """n elements in parts that differ by one at most, the first ones larger."""
    base, more = divmod(n, parts)
    ends = [base * i + min(i, more) for i in range(parts + 1)]
    return list(itertools.pairwise(ends))


def lanes_for(nbytes: int, pool: int) -> int:
    """How many connections an operation of this size is spread over."""
    return max(1, min(pool, nbytes // LANE))


class Cell:
    """Memory for one block, of which ``size`` bytes came in."""

    __slots__ = ("bytes", "memory", "size")

    def __init__(self) -> None:
        self.memory = np.empty(BLOCK + META.size, np.uint8)
        self.bytes: memoryview = self.memory.data
        self.size = 0

    def values(self, dtype: np.dtype[Any], count: int) -> Array:
        """The memory as elements."""
        return np.frombuffer(self.memory, dtype, count)


class Cells:
    """Cells that are free: kept from operation to operation, as new memory costs page faults."""

    def __init__(self, most: int = 64) -> None:
        self._free: list[Cell] = []
        self._most = most

    def take(self) -> Cell:
        """A free one, or a new one."""
        return self._free.pop() if self._free else Cell()

    def give(self, cell: Cell) -> None:
        """It is free again."""
        if len(self._free) < self._most:
            self._free.append(cell)


@dataclass(frozen=True, slots=True)
class Plan:
    """What all lanes of an operation share. ``divide`` is None unless the mean is wanted."""

    rank: int
    world: int
    reduce: Kernel
    divide: Callable[[Array], Any] | None = None
    quantization: Quantization = "none"
    cells: Cells = field(default_factory=Cells)


class Lane:
    """One stripe of an operation. Both directions move a block at a time, in the same order.

    ``sent`` and ``received`` count blocks; :attr:`done` when both have reached the end.
    """

    def __init__(self, plan: Plan, src: Array, dst: Array, *, seq: int = 0) -> None:
        self._plan, self._src, self._dst, self.seq = plan, src, dst, seq
        w, r = plan.world, plan.rank
        quantized = plan.quantization != "none"
        nbytes = min(BLOCK, max(64 << 10, src.nbytes // (w * SHARE)))
        size = QUANTIZED_BLOCK if quantized else nbytes // src.itemsize
        chunks = cut(src.size, w)
        blocks = [
            [(a, min(a + size, high)) for a in range(low, high, size)] for low, high in chunks
        ]
        self._recvs = [
            (place, a, b) for place in range(2 * w - 2) for a, b in blocks[(r - 1 - place) % w]
        ]
        last = (r - 1 - (2 * w - 3)) % w
        self._sends = [
            *((0, a, b) for a, b in blocks[r]),
            *((place + 1, a, b) for place, a, b in self._recvs[: -len(blocks[last]) or None]),
        ]
        self._ahead = len(blocks[r])  # own blocks, which wait for nothing
        self.sent = self.received = self.tx_bytes = self.rx_bytes = 0
        longest = max((b - a for _, a, b in self._recvs), default=0)
        self._room = room(longest, src.dtype) if quantized else longest * src.itemsize
        self._src_bytes, self._dst_bytes = src.view(np.uint8).data, dst.view(np.uint8).data
        self._cells = plan.cells
        self._out = plan.cells.take() if quantized else None
        self._coming: Cell | None = None
        self._onward: deque[Cell | None] = deque()  # received and to be sent; None: from dst

    @property
    def done(self) -> bool:
        """Whether everything was sent and received."""
        return self.sent == len(self._sends) and self.received == len(self._recvs)

    @property
    def sent_all(self) -> bool:
        """Whether nothing is left to send."""
        return self.sent == len(self._sends)

    @property
    def received_all(self) -> bool:
        """Whether nothing is left to receive."""
        return self.received == len(self._recvs)

    def ready(self) -> bool:
        """Whether a block can be sent now."""
        return self.sent < len(self._sends) and self.sent < self._ahead + self.received

    def outgoing(self) -> memoryview:
        """The next block as bytes; valid until :meth:`block_sent`."""
        place, a, b = self._sends[self.sent]
        cell = self._onward[0] if place else None
        if self._plan.quantization == "none":
            item = self._src.itemsize
            if cell is not None:
                view = cell.bytes[: cell.size]
            else:
                view = (self._dst_bytes if place else self._src_bytes)[a * item : b * item]
        elif place < self._plan.world:
            source = self._dst if place else self._src
            values = source[a:b] if cell is None else cell.values(self._src.dtype, b - a)
            assert self._out is not None
            view = self._out.bytes[: encode(values, self._plan.quantization, self._out.bytes)]
            if place == self._plan.world - 1:  # the owner keeps what all others will have
                decode(view, self._dst[a:b])
        else:
            assert cell is not None, "a finished block goes on as it came"
            view = cell.bytes[: cell.size]
        self.tx_bytes += len(view)
        return view

    def block_sent(self) -> None:
        """The block of :meth:`outgoing` has gone out."""
        if self._sends[self.sent][0] and (cell := self._onward.popleft()) is not None:
            self._cells.give(cell)
        self.sent += 1
        if self._out is not None and self.sent_all:
            self._cells.give(self._out)

    def incoming(self, length: int) -> memoryview:
        """Where the next block's ``length`` bytes go; raises :class:`WireError` if too many."""
        self.rx_bytes += length
        if self.received == len(self._recvs):
            raise WireError("A block comes after the last one of its operation.")
        place, a, b = self._recvs[self.received]
        item = self._src.itemsize
        if self._plan.quantization != "none":
            if length > self._room:
                raise WireError(f"A block of {length} bytes is announced, too many here.")
        elif length != (b - a) * item:
            raise WireError(f"A block of {length} bytes is announced, not of {b - a} elements.")
        elif place >= self._plan.world - 1:
            return self._dst_bytes[a * item : b * item]
        self._coming = self._cells.take()
        self._coming.size = length
        return self._coming.bytes[:length]

    def block_received(self) -> None:
        """The bytes asked for by :meth:`incoming` are there: reduce them, or keep them."""
        place, a, b = self._recvs[self.received]
        cell, self._coming = self._coming, None
        if cell is not None:
            if place < self._plan.world - 1:
                cell = self._reduced(cell, place, a, b)
            else:
                decode(cell.bytes[: cell.size], self._dst[a:b])
        self.received += 1
        if place < 2 * self._plan.world - 3:
            self._onward.append(cell)
        elif cell is not None:
            self._cells.give(cell)

    def _reduced(self, cell: Cell, place: int, a: int, b: int) -> Cell | None:
        """Reduce a block into the cell it came in, which goes on while it is in the cache.

        A finished block, and one that many others wait before, goes to ``dst`` instead.
        """
        plan = self._plan
        if plan.quantization != "none":
            block, cell = cell, self._cells.take()
            decode(block.bytes[: block.size], cell.values(self._src.dtype, b - a))
            self._cells.give(block)
        got = cell.values(self._src.dtype, b - a)
        finished = place == plan.world - 2
        keep = not finished and len(self._onward) < HELD
        out = got if keep else self._dst[a:b]
        plan.reduce(self._src[a:b], got, out)
        if finished and plan.divide is not None:
            plan.divide(out)
        if keep:
            return cell
        self._cells.give(cell)
        return None
