"""Sums of three digits from reasoning-gym, with their steps, and yes-or-no questions about them.

SmolLM2-135M gets 5 of 100 such sums right when it answers at once, and more than half when it
writes the steps down: here the tokens that it spends are effort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoal.mechanisms.goods.tasks import Task


def sums(count: int, seed: int) -> list[Task]:
    """Different sums of three one-digit numbers, in the order in which they are drawn."""
    import reasoning_gym

    data = reasoning_gym.create_dataset(
        "chain_sum", size=8 * count + 100, seed=seed, min_terms=3, max_terms=3, min_digits=1,
        max_digits=1,
    )  # fmt: skip
    made: dict[str, Task] = {}
    for item in data:
        question = str(item["metadata"]["expression"])
        if "-" not in question:
            made.setdefault(question, Task(question, str(item["answer"]), steps(question)))
    assert len(made) >= count, "a quarter of all chains have no minus"
    return list(made.values())[:count]


def apart(counts: tuple[int, ...], seed: int) -> list[list[Task]]:
    """Several sets of sums, none of which is in two of them."""
    drawn = sums(sum(counts), seed)
    ends = np.cumsum(counts).tolist()
    return [drawn[end - count : end] for end, count in zip(ends, counts, strict=True)]


def steps(question: str) -> str:
    """The sum worked out from the left."""
    total, *others = (int(term) for term in question.split(" + "))
    said = []
    for term in others:
        said.append(f"{total} + {term} = {total + term}")
        total += term
    return ", ".join(said) + "."


@dataclass(frozen=True, slots=True)
class Doubt:
    """Whether a sum is what somebody says; ``true`` is known from the sum's own answer."""

    task: Task
    claimed: int
    true: bool


def doubts(tasks: list[Task], rng: np.random.Generator) -> list[Doubt]:
    """Half of the claims are true; the others are off by 1 to 3."""
    found = []
    for task in tasks:
        true = bool(rng.random() < 0.5)
        off = 0 if true else int(rng.choice([-3, -2, -1, 1, 2, 3]))
        found.append(Doubt(task, int(task.answer) + off, true))
    return found
