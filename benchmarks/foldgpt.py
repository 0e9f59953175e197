"""Depth that folds: which ranking removes the right blocks, and whether folding or removing pays.

    shoal reproduce foldgpt [--smoke]

Gates that are learned together beside Block Influence, the last blocks, optipfair and a greedy
search by measured loss, all cured alike; folding beside removing at equal bytes; the cure without
its parts; a folded model in the engine. On SmolLM2-135M, and wider on a small Llama over bytes that
is trained on the spot. "FoldGPT: Simple and Effective Large Language Model Compression Scheme"
(arXiv 2407.00928).
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from folding import serving
from folding.beds import Bed, both, small, smollm
from folding.contest import (
    FOLDED,
    GATES,
    INFLUENCE,
    LABELS,
    LAST,
    MEASURED,
    NO_TAIL,
    OPTIPFAIR,
    Contest,
    Terms,
    hold,
    judge,
)
from folding.quality import knowledge
from shoal.core.claims import Bench
from shoal.engine.local import LocalEngine
from shoal.models.decoder import Decoder, causal_attend
from shoal.models.depth.arrange import arrange
from shoal.models.depth.cure import CureOptions
from shoal.models.depth.footprint import footprint
from shoal.models.depth.gates import GateOptions
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.store import PlanFile, content_of, save_plan
from shoal.models.loading import Model


def run(bench: Bench) -> None:
    """The small model first, then SmolLM2-135M, then the engine."""
    bed = small(bench)
    terms = Terms(
        counts=bench.pick(full=(2, 3), smoke=(1,)),
        gates=GateOptions(steps=bench.pick(full=50, smoke=12), batch=16),
        seeds=bench.pick(full=(0, 1, 2), smoke=(0,)),
        cure=CureOptions(
            tokens=bench.pick(full=16_000, smoke=3_000), batch=bench.pick(full=16, smoke=8)
        ),
        rows=bench.pick(full=48, smoke=8),
        peers=not bench.smoke,
        parts={"no tail": NO_TAIL, "labels alone": LABELS},
    )
    wide = hold(bench, bed, terms)
    judge(wide)
    _identity(bench, bed)
    contests = [wide]
    if bench.smoke:
        bench.workload = _told(bench, contests)
        _draw(bench, contests)
        return
    big = smollm(bench)
    narrow = hold(
        bench,
        big,
        Terms(
            counts=(3, 6),
            gates=GateOptions(steps=32),
            seeds=(0,),
            cure=CureOptions(tokens=2_048),
            rows=2,
            ablated=(GATES,),
        ),
    )
    judge(narrow)
    _identity(bench, big)
    contests.append(narrow)
    _knowledge(bench, narrow)
    _serving(bench, narrow)
    bench.workload = _told(bench, contests)
    _draw(bench, contests)


def _identity(bench: Bench, bed: Bed) -> None:
    """A plan that changes nothing gives the same bits, and no plan takes a byte."""
    ids = bed.held_out["jargon"][0]
    same = arrange(bed.decoder, DepthPlan.whole(bed.layers))
    with torch.inference_mode():
        found, expected = (
            decoder.logits(decoder.forward(ids, torch.arange(len(ids)), causal_attend))
            for decoder in (same, bed.decoder)
        )
    bench.verdict(
        f"{bed.name}: the plan that changes nothing gives other logits in so many places",
        int((found != expected).sum()),
        at_most=0,
    )
    known = {tensor.data_ptr() for tensor in bed.decoder.weights.values()}
    plan = DepthPlan.whole(bed.layers).merged(1, 1).without([3])
    own = [t for t in arrange(bed.decoder, plan).weights.values() if t.data_ptr() not in known]
    bench.verdict(
        f"{bed.name}: bytes that a plan of shared and removed blocks adds",
        sum(tensor.nbytes for tensor in own),
        at_most=0,
    )


def _knowledge(bench: Bench, contest: Contest) -> None:
    """What is left of three benchmarks' items."""
    model, count = contest.bed.model, contest.terms.counts[0]
    assert model is not None
    for name in ("original", contest.name(count, GATES), contest.name(count, FOLDED)):
        treated = contest.treated.get(name)
        decoder = contest.bed.decoder if treated is None else treated.decoder
        engine = LocalEngine(_with(model, decoder), kv_bytes=256 << 20)
        bench.arm(f"{name}, items", **knowledge(engine, 10, bench.seed))
        asyncio.run(engine.close())


def _with(model: Model, decoder: Decoder) -> Model:
    """The model with a decoder of this run."""
    name = f"{model.fingerprint}-{id(decoder)}"
    return replace(model, decoder=decoder, config=decoder.config, fingerprint=name)


