"""Inputs stay as they were until the commit, also where the ring was through already."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest

from shoal.collectives.errors import Aborted, TooFewPeers
from shoal.collectives.kernels import Op, reduction
from shoal.collectives.reducing import Handle, ReduceInfo, Reducer, reduce_many
from shoal.collectives.ring import Lane, Plan
from shoal.collectives.traffic import Flight


class Paper:
    """Stands where an engine would, and keeps what it is to launch."""

    linked = True
    ring = ("a", "b")

    def __init__(self) -> None:
        self.flights: list[Flight] = []

    def launch(self, flight: Flight) -> None:
        self.flights.append(flight)


def through(flight: Flight, other: np.ndarray) -> None:
    """Let both sides of the ring run to their end."""
    flight.world, flight.lanes = 2, flight.lanes_of(1, 0, 2)
    far = Lane(Plan(1, 2, reduction(Op.SUM, "float32")), other, np.empty_like(other))
    (near,) = flight.lanes
    while not (near.done and far.done):
        for here, there in ((near, far), (far, near)):
            while here.ready():
                block = bytes(here.outgoing())
                here.block_sent()
                there.incoming(len(block))[:] = block
                there.block_received()


def test_an_abort_after_the_ring_was_through_leaves_the_input_as_it_was():
    paper, relinked = Paper(), []
    reducer = Reducer(1, relinked.append)
    x, other = np.arange(10, dtype=np.float32), np.ones(10, np.float32)
    first = reducer.begin(paper, x, None, Op.SUM, 0, "none")  # type: ignore[arg-type]
    through(paper.flights[0], other)
    paper.flights[0].epoch = 4
    paper.flights[0].future.set_exception(Aborted("a peer left before the commit"))
    with pytest.raises(Aborted):
        first.wait()
    assert x.tolist() == list(range(10)) and relinked == [4]
    again = reducer.begin(paper, x, None, Op.SUM, 0, "none")  # type: ignore[arg-type]
    through(paper.flights[1], other)
    paper.flights[1].future.set_result(paper.flights[1])
    assert again.wait().world == 2
    assert x.tolist() == [1.0 + i for i in range(10)]


class Scripted:
    """Operations whose ends are given: 2 commits, None aborts, 0 finds nobody else."""

    def __init__(self, *ends: list[int | None]) -> None:
        self.ends = [list(one) for one in ends]
        self.begun: list[int] = []
        self.flying = self.most = 0

    def begin(self, i: int, array: object) -> Handle:
        self.begun.append(i)
        self.flying += 1
        self.most = max(self.most, self.flying)
        end = self.ends[i].pop(0)
        if end == 0:
            raise TooFewPeers("alone")
        future: Future[ReduceInfo] = Future()
        return _Said(self, end, future)  # type: ignore[return-value]


class _Said:
    def __init__(self, script: Scripted, end: int | None, future: Future[ReduceInfo]) -> None:
        self.script, self.end = script, end

    def wait(self) -> ReduceInfo:
        self.script.flying -= 1
        if self.end is None:
            raise Aborted("a peer left")
        return ReduceInfo(self.end, 0, 0)


def test_what_failed_is_called_again_and_no_longer_counts_as_in_flight():
    script = Scripted([3], [None, 2], [3], [2], [2])
    found = reduce_many(script.begin, range(5), 3)
    assert [info.world for info in found] == [3, 2, 3, 2, 2]
    assert script.begun == [0, 1, 2, 3, 1, 4] and script.flying == 0 and script.most == 3


def test_whoever_is_left_alone_is_told_what_is_not_reduced():
    script = Scripted([2], [None, 0], [2], [2])
    with pytest.raises(TooFewPeers, match="arrays 1, 3 are not reduced"):
        reduce_many(script.begin, range(4), 2)
