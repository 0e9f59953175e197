"""What agents are asked: a question behind each one's own words, to answer or to choose."""

from __future__ import annotations

import random

from shoal.core.claims import Bench
from shoal.core.claims.items import Item
from shoal.core.protocols import Grammar, Request, Sampling, Segment
from shoal.core.records import Message

ROLES = {
    "solver": (
        "You are a careful solver. You read a problem slowly and reason about every quantity "
        "that it names before you write anything down.",
        "Work through the problem step by step, then give the result as a number.",
    ),
    "checker": (
        "You are the checker of a small team. Others solve; you look for what they overlooked "
        "and you trust nobody's arithmetic, least of all your own.",
        "Which quantities matter here, and what could go wrong? Answer with the result.",
    ),
}


def roles(bench: Bench) -> tuple[str, ...]:
    """The agents that are asked."""
    return tuple(ROLES)[: bench.pick(full=2, smoke=1)]


def prompt(role: str, question: str, *, new: int, grammar: Grammar | None = None) -> Request:
    """What an agent is asked, with the question as placeholder."""
    system, instruction = ROLES[role]
    user = f"The problem of today:\n{question}\n\n{instruction}"
    return Request(
        (Message("system", system), Message("user", user)),
        Sampling(max_tokens=new),
        grammar,
        placeholders=(Segment(question, name="question"),),
    )


def options(item: Item, seed: int) -> tuple[str, ...]:
    """The right number among three others near to it."""
    draw = random.Random(seed)
    right = float(item.answer.replace(",", ""))
    others: set[str] = set()
    while len(others) < 3:
        wrong = max(
            0.0, round(right * draw.choice((0.5, 0.8, 1.25, 1.5, 2.0)) + draw.randint(-3, 3))
        )
        if wrong != right:
            others.add(str(wrong))
    chosen = [*sorted(others), item.answer]
    draw.shuffle(chosen)
    return tuple(chosen)
