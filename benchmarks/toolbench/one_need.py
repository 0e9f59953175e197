"""Workload A: one tool for each request, by arms that are fitted on the other half of services."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shoal.core.claims import Bench
from shoal.core.records import ToolSpec
from shoal.core.stats import Interval, difference_interval, mean_interval
from shoal.models.embedding import Embedder, Kept, ShortMiniLM
from shoal.tools.retrieval.documents import document_of, operation_of
from shoal.tools.retrieval.index import ToolIndex
from shoal.tools.retrieval.settings import STAGES, Settings
from shoal.tools.text import humanised
from toolbench import fitting, ranking
from toolbench.corpus import FULL, STYLES, Example, repeats

SEARCHING = ("rewrite", "expand", "rerank", "fuse")
"""Stages of a search that can be left out of an index that is built."""


class Crossed:
    """Requests of each half, searched with what was fitted on the other."""

    def __init__(self, specs: Sequence[ToolSpec], some: Sequence[Example]) -> None:
        self.specs = specs
        self.halves = {half: [one for one in some if one.half == half] for half in (0, 1)}

    def places(self, indexes: Mapping[int, ToolIndex], style: str) -> NDArray[np.int64]:
        """Places for all requests; ``indexes`` are by the half that their weights are from."""
        parts = [
            ranking.places(indexes[1 - half], ranking.queries(self.asking(style, half), style))
            for half in self.halves
        ]
        return np.concatenate(parts)

    def asking(self, style: str, half: int | None = None) -> list[Example]:
        """Examples that have a text in a style, of one half or of both, in the order of places."""
        halves = self.halves if half is None else (half,)
        return [one for h in halves for one in self.halves[h] if one.text(style).strip()]

    def queries(self, style: str) -> list[tuple[str, str]]:
        """Requests of both halves in the order of places."""
        return ranking.queries(self.asking(style), style)

    def built(
        self, settings: Mapping[int, Settings], embedder: Embedder | None
    ) -> dict[int, ToolIndex]:
        """An index for the weights of each half; one for both where they are the same."""
        made: dict[int, ToolIndex] = {}
        for half, chosen in settings.items():
            if half == 1 and chosen == settings[0]:
                made[1] = made[0]
                continue
            made[half] = ToolIndex(chosen, embedder=embedder)
            made[half].add(self.specs)
        return made


def one_need(
    bench: Bench,
    specs: Sequence[ToolSpec],
    some: Sequence[Example],
    embedder: Embedder,
    margin: float,
) -> dict[int, Settings]:
    """Workload A; returns the settings fitted on each half, with the static embedder."""
    crossed = Crossed(specs, some)
    found: dict[tuple[str, str], NDArray[np.int64]] = {}
    naive = [f"{operation_of(spec.name)}: {spec.description}" for spec in specs]
    documents = [document_of(spec) for spec in specs]
    full = [f"{humanised(d.name)} {d.service} {d.description} {d.arguments}" for d in documents]
    for style in STYLES:
        asked = crossed.queries(style)
        found["plain BM25", style] = ranking.plain_bm25(specs, naive, asked)
        found["plain BM25, enriched", style] = ranking.plain_bm25(specs, full, asked)
    parts = bench.pick(full=fitting.PARTS, smoke=fitting.PARTS[1::4])
    lexical = {
        half: fitting.fit(specs, crossed.halves[half], None, parts).settings
        for half in bench.track((0, 1), "fitting without a model")
    }
    indexes = crossed.built(lexical, None)
    for style in STYLES:
        found["no model", style] = crossed.places(indexes, style)
    static = {
        half: fitting.fit(
            specs, crossed.halves[half], embedder, [(chosen.parts, chosen.saturation)]
        ).settings
        for half, chosen in lexical.items()
    }
    indexes = crossed.built(static, embedder)
    for style in STYLES:
        found["static vectors", style] = crossed.places(indexes, style)
    ablations(bench, crossed, static, indexes, embedder, found)
    if not bench.smoke:
        started = time.process_time()
        minilm = Kept(Remembered(ShortMiniLM(tokens=MINILM_TOKENS)))
        contextual = {
            half: fitting.fit(
                specs, crossed.halves[half], minilm, [(chosen.parts, chosen.saturation)], [FULL]
            ).settings
            for half, chosen in lexical.items()
        }
        found["MiniLM", FULL] = crossed.places(crossed.built(contextual, minilm), FULL)
        bench.arm("MiniLM, cost", cpu_seconds=time.process_time() - started,
                  texts_embedded=float(minilm.computed))  # fmt: skip
    known = {spec.name: spec for spec in specs}
    own = np.array([not repeats(one, known[one.tool]) for one in crossed.asking(FULL)])
    report_one_need(bench, found, own, {"no model": lexical, "static vectors": static}, margin)
    return static


MINILM_TOKENS = 48
"""Tokens of a tool's document that MiniLM reads: name, service and first sentences."""


