"""Workload C: recall, time, memory and changes as the catalogue grows to its whole size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.core.claims import Bench
from shoal.core.records import ToolSpec
from shoal.models.embedding import Embedder
from shoal.tools import sources
from shoal.tools.retrieval import prompt
from shoal.tools.retrieval.documents import operation_of
from shoal.tools.retrieval.index import ToolIndex
from shoal.tools.retrieval.settings import Settings
from toolbench import ranking
from toolbench.corpus import FULL, Example


def growing(
    bench: Bench,
    specs: Sequence[ToolSpec],
    some: Sequence[Example],
    embedder: Embedder,
    settings: Settings,
    margin: float,
) -> None:
    """Workload C: the same requests among ever more tools."""
    every: dict[str, ToolSpec] = {spec.name: spec for spec in specs}
    if not bench.smoke:
        for name in ("google", "github"):
            every |= {spec.name: spec for spec in sources.load(name)}
    unseen = [one for one in some if one.half == 1 and one.text(FULL)]
    rng = bench.generator("sizes")
    chosen = [unseen[row] for row in rng.permutation(len(unseen))[: bench.pick(full=400, smoke=60)]]
    others = [name for name in every if name not in {one.tool for one in chosen}]
    others = [others[row] for row in rng.permutation(len(others))]
    sizes = bench.pick(full=(100, 500, 2_000, 5_000, 19_796, len(every)), smoke=(100, len(every)))
    ks = (1, 3, 5, 10, 20)
    at: dict[tuple[str, int], NDArray[np.int64]] = {}
    for size in bench.track(sizes, "growing the catalogue"):
        needed = list(dict.fromkeys(one.tool for one in chosen))[:size]
        names = [*needed, *others[: size - len(needed)]]
        asked = [(q, tool) for q, tool in ranking.queries(chosen, FULL) if tool in set(needed)]
        here = [every[name] for name in names]
        index = ToolIndex(settings, embedder=embedder)
        index.add(here)
        started = time.perf_counter()
        at["enriched", size] = ranking.places(index, asked)
        ms = (time.perf_counter() - started) * 1e3 / len(asked)
        naive = [f"{operation_of(spec.name)}: {spec.description}" for spec in here]
        at["plain BM25", size] = ranking.plain_bm25(here, naive, asked)
        tools = index.search(asked[0][0], max(ks))
        for arm in ("plain BM25", "enriched"):
            metrics = {f"recall_at_{k}": ranking.recall(at[arm, size], k) for k in ks}
            if arm == "enriched":
                metrics["ms_per_query"] = ms
                for k in (5, 20):
                    lines = prompt.block(index.spec(tool.name) for tool in tools[:k])
                    metrics[f"prompt_tokens_of_{k}"] = float(prompt.tokens(lines))
            bench.arm(f"{size:,} tools: {arm}", **metrics)
    lead = [
        ranking.recall(at["enriched", size], 5) - ranking.recall(at["plain BM25", size], 5)
        for size in sizes
    ]
    bench.verdict(
        "points by which the lead over plain BM25 grows with the catalogue",
        lead[-1] - lead[0],
        at_least=0.05 * margin,
    )
    with bench.plot("sizes", "Recall over the size of the catalogue", panels=2) as panels:
        for axes, arm in zip(panels, ("plain BM25", "enriched"), strict=True):
            for k in ks:
                values = [ranking.recall(at[arm, size], k) for size in sizes]
                axes.plot(sizes, values, marker="o", label=f"first {k}")
            axes.set(title=arm, xscale="log", xlabel="tools", ylabel="recall", ylim=(0, 1.02))
            axes.legend(fontsize=7)


def whole(bench: Bench, some: Sequence[Example]) -> None:
    """Time, memory and changes of the whole catalogue, in a process of its own on one core."""
    started = time.perf_counter()
    tools = 0
    for name in bench.track(sources.NAMES, "importing"):
        catalogue = sources.load(name)
        tools += len(catalogue)
        catalogue.close()
    bench.arm("importing, as the cache was", seconds=time.perf_counter() - started, tools=tools)
    texts = [one.text(style) for one in some for style in (FULL, "title") if one.text(style)]
    rows = bench.generator("timing").permutation(len(texts))[:1_500]
    given = {"queries": [texts[row] for row in rows], "names": sources.NAMES}
    started = time.perf_counter()
    _in_own_process({**given, "build": True})
    built = time.perf_counter() - started
    facts = json.loads(_in_own_process({**given, "build": False}))
    search, add = np.array(facts["search_ms"]), np.array(facts["add_ms"])
    p50, p95, p99 = (float(value) for value in np.percentile(search, (50, 95, 99)))
    added = float(np.percentile(add, 95))
    bench.arm(
        "the whole catalogue", tools=facts["tools"], search_p50_ms=p50, search_p95_ms=p95,
        search_p99_ms=p99, add_p50_ms=float(np.median(add)), add_p95_ms=added,
        add_most_ms=float(add.max()), remove_p95_ms=float(np.percentile(facts["remove_ms"], 95)),
        sync_seconds=facts["sync_seconds"], sync_tools=facts["sync_tools"],
        index_megabytes=facts["index_bytes"] / 1e6, resident_megabytes=facts["resident_mb"],
        open_seconds=facts["open_seconds"], build_seconds=built,
    )  # fmt: skip
    bench.verdict("tools in the whole catalogue", facts["tools"], at_least=36_000)
    bench.verdict("median milliseconds of a search among all tools", p50, at_most=5.0)
    bench.verdict("95th percentile of these milliseconds", p95, at_most=15.0)
    bench.verdict("megabytes that the index adds to a process", facts["resident_mb"], at_most=300.0)
    bench.verdict("95th percentile of milliseconds to add a tool", added, at_most=10.0)
    bench.verdict("seconds to sync when 1 % of tools changed", facts["sync_seconds"], at_most=1.0)
    with bench.plot("latency", "Milliseconds of 1,500 searches among all tools") as (axes,):
        axes.hist(np.clip(search, 0, 20), bins=80)
        for value, label in ((p50, "p50"), (p95, "p95")):
            axes.axvline(value, color="black", linestyle=":")
            axes.text(value, axes.get_ylim()[1] * 0.9, f" {label} {value:.1f} ms", fontsize=8)
        axes.set(xlabel="milliseconds", ylabel="searches")


def _in_own_process(given: dict[str, Any]) -> str:
    script = Path(__file__).parent / "large.py"
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(given), capture_output=True, text=True,
        env={**os.environ, **one}, check=True,
    )  # fmt: skip
    return done.stdout
