"""Weights fitted on some services and tried on the others: a small grid, decided beforehand.

Three choices one after the other, each by recall at 5 averaged over the styles of requests: the
weights of a document's parts with BM25 alone, then the weight of the cosine with that of the
service, then the weight of synonyms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shoal.core.records import ToolSpec
from shoal.models.embedding import Embedder
from shoal.tools.retrieval import stages
from shoal.tools.retrieval.documents import PartWeights
from shoal.tools.retrieval.index import ToolIndex
from shoal.tools.retrieval.lexical import Saturation
from shoal.tools.retrieval.requests import expand
from shoal.tools.retrieval.settings import Settings
from shoal.tools.retrieval.stages import Lookup
from toolbench import ranking
from toolbench.corpus import STYLES, Example

PARTS = tuple(
    (PartWeights(name=name, service=service, arguments=arguments), Saturation(b=b))
    for name, service, arguments in ((1, 1, 1), (2, 2, 0.5), (2, 2, 0.3), (3, 2, 0.3), (3, 3, 0.3))
    for b in (0.75, 0.5)
)
DENSE = (0.0, 0.15, 0.3, 0.6, 0.9, 1.2, 2.0)
SERVICE = (0.0, 0.1, 0.2, 0.4)
SYNONYM = (0.0, 0.15, 0.3)


@dataclass(frozen=True, slots=True)
class Fit:
    """Settings that were best on some requests, and their recall at 5 there."""

    settings: Settings
    recall: float


def fit(
    specs: Sequence[ToolSpec],
    some: Sequence[Example],
    embedder: Embedder | None,
    parts: Sequence[tuple[PartWeights, Saturation]] = PARTS,
) -> Fit:
    """The best settings of the grid for these requests; ties go to the first."""
    settings = Settings(dense=0, service=0, synonym=0)
    scored: list[tuple[float, Settings]] = []
    for weights, saturation in parts:
        now = replace(settings, parts=weights, saturation=saturation)
        scored.append((_recall(_index(specs, now, None), some, now, [(0.0, 0.0)], 0.0)[0], now))
    best = max(scored, key=lambda pair: pair[0])[1]
    index = _index(specs, replace(best, dense=1.0), embedder)
    grid = [
        (dense, service)
        for dense in DENSE[: 1 if embedder is None else None]
        for service in SERVICE
    ]
    values = _recall(index, some, best, grid, 0.0)
    dense, service = grid[int(np.argmax(values))]
    best = replace(best, dense=dense, service=service)
    scored = [
        (_recall(index, some, best, [(dense, service)], synonym)[0], replace(best, synonym=synonym))
        for synonym in SYNONYM
    ]
    value, settings = max(scored, key=lambda pair: pair[0])
    return Fit(settings, value)


def _index(specs: Sequence[ToolSpec], settings: Settings, embedder: Embedder | None) -> ToolIndex:
    index = ToolIndex(settings, embedder=embedder)
    index.add(specs)
    return index


def _recall(
    index: ToolIndex,
    some: Sequence[Example],
    settings: Settings,
    grid: Sequence[tuple[float, float]],
    synonym: float,
) -> list[float]:
    """Recall at 5 for every (dense, service) of a grid: searched once, fused and ranked anew."""
    shelf: Any = index._shelves
    kept = shelf.settings
    total = np.zeros(len(grid))
    count = 0
    try:
        for style in STYLES:
            for text, tool in ranking.queries(some, style):
                if not text:
                    continue
                lookup = Lookup(text, 5)
                lookup = stages.rewrite(lookup, shelf)
                lookup = replace(lookup, steps=(expand(lookup.request, synonym),))
                shelf.settings = replace(settings, dense=kept.dense)
                lookup = stages.search(lookup, shelf)
                count += 1
                for column, (dense, service) in enumerate(grid):
                    shelf.settings = replace(settings, dense=dense, service=service)
                    found = stages.fit(stages.rerank(stages.fuse(lookup, shelf), shelf), shelf)
                    total[column] += tool in {shelf.at(slot).name for slot, _, _ in found.chosen}
    finally:
        shelf.settings = kept
    return [float(value) for value in total / max(count, 1)]