class Remembered:
    """An embedder that computes a text once: a fit asks for the same requests many times."""

    def __init__(self, inner: Embedder) -> None:
        self.inner = inner
        self.name, self.dimensions, self.revision = inner.name, inner.dimensions, inner.revision
        self._known: dict[str, NDArray[np.float32]] = {}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts; those of a single one are remembered."""
        if len(texts) != 1:
            return self.inner.embed(texts)
        (text,) = texts
        if text not in self._known:
            self._known[text] = self.inner.embed(texts)
        return self._known[text]


def ablations(
    bench: Bench,
    crossed: Crossed,
    static: Mapping[int, Settings],
    indexes: Mapping[int, ToolIndex],
    embedder: Embedder,
    found: dict[tuple[str, str], NDArray[np.int64]],
) -> None:
    """Leave out one stage, one part of the documents or one leg at a time."""

    def without(stage: str) -> Callable[[Settings], Settings]:
        stages = tuple(name for name in STAGES if name != stage)
        return lambda settings: replace(settings, stages=stages)

    again = {
        f"without {stage}": without(stage) for stage in ("rewrite", "expand", "rerank", "fuse")
    }
    again["with synonyms at 0.7"] = lambda settings: replace(settings, synonym=0.7)
    again["without verbs of names"] = lambda settings: replace(settings, verb=0.0)
    again["without vectors"] = lambda settings: replace(settings, dense=0.0)
    for name, change in bench.track(list(again.items()), "leaving out stages"):
        for half, index in indexes.items():
            index.retune(change(static[half]))
        found[name, FULL] = crossed.places(indexes, FULL)
    for half, index in indexes.items():
        index.retune(static[half])
    parts: dict[str, Callable[[Settings], Settings]] = {
        "without enrich": without("enrich"),
        "names not split": lambda s: replace(s, parts=replace(s.parts, split_names=False)),
        "without service names": lambda s: replace(s, parts=replace(s.parts, service=0.0)),
        "without arguments": lambda s: replace(s, parts=replace(s.parts, arguments=0.0)),
    }
    for name, change in bench.track(list(parts.items()), "leaving out parts"):
        made = crossed.built({half: change(one) for half, one in static.items()}, embedder)
        found[name, FULL] = crossed.places(made, FULL)
    found["as a whole request (plan)", FULL] = planned(crossed, indexes)


def planned(crossed: Crossed, indexes: Mapping[int, ToolIndex]) -> NDArray[np.int64]:
    """Places where every request goes through "decompose", too, with the same number of tools."""
    out: list[int] = []
    for half in crossed.halves:
        for text, tool in ranking.queries(crossed.asking(FULL, half), FULL):
            names = indexes[1 - half].plan(text, 5).names
            out.append(names.index(tool) if tool in names else ranking.DEEP)
    return np.array(out)


def report_one_need(
    bench: Bench,
    found: Mapping[tuple[str, str], NDArray[np.int64]],
    own: NDArray[np.bool_],
    settings: Mapping[str, Mapping[int, Settings]],
    margin: float,
) -> None:
    """One arm for each way to search; ``own`` marks requests whose words no document repeats."""
    for name in dict.fromkeys(name for name, _ in found):
        metrics: dict[str, float | Interval] = {}
        for style in STYLES:
            if (name, style) in found:
                at = found[name, style]
                key = style.replace(" ", "_")
                metrics[f"recall_at_5_{key}"] = (
                    mean_interval(ranking.hits(at), seed=bench.seed)
                    if style == FULL
                    else ranking.recall(at, 5)
                )
                if style == FULL:
                    metrics["recall_at_5_own_words"] = ranking.recall(at[own], 5)
                    metrics["recall_at_1"] = ranking.recall(at, 1)
                    metrics["recall_at_20"] = ranking.recall(at, 20)
                    metrics["ndcg_at_10"] = ranking.ndcg(at)
        bench.arm(name, **metrics)
    for kind, halves in settings.items():
        for half, chosen in halves.items():
            bench.arm(
                f"weights for {kind}, fitted on half {half}",
                name_words=chosen.parts.name, service_words=chosen.parts.service,
                argument_words=chosen.parts.arguments, b=chosen.saturation.b, dense=chosen.dense,
                verb=chosen.verb, synonym=chosen.synonym,
            )  # fmt: skip
    base = ranking.hits(found["plain BM25", FULL])
    alone = ranking.hits(found["no model", FULL])
    static = ranking.hits(found["static vectors", FULL])
    bench.verdict(
        "recall@5 without any model", mean_interval(alone, seed=bench.seed), at_least=0.80
    )
    bench.verdict(
        "points of recall@5 over plain BM25, without any model",
        difference_interval(alone, base, paired=True, seed=bench.seed),
        at_least=0.15 * margin,
    )
    bench.verdict(
        "static vectors add to the search without a model",
        difference_interval(static, alone, paired=True, seed=bench.seed),
        at_least=0.0,
    )
    if ("MiniLM", FULL) in found:
        best = ranking.hits(found["MiniLM", FULL])
        bench.verdict("recall@5 with MiniLM", mean_interval(best, seed=bench.seed), at_least=0.85)
    with bench.plot("one-need", "Recall@5 of one tool, and what leaving out costs") as (axes,):
        names = list(dict.fromkeys(name for name, _ in found))[::-1]
        values = [ranking.recall(found[name, FULL], 5) for name in names]
        axes.barh(names, values)
        axes.set_xlim(min(values) - 0.05, 1)
        axes.tick_params(labelsize=7)
        for row, value in enumerate(values):
            axes.text(value + 0.005, row, f"{value:.3f}", va="center", fontsize=7)
