"""Requests for three things at once: one search, or one a step, with equally many tools in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shoal.tools.retrieval.index import ToolIndex
from shoal.tools.retrieval.requests import Step, rewrite
from shoal.tools.retrieval.settings import STAGES
from toolbench.corpus import Example

NEEDS = 3
BUDGETS = (6, 12, 24)
JOINS = (", then ", " and ", ", and ", ". ", "; ", ". After that, ", " and also ")
"""How people go on to the next thing they want."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A request for three things: its text, its parts, and the tools that they need."""

    text: str
    parts: tuple[str, ...]
    tools: tuple[str, ...]


def wishes(
    some: Sequence[Example], count: int, generator: np.random.Generator, *, described: bool
) -> list[Wish]:
    """Requests out of three examples each, of three different tools.

    ``described`` joins titles and descriptions, else titles alone.
    """
    titled = [example for example in some if example.title]
    out: list[Wish] = []
    while len(out) < count:
        chosen = [titled[row] for row in generator.choice(len(titled), NEEDS, replace=False)]
        tools = tuple(example.tool for example in chosen)
        if len(set(tools)) < NEEDS:
            continue
        style = "title and description" if described else "title"
        parts = tuple(rewrite(example.text(style)).rstrip(" .;:") for example in chosen)
        text = parts[0]
        for part in parts[1:]:
            text += JOINS[int(generator.integers(len(JOINS)))] + part
        out.append(Wish(text, parts, tools))
    return out


def recalls(index: ToolIndex, some: Sequence[Wish], arm: str, budget: int) -> NDArray[np.float64]:
    """The share of its three tools that each request got; arms are single, rules and oracle."""
    kept = index.settings
    if arm == "single":
        stages = tuple(stage for stage in STAGES if stage != "decompose")
        index.retune(replace(kept, stages=stages))
    out = np.zeros(len(some))
    try:
        for row, wish in enumerate(some):
            steps = [Step(part) for part in wish.parts] if arm == "oracle" else None
            found = index.plan(wish.text, budget, steps=steps)
            assert len(found.tools) <= budget, "all arms have one budget"
            out[row] = len(set(wish.tools) & set(found.names)) / len(wish.tools)
    finally:
        index.retune(kept)
    return out
