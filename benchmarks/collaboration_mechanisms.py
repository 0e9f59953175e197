"""Two laws that hold for any group of agents, measured through the real scheduler.

    shoal reproduce collaboration-mechanisms [--smoke]

Voting: the plurality of N agents of equal accuracy follows Condorcet's law while they err
independently, and gains nothing once they err together. Growth: what channels carry in a round
grows with the group's size N and the round r as the topology says.
Survey: "Multi-Agent Collaboration Mechanisms" (arXiv 2501.06322).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal import agents
from shoal.agents import Agent, Protocol, Team
from shoal.core.claims import Bench
from shoal.core.records import Message
from shoal.core.rng import uniform
from shoal.core.stats import difference_interval, majority_accuracy, wilson_interval
from shoal.engine.scripted import ScriptedEngine

ACCURACY = 0.6
WEAK = 0.4
CAUSES = (0.0, 0.3, 0.6, 1.0)

ROUNDS = 8
WORDS = (38, 42)  # the shortest and the longest answer; all lengths between are as likely
LENGTH = sum(WORDS) / 2 + 2  # mean length as others read it, after "NAME said:"


def run(bench: Bench) -> None:
    """Measure both laws beside their closed forms."""
    draws = bench.pick(full=10_000, smoke=500)
    runs = bench.pick(full=50, smoke=20)
    bench.workload = (
        f"Voting: {draws:,} team runs a cell; each member answers right with a known "
        "probability, and with probability ρ all members of a run share one draw instead of "
        "making their own. The baseline is one agent; a cell holds within 3 standard errors of "
        f"its closed form. Growth: {runs} runs of {ROUNDS} rounds a cell, answers of {WORDS[0]} "
        f"to {WORDS[1]} words. Carried tokens are those of a round's prompts beyond the first "
        "round's; computed tokens are what an ideal prefix cache leaves of all prompt tokens. "
        "Everything goes through the team scheduler and its event log, with a scripted engine "
        "that counts words as tokens."
    )
    voting_law(bench, draws, bench.pick(full=(1, 3, 5, 7, 9), smoke=(1, 3, 9)))
    growth_law(bench, runs, bench.pick(full=(2, 4, 8, 16), smoke=(2, 5)))


def voting_law(bench: Bench, draws: int, sizes: tuple[int, ...]) -> None:
    """Plurality accuracy by group size and share of common causes, and its plot."""
    curves = [(ACCURACY, cause) for cause in CAUSES] + [(WEAK, 0.0)]
    cells = [Cell(size, *curve) for curve in curves for size in sizes]
    outcomes: dict[Cell, NDArray[np.bool_]] = {}
    for cell in bench.track(cells, "voting"):
        seeds = [bench.seed_of(cell, i) for i in range(draws)]
        outcomes[cell] = asyncio.run(ask_panel(cell, seeds))
        accuracy = wilson_interval(int(outcomes[cell].sum()), draws)
        bench.arm(f"plurality of {cell}", accuracy=accuracy, closed_form=cell.law)
        error = 3 * math.sqrt(cell.law * (1 - cell.law) / draws)
        bench.verdict(
            f"plurality of {cell}", accuracy, at_least=cell.law - error, at_most=cell.law + error
        )
    for cause in (min(CAUSES), max(CAUSES)):
        most, one = Cell(max(sizes), ACCURACY, cause), Cell(1, ACCURACY, cause)
        gain = difference_interval(outcomes[most], outcomes[one], seed=bench.seed)
        error = 3 * math.sqrt(sum(cell.law * (1 - cell.law) for cell in (most, one)) / draws)
        bench.verdict(
            f"gain of {most} over one agent",
            gain,
            at_least=most.law - one.law - error,
            at_most=most.law - one.law + error,
        )
    plot_votes(bench, curves, sizes, outcomes)


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


def plot_votes(
    bench: Bench,
    curves: list[tuple[float, float]],
    sizes: tuple[int, ...],
    outcomes: dict[Cell, NDArray[np.bool_]],
) -> None:
    """Law as lines, measurements as points with 95 % intervals."""
    caption = (
        "Accuracy of the plurality: closed form (lines), measured with 95 % intervals (points)"
    )
    with bench.plot("voting", caption) as (axes,):
        for accuracy, cause in curves:
            cells = [Cell(size, accuracy, cause) for size in sizes]
            label = f"accuracy {accuracy:g}, ρ={cause:g}"
            (line,) = axes.plot(sizes, [cell.law for cell in cells], label=label)
            found = [wilson_interval(int(outcomes[c].sum()), len(outcomes[c])) for c in cells]
            spread = np.array([(x.estimate - x.low, x.high - x.estimate) for x in found]).T
            axes.errorbar(
                sizes,
                [one.estimate for one in found],
                yerr=spread,
                fmt="o",
                markersize=4,
                color=line.get_color(),
            )
        axes.set(xlabel="agents N", ylabel="accuracy of the plurality", xticks=sizes)
        axes.legend(fontsize=8)


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


def growth_law(bench: Bench, runs: int, sizes: tuple[int, ...]) -> None:
    """Tokens that channels carry, by topology, group size and round, and their plot."""
    cells = [(topology, size) for topology in TOPOLOGIES for size in sizes]
    carried: dict[tuple[str, int], NDArray[np.float64]] = {}
    errors: dict[str, float] = {}
    for topology, size in bench.track(cells, "growth"):
        seeds = [bench.seed_of(topology.name, size, i) for i in range(runs)]
        asked, computed = asyncio.run(tokens_by_round(topology, size, seeds))
        measured = carried[topology.name, size] = asked - asked[0]
        law = predicted(topology, size)
        error = float(np.abs(measured[1:] / law[1:] - 1).max())
        errors[topology.name] = max(error, errors.get(topology.name, 0.0))
        bench.arm(
            f"{topology.name}, N={size}",
            carried_in_round_2=measured[1],
            carried_in_round_8=measured[-1],
            predicted_in_round_8=law[-1],
            asked_in_round_8=asked[-1],
            computed_in_round_8=computed[-1],
        )
    for topology in TOPOLOGIES:
        bench.verdict(
            f"{topology.name} carries {topology.law} messages in round r: largest relative error",
            errors[topology.name],
            at_most=0.02,
        )
    plot_growth(bench, carried, sizes)


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


def plot_growth(
    bench: Bench, carried: dict[tuple[str, int], NDArray[np.float64]], sizes: tuple[int, ...]
) -> None:
    """Growth with the round at the largest group, and with the group at the last round."""
    rounds = np.arange(1, ROUNDS + 1)
    largest = max(sizes)
    caption = "Tokens that channels carry in a round: law (lines) and measured (points)"
    with bench.plot("growth", caption, panels=2) as (by_round, by_size):
        for topology in TOPOLOGIES:
            (line,) = by_round.plot(rounds, predicted(topology, largest), label=topology.name)
            color = line.get_color()
            by_round.plot(rounds, carried[topology.name, largest], "o", ms=4, color=color)
            by_size.plot(sizes, [predicted(topology, n)[-1] for n in sizes], color=color)
            last = [carried[topology.name, n][-1] for n in sizes]
            by_size.plot(sizes, last, "o", ms=4, color=color)
        by_round.set(xlabel=f"round r (N={largest})", ylabel="tokens carried in the round")
        by_size.set(xlabel=f"agents N (r={ROUNDS})", xscale="log", yscale="log", xticks=sizes)
        by_size.set_xticks(sizes, map(str, sizes))
        by_size.minorticks_off()
        by_round.legend(fontsize=8)
