"""Prompts around moved documents: in a queue that exact caching cannot keep up with, and alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from moving.serving import ARMS, BASE, OURS, Arm, opened
from moving.texts import QUESTIONS, Corpus, note
from moving.timed import Arrival, Play, Served, Timed, play
from shoal.core.claims import Bench
from shoal.core.stats import Interval
from shoal.engine.compute import compute
from shoal.engine.kvshare.sharing import KVShare
from shoal.models.loading import Model

ANSWER = 16  # tokens
EDITS = (
    "This paragraph was added later by somebody else.",
    "Not everybody agrees with what follows here.",
    "The reader should keep in mind when this was written.",
)


def arrivals_of(bench: Bench, corpus: Corpus, count: int, gap: float, answer: int) -> list[Arrival]:
    """Requests of three tenants in Poisson order, over twelve documents."""
    draw = bench.generator("trace")
    ranks = draw.permutation(12)
    weights = 1 / np.arange(1, 13)
    found, now = [], 0.0
    for _ in range(count):
        now += float(draw.exponential(gap))
        tenant = int(draw.integers(3))
        prompt = corpus.before(tenant, note(draw))
        chosen = draw.choice(ranks, draw.integers(1, 4), replace=False, p=weights / weights.sum())
        for rank in chosen.tolist():
            text = corpus.texts[40 + rank]
            prompt += edited(corpus, text, draw) if draw.random() < 0.2 else text
        prompt += corpus.after(QUESTIONS[draw.integers(len(QUESTIONS))])
        found.append(Arrival(now, tenant, prompt, answer))
    return found


def edited(corpus: Corpus, text: tuple[int, ...], draw: np.random.Generator) -> tuple[int, ...]:
    """The text with a sentence put in behind some sentence of it."""
    stop = corpus.tokens(".", special=False)[0]
    ends = [i + 1 for i, token in enumerate(text) if token == stop] or [0]
    at = ends[draw.integers(len(ends))]
    added = corpus.tokens(f" {EDITS[draw.integers(len(EDITS))]}", special=False)
    return (*text[:at], *added, *text[at:])


def trace(bench: Bench, model: Model, corpus: Corpus, count: int, answer: int) -> None:
    """All arms on the same arrivals."""
    probe_engine, _ = opened(model, Arm())
    alone = arrivals_of(
        bench, corpus, bench.pick(full=6, smoke=2), 1e6, answer
    )  # one at a time; the first one warms up
    probing = Play(probe_engine, alone, reuse=False)
    compute.call(lambda: play(probing))
    paired = list(zip(probing.served, alone, strict=True))
    gap = fmean(one.last - each.at for one, each in paired[1:])
    arrivals = arrivals_of(bench, corpus, count, gap / 2, answer)
    arms = bench.pick(full=list(ARMS), smoke=[BASE, OURS])
    engines = {name: opened(model, ARMS[name]) for name in arms}
    results = beside(engines, arrivals)
    for name, (_, kvshare) in engines.items():
        report(bench, name, arrivals, results[name], results[BASE], kvshare)
    base, ours = (waits(arrivals, results[name]) for name in (BASE, OURS))
    bench.verdict(
        "moved documents: TTFT p50 of exact prefixes over that of KVShare",
        quantile_ratio(base, ours, 0.5, bench.seed),
        at_least=2.0,
    )
    p95 = quantile_ratio(base, ours, 0.95, bench.seed)
    bench.verdict("moved documents: TTFT p95, the same", p95, at_least=1.0)
    if "KVShare, arrival order" in results:
        fifo = waits(arrivals, results["KVShare, arrival order"])
        bench.verdict(
            "hit rate with ageing: TTFT p50 in order of arrival over its own",
            quantile_ratio(fifo, ours, 0.5, bench.seed),
            at_least=1.0,
        )
    with bench.plot("ttft", "Seconds (CPU) to the first token on the trace") as (axes,):
        for name, one in results.items():
            seconds = np.sort(waits(arrivals, one))
            axes.plot(seconds, np.linspace(0, 1, len(seconds)), label=name)
        axes.set(xscale="log", xlabel="seconds to the first token", ylabel="share of requests")
        axes.legend(fontsize=7)


def unhurried(bench: Bench, model: Model, corpus: Corpus, count: int) -> None:
    """The same kind of requests one at a time: what moving saves where nobody queues."""
    alone = arrivals_of(bench, corpus, count, 1e6, 1)
    found = beside({name: opened(model, ARMS[name]) for name in (BASE, OURS)}, alone)
    first = {name: waits(alone, served) for name, served in found.items()}
    warm = np.array([moves(one) for one in found[OURS]])
    for name, seconds in first.items():
        bench.arm(
            f"one at a time: {name}",
            ttft_p50_s=float(np.quantile(seconds, 0.5)),
            ttft_p95_s=float(np.quantile(seconds, 0.95)),
            ttft_p50_s_where_ours_moves=float(np.quantile(seconds[warm], 0.5)),
            **shares(found[name]),
        )
    bench.verdict(
        "one at a time, without a queue: TTFT p50 of exact prefixes over that of KVShare",
        quantile_ratio(first[BASE], first[OURS], 0.5, bench.seed),
        at_least=2.0,
    )


def beside(
    engines: Mapping[str, tuple[Timed, KVShare | None]], arrivals: Sequence[Arrival]
) -> dict[str, list[Served]]:
    """What every engine made of the same arrivals; each is closed."""
    plays = {
        name: Play(engine, arrivals, reuse=kvshare is not None)
        for name, (engine, kvshare) in engines.items()
    }
    compute.call(lambda: play(*plays.values()))
    for engine, _ in engines.values():
        asyncio.run(engine.close())
    return {name: one.served for name, one in plays.items()}


def moves(one: Served) -> bool:
    """Whether anything of a prompt was moved."""
    return one.done is not None and one.done.usage.approx_tokens > 0


def shares(served: Sequence[Served]) -> dict[str, float]:
    """Of all prompt tokens: found exactly, moved, and moved and computed again."""
    used = [one.done.usage for one in served if one.done is not None]
    asked = sum(usage.prompt_tokens for usage in used)
    return {
        "exact_share": sum(usage.shared_tokens for usage in used) / asked,
        "moved_share": sum(usage.approx_tokens for usage in used) / asked,
        "repaired_share": sum(usage.repaired_tokens for usage in used) / asked,
    }


def waits(arrivals: Sequence[Arrival], served: Sequence[Served]) -> NDArray[np.float64]:
    """Seconds to the first token, [requests]."""
    return np.array([one.first - each.at for one, each in zip(served, arrivals, strict=True)])


def report(
    bench: Bench,
    name: str,
    arrivals: list[Arrival],
    served: list[Served],
    base: list[Served],
    kvshare: KVShare | None,
) -> None:
    """One arm's figures."""
    seconds = waits(arrivals, served)
    done = [one.done for one in served if one.done is not None]
    dense = [one.done.tokens for one in base if one.done is not None]
    metrics: dict[str, float] = {
        "ttft_p50_s": float(np.quantile(seconds, 0.5)),
        "ttft_p95_s": float(np.quantile(seconds, 0.95)),
        "tpot_ms": fmean(
            (one.last - one.first) / (each.answer - 1) * 1e3
            for one, each in zip(served, arrivals, strict=True)
        ),
        "requests_per_s": len(served) / (max(one.last for one in served) - arrivals[0].at),
        **shares(served),
        "first_token_equal": fmean(a.tokens[0] == b[0] for a, b in zip(done, dense, strict=True)),
        "rouge_l_to_dense": fmean(rouge_l(a.tokens, b) for a, b in zip(done, dense, strict=True)),
        "store_mb": 0.0 if kvshare is None else kvshare.store.bytes / 1e6,
    }
    for tenant in range(3):
        own = seconds[[each.tenant == tenant for each in arrivals]]
        if len(own):
            metrics[f"tenant_{tenant}_ttft_p50_s"] = float(np.quantile(own, 0.5))
            metrics[f"tenant_{tenant}_ttft_p95_s"] = float(np.quantile(own, 0.95))
    bench.arm(f"trace: {name}", **metrics)


def rouge_l(one: Sequence[int], other: Sequence[int]) -> float:
    """F-measure of the longest common subsequence of tokens."""
    row = [0] * (len(other) + 1)
    for token in one:
        last = row
        row = [0]
        for j, own in enumerate(other):
            row.append(last[j] + 1 if token == own else max(row[-1], last[j + 1]))
    return 2 * row[-1] / (len(one) + len(other))


def quantile_ratio(
    base: NDArray[np.float64], ours: NDArray[np.float64], level: float, seed: int
) -> Interval:
    """Ratio of quantiles over the same requests, with a percentile bootstrap over requests."""
    draw = np.random.default_rng(seed)
    index = draw.integers(0, len(base), (2_000, len(base)))
    ratios = np.quantile(base[index], level, axis=1) / np.quantile(ours[index], level, axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    estimate = np.quantile(base, level) / np.quantile(ours, level)
    return Interval(float(estimate), float(low), float(high))
