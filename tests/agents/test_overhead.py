"""The scheduler is cheap: function calls a turn, which no busy machine changes.

Milliseconds beside other frameworks are the claim's business (benchmarks/collaboration).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from traces import members, protocol

from shoal.agents import Team, run
from shoal.core.protocols import Completion, EngineInfo, Request
from shoal.core.records import Usage


class NullEngine:
    """Answers at once."""

    info = EngineInfo("null", "scripted")
    done = Completion("ok", (1,), "stop", Usage(10, 0, 1, 1.0, 1.0, 0))

    async def generate(self, requests: Sequence[Request], on_delta: Any = None) -> list[Completion]:
        return [self.done] * len(requests)


def calls_a_turn(size: int, rounds: int, channels: str, turn: str = "all") -> float:
    """Python and C functions called in a whole run, divided by its turns."""
    names = [f"m{i:04}" for i in range(size)]
    team = Team("t", members(*names), protocol(turn, until=f"rounds({rounds})"), channels)
    engine: Any = NullEngine()

    def work() -> int:
        result = asyncio.run(run(team, "task", "material " * 50, engine=engine))
        return len(result.episode.steps)

    work()  # rules are parsed once
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        turns = work()
    finally:
        sys.setprofile(before)
    return calls / turns


@pytest.mark.parametrize("channels", ["mesh", "ring"])
def test_a_turn_of_four_members_takes_few_calls(channels: str) -> None:
    assert calls_a_turn(4, 60, channels) < 250


@pytest.mark.parametrize("channels", ["mesh", "ring"])
def test_a_turn_takes_as_many_calls_in_the_last_round_as_in_the_first(channels: str) -> None:
    assert calls_a_turn(4, 200, channels) < 1.1 * calls_a_turn(4, 25, channels)


def test_a_turn_takes_hardly_more_calls_among_many() -> None:
    among = {size: calls_a_turn(size, 2, "ring") for size in (64, 256, 1024)}
    assert among[1024] < 1.1 * among[256] < 1.21 * among[64]


def test_one_speaker_a_time_costs_no_more_among_many() -> None:
    few, many = (calls_a_turn(size, 2, "ring", "round_robin") for size in (64, 512))
    assert many < 1.3 * few
