"""A small model in the loop, on a slice of the catalogue: what it gains, and what that costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.core.protocols import Engine
from shoal.core.records import ToolSpec
from shoal.models.embedding import Embedder
from shoal.tools.retrieval.index import ToolIndex
from shoal.tools.retrieval.model import blended, questions, rerank
from shoal.tools.retrieval.settings import Settings
from toolbench import ranking
from toolbench.corpus import Example

CANDIDATES = 5
"""Tools that the model chooses among."""


@dataclass(frozen=True, slots=True)
class InTheLoop:
    """Places of the needed tool for each arm, and seconds: of all questions, and a choice."""

    places: dict[str, NDArray[np.int64]]
    question_seconds: float
    choice_seconds: float
    samples: tuple[str, ...]


async def measured(
    engine: Engine,
    specs: Sequence[ToolSpec],
    some: Sequence[Example],
    settings: Settings,
    embedder: Embedder | None,
) -> InTheLoop:
    """The search alone, with a model's questions, and reranked by a model, on the same requests."""
    style = "title and description"
    asked = ranking.queries(some, style)
    plain = ToolIndex(settings, embedder=embedder)
    plain.add(specs)
    started = time.perf_counter()
    made = await questions(engine, specs)
    question_seconds = time.perf_counter() - started
    enriched = ToolIndex(settings, embedder=embedder)
    enriched.add(specs, questions=made)
    places = {
        "search alone": ranking.places(plain, asked),
        "with the model's questions": ranking.places(enriched, asked),
        "reranked by the model": np.full(len(asked), ranking.DEEP),
        "both orders together": np.full(len(asked), ranking.DEEP),
    }
    started = time.perf_counter()
    for row, (request, tool) in enumerate(asked):
        tools = plain.search(request, CANDIDATES)
        choices = await rerank(engine, request, tools, [plain.spec(t.name) for t in tools])
        orders = {
            "reranked by the model": [choice.tool.name for choice in choices],
            "both orders together": [t.name for t in blended(tools, choices)],
        }
        for arm, names in orders.items():
            if tool in names:
                places[arm][row] = names.index(tool)
    choice_seconds = (time.perf_counter() - started) / max(1, len(asked))
    shown = tuple(f"{name}: {several[0]}" for name, several in list(made.items())[:3] if several)
    return InTheLoop(places, question_seconds, choice_seconds, shown)
