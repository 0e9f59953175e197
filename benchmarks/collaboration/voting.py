"""Voters of known accuracy who err alone or together: Condorcet's law, and panels to hold to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal import agents
from shoal.agents import Agent, Protocol, Team
from shoal.core.records import Message
from shoal.core.rng import uniform
from shoal.core.stats import majority_accuracy
from shoal.engine.scripted import ScriptedEngine

ACCURACY = 0.6
WEAK = 0.4
ALL_SIZES = (1, 3, 5, 7, 9)
CURVES = (  # accuracy, how often one cause moves all, group sizes
    (ACCURACY, 0.0, ALL_SIZES),
    (ACCURACY, 0.3, (1, 5, 9)),
    (ACCURACY, 1.0, (1, 9)),
    (WEAK, 0.0, ALL_SIZES),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A group of voters: its size, each one's accuracy, and how often one cause moves all."""

    size: int
    accuracy: float
    cause: float

    @property
    def law(self) -> float:
        """Accuracy of the plurality: one voter's under a common cause, else Condorcet's."""
        alone = majority_accuracy(self.size, self.accuracy)
        return self.cause * self.accuracy + (1 - self.cause) * alone

    def __str__(self) -> str:
        return f"{self.size}, accuracy {self.accuracy:g}, ρ={self.cause:g}"


async def ask_panel(cell: Cell, seeds: list[int]) -> NDArray[np.bool_]:
    """Whether the plurality is right, in one run of the team a seed."""

    def answer(messages: tuple[Message, ...], seed: int) -> str:
        question = messages[-1].content.partition("\n")[0]
        common = uniform(question, "is there a common cause") < cell.cause
        drawn = uniform(question if common else seed, "answer")
        return "right" if drawn < cell.accuracy else "wrong"

    team = Team(
        "panel",
        (Agent("voter", copies=cell.size),),
        Protocol(turn="all", reduce="vote(plurality)", until="rounds(1)"),
        channels="none",
    )
    right = np.zeros(len(seeds), np.bool_)
    for i, seed in enumerate(seeds):
        engine = ScriptedEngine(answer)
        result = await agents.run(team, f"Question {seed}", engine=engine, seed=seed)
        right[i] = result.result == "right"
    return right
