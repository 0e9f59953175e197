"""Weights fitted on some services and tried on the others: a small grid, decided beforehand.

Three choices one after the other, each by recall at 5 averaged over the styles of requests: the
weights of a document's parts with BM25 alone, then the weights of the cosine and of the verb
together, then the weight of synonyms.
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
    for name, service, arguments in ((1, 1, 1), (2, 2, 0.3), (3, 3, 0.3))
    for b in (0.75, 0.5)
)
DENSE = (0.0, 0.15, 0.3, 0.6, 0.9, 1.2)
VERB = (0.0, 0.15, 0.3, 0.5)
SYNONYM = (0.0, 0.35, 0.7)
MOST = 300
"""Examples of a half that weights are fitted on, evenly spaced."""


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
    styles: Sequence[str] = STYLES,
) -> Fit:
    """The best settings of the grid for these requests; ties go to the first."""
    some = some[:: max(1, len(some) // MOST)]
    plain = Settings(dense=0.0, verb=0.0, synonym=0.0)
    scored: list[tuple[float, Settings]] = []
    for weights, saturation in parts:
        now = replace(plain, parts=weights, saturation=saturation)
        scored.append((_recalls(_index(specs, now, None), some, [now], styles)[0], now))
    best = max(scored, key=lambda pair: pair[0])[1]
    index = _index(specs, replace(best, dense=1.0), embedder)
    grid = [
        replace(best, dense=dense, verb=verb)
        for dense in (DENSE if embedder is not None else DENSE[:1])
        for verb in VERB
    ]
    best = grid[int(np.argmax(_recalls(index, some, grid, styles)))]
    scored = []
    for synonym in SYNONYM:
        now = replace(best, synonym=synonym)
        scored.append((_recalls(index, some, [now], styles)[0], now))
    value, settings = max(scored, key=lambda pair: pair[0])
    return Fit(settings, value)


def _index(specs: Sequence[ToolSpec], settings: Settings, embedder: Embedder | None) -> ToolIndex:
    index = ToolIndex(settings, embedder=embedder)
    index.add(specs)
    return index


def _recalls(
    index: ToolIndex, some: Sequence[Example], grid: Sequence[Settings], styles: Sequence[str]
) -> list[float]:
    """Recall at 5 for all settings of a grid: searched once, fused and ranked anew for each.

    All have one weight of synonyms, which the search uses.
    """
    shelf: Any = index._shelves
    searching = replace(shelf.settings, synonym=grid[0].synonym)
    total = np.zeros(len(grid))
    asked = [pair for style in styles for pair in ranking.queries(some, style) if pair[0].strip()]
    for text, tool in asked:
        shelf.settings = searching
        lookup = stages.rewrite(Lookup(text, 5), shelf)
        lookup = replace(lookup, steps=(expand(lookup.request, searching.synonym),))
        lookup = stages.search(lookup, shelf)
        for column, shelf.settings in enumerate(grid):
            found = stages.fit(stages.rerank(stages.fuse(lookup, shelf), shelf), shelf)
            total[column] += tool in {shelf.at(slot).name for slot, _, _ in found.chosen}
    shelf.settings = searching
    return [float(value) for value in total / max(len(asked), 1)]
