"""Where the needed tool stands in a ranking: hits of every request, per arm."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s
import numpy as np
from numpy.typing import NDArray

from shoal.core.records import ToolSpec
from shoal.tools.retrieval.index import ToolIndex
from toolbench.corpus import Example

DEEP = 20
"""Places that are looked at; a tool beyond them has the place ``DEEP``."""

Places = NDArray[np.int64]


def places(index: ToolIndex, queries: Sequence[tuple[str, str]]) -> Places:
    """The place (0 is first) of the needed tool for each (request, tool)."""
    out = np.full(len(queries), DEEP)
    for row, (request, tool) in enumerate(queries):
        names = [one.name for one in index.search(request, DEEP)]
        if tool in names:
            out[row] = names.index(tool)
    return out


def plain_bm25(
    specs: Sequence[ToolSpec], texts: Sequence[str], queries: Sequence[tuple[str, str]]
) -> Places:
    """The places that bm25s gives, with its own tokens and English stop words."""
    number = {spec.name: row for row, spec in enumerate(specs)}
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False
    )
    tokens = bm25s.tokenize(
        [text for text, _ in queries], stopwords="en", show_progress=False, return_ids=False
    )
    k = min(DEEP, len(specs))
    found, _ = index.retrieve(tokens, k=k, show_progress=False)
    out = np.full(len(queries), DEEP)
    for row, (_, tool) in enumerate(queries):
        hit = np.flatnonzero(found[row] == number[tool])
        if len(hit):
            out[row] = hit[0]
    return out


def recall(at: Places, k: int) -> float:
    """The share of requests whose tool is among the first k."""
    return float((at < k).mean())


def hits(at: Places, k: int = 5) -> NDArray[np.float64]:
    """1 for each request whose tool is among the first k, else 0."""
    return (at < k).astype(np.float64)


def ndcg(at: Places, k: int = 10) -> float:
    """Mean discounted gain at k with one right tool a request."""
    return float(np.where(at < k, 1 / np.log2(at + 2), 0).mean())


def queries(some: Sequence[Example], style: str) -> list[tuple[str, str]]:
    """(request, tool) of examples in a style."""
    return [(example.text(style), example.tool) for example in some]
