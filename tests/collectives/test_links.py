"""The two ends of a connection: frames that are cut anywhere, that come early, that lie."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from shoal.collectives.errors import WireError
from shoal.collectives.kernels import Op, reduction
from shoal.collectives.links import HEADER, Receiver, Sender
from shoal.collectives.ring import Cells, Lane, Plan

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    right.setblocking(False)
    yield left, right
    left.close()
    right.close()


def lane(size: int, seq: int = 5, cells: Cells | None = None) -> Lane:
    x = np.arange(size, dtype=np.float32)
    plan = Plan(0, 2, reduction(Op.SUM, "float32"), cells=cells or Cells())
    return Lane(plan, x, np.empty_like(x), seq=seq)


def frame(seq: int, values: np.ndarray) -> bytes:
    return HEADER.pack(seq, values.nbytes) + values.tobytes()


def test_a_frame_is_reduced_however_it_is_cut(pair: Pair):
    one, far = lane(100), np.full(50, 0.5, np.float32)
    receiver, done = Receiver(pair[1]), []
    data = frame(5, far) + frame(5, far)
    rng = random.Random(0)
    while data:
        size = rng.randint(1, 60)
        pair[0].sendall(data[:size])
        data = data[size:]
        receiver.pump({5: one}, done.append)
    assert one.received_all and done == [one, one]


@pytest.mark.parametrize("length", [0, 51 * 4, 2**32 - 1])
def test_a_frame_of_the_wrong_length_is_refused_before_anything_is_allocated(pair: Pair, length):
    receiver = Receiver(pair[1])
    pair[0].sendall(HEADER.pack(5, length))
    with pytest.raises(WireError, match=f"block of {length} bytes"):
        receiver.pump({5: lane(100)}, lambda lane: None)


def test_a_frame_of_an_operation_that_has_not_begun_waits_for_it(pair: Pair):
    receiver, done = Receiver(pair[1]), []
    pair[0].sendall(frame(6, np.ones(50, np.float32)))
    receiver.pump({}, done.append)
    assert receiver.parked and not receiver.resume({7: lane(100, 7)})
    one = lane(100, 6)
    assert receiver.resume({6: one}) and not receiver.parked
    receiver.pump({6: one}, done.append)
    assert done == [one] and one.received == 1


def test_a_frame_cut_short_by_a_hang_up_is_an_error(pair: Pair):
    receiver = Receiver(pair[1])
    pair[0].sendall(frame(5, np.ones(50, np.float32))[:-1])
    receiver.pump({5: lane(100)}, lambda lane: None)
    pair[0].close()
    with pytest.raises(ConnectionResetError, match="hung up"):
        receiver.pump({5: lane(100)}, lambda lane: None)


def test_two_operations_take_turns_block_by_block(pair: Pair):
    left, right = pair
    left.setblocking(False)
    sender = Sender(left)
    lanes = [lane(200_000, seq) for seq in (1, 2)]
    for one in lanes:
        sender.add(one)
    order, held = [], bytearray()
    for _ in range(200):
        sender.pump(lambda lane: None)
        try:
            held += right.recv(1 << 20)
        except BlockingIOError:
            break
        while len(held) >= HEADER.size:
            seq, length = HEADER.unpack_from(held)
            if len(held) < HEADER.size + length:
                break
            order.append(seq)
            del held[: HEADER.size + length]
    assert order[:4] in ([1, 2, 1, 2], [2, 1, 2, 1]) and order.count(1) == order.count(2)


def test_memory_of_an_operation_that_ended_serves_the_next():
    cells = Cells()
    taken = cells.take()
    cells.give(taken)
    assert cells.take() is taken
    few = Cells(most=1)
    for cell in (few.take(), few.take()):
        few.give(cell)
    assert few.take() is not few.take()
