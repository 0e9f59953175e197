"""The scheduler is cheap: its own CPU time a turn, with an engine that does nothing."""

from __future__ import annotations

import asyncio
import time
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


def cpu_ms_a_turn(size: int, rounds: int, channels: str, turn: str = "all") -> float:
    """The least of five runs."""
    names = [f"m{i:04}" for i in range(size)]
    team = Team("t", members(*names), protocol(turn, until=f"rounds({rounds})"), channels)
    engine: Any = NullEngine()
    times = []
    for _ in range(5):
        began = time.process_time()
        result = asyncio.run(run(team, "task", "material " * 50, engine=engine))
        times.append((time.process_time() - began) / len(result.episode.steps) * 1000)
    return min(times)


@pytest.mark.parametrize("channels", ["mesh", "ring"])
def test_a_turn_of_four_members_costs_less_than_a_fifth_of_a_millisecond(channels: str) -> None:
    assert cpu_ms_a_turn(4, 60, channels) < 0.2


def test_a_turn_costs_about_the_same_in_the_last_round_as_in_the_first() -> None:
    assert cpu_ms_a_turn(4, 200, "mesh") < 2 * cpu_ms_a_turn(4, 25, "mesh")


def test_a_turn_costs_about_the_same_among_many() -> None:
    assert cpu_ms_a_turn(256, 2, "ring") < 2 * cpu_ms_a_turn(4, 60, "ring")
