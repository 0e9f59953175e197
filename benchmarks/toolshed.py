"""Which of 37,985 tools does a request need? Enriched documents, two legs and rules, step by step.

    shoal reproduce toolshed [--smoke]

A: one need. Queries are the 1,386 examples with a text that people wrote for 1,258 operations of
AWS; they are in no indexed document. Weights are fitted on one half of the services and tried on
the other, both ways. B: three needs in one request, with equally many tools for every arm. C: from
100 tools to the whole catalogue: recall, time, memory, changes. D: a small model in the loop.
Toolshed: "Scale Tool-Equipped Agents with Advanced RAG-Tool Fusion and Tool Knowledge Bases"
(arXiv 2410.14594).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.core.claims import Bench
from shoal.core.records import ToolSpec
from shoal.core.stats import difference_interval, mean_interval
from shoal.models.embedding import Embedder, Kept, open_embedder
from shoal.tools.retrieval.index import ToolIndex
from shoal.tools.retrieval.settings import Settings
from toolbench import corpus, model, multi, ranking
from toolbench.corpus import FULL, Example
from toolbench.one_need import one_need
from toolbench.sizes import growing, whole

SMOKE_SERVICES = (
    *("s3", "sqs", "iam", "ec2", "kms", "ses", "ecs", "efs", "glacier", "autoscaling", "batch"),
    "dynamodb",
)
MARGIN = {"full": 1.0, "smoke": 0.5}
"""Smoke asks for half of a margin, or allows twice: its catalogue is a tenth, its requests few."""


def run(bench: Bench) -> None:
    specs = corpus.operations(SMOKE_SERVICES if bench.smoke else None)
    some = corpus.examples(specs)
    if bench.smoke:
        order = bench.generator("queries").permutation(len(some))[:150]
        some = [some[row] for row in sorted(order)]
    margin = MARGIN["smoke" if bench.smoke else "full"]
    embedder = Kept(open_embedder("wordllama"))
    bench.workload = (
        f"{len(specs):,} operations of AWS and {len(some):,} examples of their use as requests"
        + ("." if bench.smoke else "; 37,985 operations with those of Google and GitHub.")
    )
    settings = one_need(bench, specs, some, embedder, margin)
    several_needs(bench, specs, some, embedder, settings[0], margin)
    growing(bench, specs, some, embedder, settings[0], margin)
    if not bench.smoke:
        whole(bench, some)
    in_the_loop(bench, specs, some, embedder, settings[0])


def several_needs(
    bench: Bench,
    specs: Sequence[ToolSpec],
    some: Sequence[Example],
    embedder: Embedder,
    settings: Settings,
    margin: float,
) -> None:
    """Workload B, on the half that the settings were not fitted on."""
    index = ToolIndex(settings, embedder=embedder)
    index.add(specs)
    unseen = [one for one in some if one.half == 1]
    results: dict[tuple[str, str, int], NDArray[np.float64]] = {}
    for kind in ("titles", "titles and descriptions"):
        wishes = multi.wishes(
            unseen, bench.pick(full=300, smoke=60), bench.generator("wishes", kind),
            described=kind != "titles",
        )  # fmt: skip
        for arm in bench.track(("single", "rules", "oracle"), f"three needs, {kind}"):
            for budget in multi.BUDGETS:
                results[kind, arm, budget] = multi.recalls(index, wishes, arm, budget)
            bench.arm(
                f"three needs ({kind}): {arm}",
                **{f"recall_of_{b}": float(results[kind, arm, b].mean()) for b in multi.BUDGETS},
            )
    single, rules, oracle = (results["titles", arm, 6] for arm in ("single", "rules", "oracle"))
    bench.verdict(
        "points that splitting adds to three needs, with 6 tools in all",
        difference_interval(rules, single, paired=True, seed=bench.seed),
        at_least=0.20 * margin,
    )
    bench.verdict(
        "points that rules stay behind the true split, with 6 tools in all",
        difference_interval(oracle, rules, paired=True, seed=bench.seed),
        at_most=0.05 / margin,
    )
    with bench.plot("several-needs", "Recall of three tools at equal budgets", panels=2) as panels:
        kinds = ("titles", "titles and descriptions")
        for axes, kind in zip(panels, kinds, strict=True):
            for arm in ("single", "rules", "oracle"):
                values = [results[kind, arm, budget].mean() for budget in multi.BUDGETS]
                axes.plot(multi.BUDGETS, values, marker="o", label=arm)
            axes.set(title=kind, xlabel="tools in all", ylabel="recall", ylim=(0, 1))
            axes.legend()


def in_the_loop(
    bench: Bench,
    specs: Sequence[ToolSpec],
    some: Sequence[Example],
    embedder: Embedder,
    settings: Settings,
) -> None:
    """Workload D: the packaged model's questions and choices, on a slice of the catalogue."""
    if bench.smoke:
        return
    from shoal.engine.local import LocalEngine

    rng = bench.generator("model")
    unseen = [one for one in some if one.half == 1 and one.text(FULL)]
    chosen = [unseen[row] for row in rng.permutation(len(unseen))[:40]]
    needed = {one.tool for one in chosen}
    near = [spec for spec in specs if spec.name not in needed and spec.name.split(".")[1] in
            {name.split(".")[1] for name in needed}]  # fmt: skip
    others = [near[row] for row in rng.permutation(len(near))[: 300 - len(needed)]]
    slice_ = [spec for spec in specs if spec.name in needed] + others

    async def work() -> model.InTheLoop:
        engine = LocalEngine.open()
        try:
            return await model.measured(engine, slice_, chosen, settings, embedder)
        finally:
            await engine.close()

    found = asyncio.run(work())
    for arm, at in found.places.items():
        seconds = {
            "with the model's questions": found.question_seconds,
            "reranked by the model": found.choice_seconds * len(chosen),
            "both orders together": found.choice_seconds * len(chosen),
        }.get(arm, 0.0)
        bench.arm(
            f"300 tools: {arm}", recall_at_1=mean_interval(ranking.hits(at, 1), seed=bench.seed),
            recall_at_5=ranking.recall(at, 5), ndcg_at_10=ranking.ndcg(at), model_seconds=seconds,
        )  # fmt: skip