def _serving(bench: Bench, contest: Contest) -> None:
    """A folded and a shortened model beside their parent."""
    model, count = contest.bed.model, contest.terms.counts[1]
    assert model is not None
    plans = {
        "folded": contest.plans[contest.name(count, FOLDED)],
        "removed": contest.plans[contest.name(count, GATES)],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folders = {}
        for name, plan in plans.items():
            folders[name] = Path(temporary) / name
            save_plan(folders[name], PlanFile(1, "smollm2-135m", content_of(model), plan))
        held = {name: serving.resident(str(folder)) for name, folder in folders.items()}
        held["parent"] = serving.resident("smollm2-135m")
        two = serving.resident(*map(str, folders.values()))
    base = LocalEngine(model, kv_bytes=64 << 20)
    engines = {"parent": base, **{name: base.planned(plan) for name, plan in plans.items()}}
    seconds = serving.speeds(engines, rounds=4)
    whole = footprint(model.decoder)
    for name, engine in engines.items():
        found = footprint(engine.model.decoder)
        bench.arm(
            f"engine, {contest.bed.name}, {count} blocks {name}"
            if name != "parent"
            else "engine, parent",
            block_bytes=found.blocks,
            total_bytes=found.total,
            process_bytes=held[name],
            prefill_seconds=seconds["prefill"][name].seconds(),
            decode_seconds=seconds["decode"][name].seconds(),
            prefill_cpu_seconds=seconds["prefill"][name].seconds("cpu"),
            decode_cpu_seconds=seconds["decode"][name].seconds("cpu"),
            kv_bytes_a_token=engine.token_bytes,
        )
    layers = model.config.layers
    bench.verdict(
        "bytes of a folded model's blocks beside its parent's",
        footprint(engines["folded"].model.decoder).blocks / whole.blocks,
        at_most=(layers - count) / layers + 0.01,
    )
    bench.verdict(
        "a process with two plans holds so many times the bytes of one with the larger alone",
        two / max(held["folded"], held["removed"]),
        at_most=1.1,
    )
    for name, what, bound in (
        ("folded", "decode", 1.0),
        ("folded", "prefill", 1.05),
        ("removed", "decode", 0.95),
        ("removed", "prefill", 0.95),
    ):
        ratio = seconds[what]["parent"].times_faster_than(seconds[what][name], seed=bench.seed)
        bench.verdict(f"{name}: seconds to {what} over the parent's", ratio, at_most=bound)


def _told(bench: Bench, contests: list[Contest]) -> str:
    """What was measured, and which blocks each method chose."""
    lines = [
        "Text to fit to: nine tenths of the jargon file's chapters and of Python's language "
        "reference. Perplexity on the other tenth of the former and on the constitution, which "
        "nothing was fitted to; intervals are of paired rows. Every plan of a model got the same "
        "cure."
    ]
    for contest in contests:
        terms = contest.terms
        lines.append(
            f"{contest.bed.name}: {terms.cure.tokens:,} tokens of cure, gates of "
            f"{terms.gates.steps} steps of {terms.gates.batch * contest.bed.fitted_NS.shape[1]} "
            "tokens."
        )
        if contest.missing:
            lines.append(f"optipfair's ranking is missing: {contest.missing}.")
        for count in terms.counts:
            chosen = []
            for method in (GATES, INFLUENCE, OPTIPFAIR, LAST, MEASURED, FOLDED):
                plan = contest.plans.get(contest.name(count, method))
                if plan is not None:
                    blocks = map(str, plan.removed or [f"{m.left}={m.right}" for m in
                                 contest.foldings[max(terms.counts)].merges[:count]])  # fmt: skip
                    chosen.append(f"{method} {' '.join(blocks)}")
            lines.append(f"{count} blocks by {'; '.join(chosen)}.")
    return " ".join(lines)


def _draw(bench: Bench, contests: list[Contest]) -> None:
    """Gates while they learn, and losses before and after the cure."""
    caption = "Gates of every block while they learn (left to right: each model's first target)"
    with bench.plot("gates", caption, panels=len(contests)) as axes:
        for panel, contest in zip(axes, contests, strict=True):
            count = contest.terms.counts[0]
            gates_PN = contest.learned[count][0].gates_PN
            closed = contest.learned[count][0].lowest(count, protect=contest.bed.edges)
            for index, line in enumerate(gates_PN.T.tolist()):
                colour = "tab:red" if index in closed else "0.7"
                panel.plot(line, color=colour, label=f"block {index}" if index in closed else None)
            panel.set(title=contest.bed.name, xlabel="step", ylabel="gate", ylim=(-0.03, 1.03))
            panel.legend(fontsize=7)
    caption = "Block Influence: one minus the cosine of what goes into a block and what comes out"
    with bench.plot("influence", caption, panels=len(contests)) as axes:
        for panel, contest in zip(axes, contests, strict=True):
            panel.bar(range(contest.bed.layers), contest.influence, color="tab:blue")
            panel.set(title=contest.bed.name, xlabel="block", ylabel="1 - cosine", yscale="log")
    caption = "Nats a token above the original, before the cure (light) and after it"
    with bench.plot("losses", caption, panels=len(contests)) as axes:
        methods = (GATES, INFLUENCE, LAST, OPTIPFAIR, MEASURED, FOLDED)
        for panel, contest in zip(axes, contests, strict=True):
            base = both(contest.original).mean()
            for place, count in enumerate(contest.terms.counts):
                for index, method in enumerate(methods):
                    treated = contest.treated.get(contest.name(count, method))
                    if treated is None:
                        continue
                    x = place + index / (len(methods) + 2)
                    width = 0.9 / (len(methods) + 2)
                    raw, cured = both(treated.before).mean(), both(treated.after).mean()
                    panel.bar(x, raw - base, width, color=f"C{index}", alpha=0.3)
                    panel.bar(x, cured - base, width, color=f"C{index}",
                              label=method if place == 0 else None)  # fmt: skip
            shown = [t for name, t in contest.treated.items() if LAST not in name]  # off the scale
            top = max(both(t.after).mean() - base for t in shown)
            panel.set(
                title=contest.bed.name,
                ylim=(0, 2.2 * top),
                ylabel="nats a token",
                xticks=[place + 0.3 for place in range(len(contest.terms.counts))],
                xticklabels=[f"{c} blocks" for c in contest.terms.counts],
            )
            panel.legend(fontsize=7)
