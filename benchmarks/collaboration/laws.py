"""Laws of cascade, gate, judge, debate and pruning: closed forms, and teams to hold to them.

Members answer ``right`` or ``wrong`` with a known probability. Each law gives a team, what its
members do, and its probability of a right result by a formula or by summing over all outcomes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shoal import agents
from shoal.agents import Agent, Protocol, Team
from shoal.core.records import Message
from shoal.core.rng import uniform
from shoal.engine.scripted import ScriptedEngine

Answer = Callable[[tuple[Message, ...], int], str]


@dataclass(frozen=True, slots=True)
class Law:
    """A law, its team, its members' behaviour, the accuracy and the turns that it foretells."""

    name: str
    team: Team
    answer: Answer
    accuracy: float
    turns: float


def heard(messages: tuple[Message, ...]) -> list[str]:
    """What others have said, as the prompt shows it."""
    return re.findall(r"^\S+ said: (right|wrong)$", messages[-1].content, re.MULTILINE)


def own_name(messages: tuple[Message, ...]) -> str:
    """Who is asked."""
    return messages[-1].content.rpartition("You are ")[2].partition(".")[0]


def drawn(chance: float, *keys: object) -> str:
    """``right`` with this chance."""
    return "right" if uniform(*keys, "answer") < chance else "wrong"


def cascade(n: int, p: float) -> Law:
    """A chain in which each spoils what it gets with probability p keeps (1-p)^n."""

    def answer(messages: tuple[Message, ...], seed: int) -> str:
        return "wrong" if "wrong" in heard(messages)[-1:] else drawn(1 - p, seed)

    members = tuple(Agent(f"m{i}") for i in range(1, n + 1))
    team = Team("cascade", members, Protocol("chain", "last"), channels="chain")
    return Law(f"cascade of {n}, p={p:g}", team, answer, (1 - p) ** n, n)


def gated_cascade(n: int, p: float, tries: int) -> Law:
    """A gate after each step sends it back, at most ``tries`` times in all: (1-p^tries)^n.

    The gate knows an error that its own worker made, not one that the step was handed. So a step
    takes 2 (1-p^tries)/(1-p) turns while what it was handed is right; what is wrong stays so.
    """

    def answer(messages: tuple[Message, ...], seed: int) -> str:
        words = heard(messages)
        if own_name(messages) == "gate":
            return "ok" if _handed_wrong(messages) or words[-1:] == ["right"] else "again"
        return "wrong" if _handed_wrong(messages) else drawn(1 - p, seed)

    stage = Team(
        "stage",
        (Agent("worker"), Agent("gate")),
        Protocol("round_robin", "last(of=worker)", f"any(rounds({tries}), verdict(gate, ok))"),
        channels="chain",
    )
    stages = tuple(replace(stage, name=f"stage{i}") for i in range(1, n + 1))
    team = Team("gated", stages, Protocol("chain", "last"), channels="chain")
    good = 1 - p**tries
    turns = sum(2 * (good**i * good / (1 - p) + (1 - good**i)) for i in range(n))
    return Law(f"gated cascade of {n}, p={p:g}, {tries} tries", team, answer, good**n, turns)


def _handed_wrong(messages: tuple[Message, ...]) -> bool:
    return bool(re.search(r"stage\d+ said: wrong", messages[-1].content))


def judged(n: int, p: float, q: float) -> Law:
    """A judge who finds the right one of differing answers with probability q."""

    def answer(messages: tuple[Message, ...], seed: int) -> str:
        if own_name(messages) != "judge":
            return drawn(p, seed)
        words = set(heard(messages))
        return drawn(q, seed) if len(words) == 2 else words.pop()

    team = Team(
        "court",
        (Agent("voter", copies=n), Agent("judge")),
        Protocol("all(but=judge)", "judge(judge)"),
        channels="none",
    )
    accuracy = p**n + q * (1 - p**n - (1 - p) ** n)
    return Law(f"judge of {n}, p={p:g}, q={q:g}", team, answer, accuracy, n + 1)


