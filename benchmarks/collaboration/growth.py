"""How many tokens channels carry in a round, by topology: laws, and groups to hold to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal import agents
from shoal.agents import Agent, Protocol, Team
from shoal.core.records import Message
from shoal.core.rng import uniform
from shoal.engine.scripted import ScriptedEngine

ROUNDS = 8
WORDS = (38, 42)  # the shortest and the longest answer; all lengths between are as likely
LENGTH = sum(WORDS) / 2 + 2  # mean length as others read it, after "NAME said:"


@dataclass(frozen=True, slots=True)
class Topology:
    """Channels, and how many messages they carry to all members in round ``r`` (from 1)."""

    name: str
    law: str
    channels: str
    messages: Callable[[int, int], int]


TOPOLOGIES = (
    Topology("full-transcript mesh", "N²(r-1)", "mesh(all)", lambda n, r: n * n * (r - 1)),
    Topology(
        "full-transcript star", "2(N-1)(r-1)", "star(a1, all)", lambda n, r: 2 * (n - 1) * (r - 1)
    ),
    Topology("last-view mesh", "N²", "mesh(last)", lambda n, r: n * n * (r > 1)),
)


def predicted(topology: Topology, size: int) -> NDArray[np.float64]:
    """Carried tokens by the law, [ROUNDS]."""
    return LENGTH * np.array([topology.messages(size, r) for r in range(1, ROUNDS + 1)], float)


async def tokens_by_round(
    topology: Topology, size: int, seeds: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Prompt tokens of all members, asked for and computed, mean over the runs, [ROUNDS] each."""
    team = Team(
        "group",
        tuple(Agent(f"a{i}") for i in range(1, size + 1)),
        Protocol(turn="all", reduce="last", until=f"rounds({ROUNDS})"),
        channels=topology.channels,
        task="Talk.",
    )
    asked, computed = np.zeros(ROUNDS), np.zeros(ROUNDS)
    for seed in seeds:
        result = await agents.run(team, engine=ScriptedEngine(talk), seed=seed)
        for step in result.episode.steps:
            asked[step.superstep] += step.usage.prompt_tokens
            computed[step.superstep] += step.usage.computed_prompt_tokens
    return asked / len(seeds), computed / len(seeds)


def talk(messages: tuple[Message, ...], seed: int) -> str:
    """An answer of seeded length whose words occur nowhere else."""
    least, most = WORDS
    count = least + int(uniform(seed, "length") * (most - least + 1))
    return " ".join(f"w{seed}" for _ in range(count))