def debate(n: int, p: float, to_right: float, to_wrong: float) -> Law:
    """Who is outvoted in round 1 is persuaded in round 2, by a chance for each direction."""

    def answer(messages: tuple[Message, ...], seed: int) -> str:
        words = heard(messages)
        if not words:
            return drawn(p, seed)
        name = own_name(messages)
        own = re.findall(rf"^{name} said: (right|wrong)$", messages[-1].content, re.MULTILINE)[-1]
        most = "right" if 2 * words.count("right") > len(words) else "wrong"
        chance = to_right if most == "right" else to_wrong
        return most if own != most and uniform(seed, "persuaded") < chance else own

    accuracy = 0.0
    for first in itertools.product((0, 1), repeat=n):
        weight = math.prod(p if x else 1 - p for x in first)
        most = int(2 * sum(first) > n)
        chance = to_right if most else to_wrong
        for moved in itertools.product((0, 1), repeat=n):
            odds = math.prod(
                (1.0 if not m else 0.0) if x == most else (chance if m else 1 - chance)
                for x, m in zip(first, moved, strict=True)
            )
            final = [most if m else x for x, m in zip(first, moved, strict=True)]
            accuracy += weight * odds * (2 * sum(final) > n)
    team = Team("debate", (Agent("d", copies=n),), Protocol("all", "vote", "rounds(2)"))
    name = f"debate of {n}, p={p:g}, persuasion {to_right:g}/{to_wrong:g}"
    return Law(name, team, answer, accuracy, 2 * n)


def pruned(chances: tuple[float, ...], keep: int) -> Law:
    """After one round only those go on who agreed with most; the rest vote in a second one."""
    n = len(chances)

    def answer(messages: tuple[Message, ...], seed: int) -> str:
        return drawn(chances[int(own_name(messages)[1:])], seed)

    accuracy = 0.0
    for first in itertools.product((0, 1), repeat=n):
        weight = _odds(chances, first)
        most = int(2 * sum(first) > n)
        order = sorted(range(n), key=lambda i: first[i] != most)
        stay = tuple(chances[i] for i in sorted(order[:keep]))
        for second in itertools.product((0, 1), repeat=keep):
            accuracy += weight * _odds(stay, second) * (2 * sum(second) > keep)
    team = Team(
        "dylan",
        tuple(Agent(f"m{i}") for i in range(n)),
        Protocol("all", "vote", "rounds(2)", rewire=f"prune({keep})"),
        channels="none",
    )
    return Law(f"prune {n} to {keep}", team, answer, accuracy, n + keep)


def _odds(chances: tuple[float, ...], outcome: tuple[int, ...]) -> float:
    return math.prod(c if x else 1 - c for c, x in zip(chances, outcome, strict=True))


async def obey(law: Law, seeds: list[int]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each run of the law's team is right, and how many turns its members took."""
    right, turns = np.zeros(len(seeds), np.bool_), np.zeros(len(seeds), np.int64)
    for i, seed in enumerate(seeds):
        engine = ScriptedEngine(law.answer, sharing=False)
        result = await agents.run(law.team, f"Question {seed}", engine=engine, seed=seed)
        right[i] = result.result == "right"
        turns[i] = sum(step.usage.prompt_tokens > 0 for step in result.episode.steps)
    return right, turns


FULL: tuple[Law, ...] = (
    cascade(4, 0.1),
    cascade(8, 0.1),
    gated_cascade(4, 0.1, 2),
    judged(5, 0.6, 0.8),
    debate(3, 0.6, 0.7, 0.2),
    debate(5, 0.6, 0.7, 0.2),
    pruned((0.9, 0.8, 0.6, 0.5, 0.4), 3),
)
SMOKE = (cascade(4, 0.1), gated_cascade(3, 0.1, 2), judged(3, 0.6, 0.8))
