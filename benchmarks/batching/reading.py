"""Documents with questions on the engine: every arm at one KV budget, then over budgets."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from batching.arms import ARMS, LPM, LRU, MULTI, NONE, SINGLE, Answers, answered, rows_a_step, texts
from batching.conversations import Tokens
from shoal.core.claims import Bench, alternate
from shoal.core.protocols import Request, Sampling, Segment
from shoal.engine.batch.partition import exact
from shoal.engine.batch.prefixes import find_prefixes, saving
from shoal.engine.compute import compute
from shoal.engine.scheduler import Meter
from shoal.models.loading import Model, load

QUESTION = 30  # tokens


@dataclass(frozen=True, slots=True)
class Reading:
    """So many questions about each of so many documents; lengths in tokens."""

    documents: int
    questions: int
    length: int
    answer: int


def reading_job(bench: Bench, model: Model, job: Reading) -> list[Request]:
    """Questions about documents, shuffled."""
    asked = list(texts(model, job.documents + 1, job.length))
    words = asked.pop()
    draw = bench.generator("questions")
    sampling = Sampling(max_tokens=job.answer, ignore_eos=True)
    prompts = [
        [*text, *draw.permutation(words)[:QUESTION].tolist()]
        for text in asked
        for _ in range(job.questions)
    ]
    shuffled = [prompts[place] for place in draw.permutation(len(prompts))]
    return [Request((Segment(tokens=tuple(prompt)),), sampling) for prompt in shuffled]


def budgets(bench: Bench, model: Model, reading: Reading) -> None:
    """All arms at a KV budget of four documents (two in a smoke run), then over budgets."""
    requests = reading_job(bench, model, reading)
    tree = find_prefixes([_tokens(request) for request in requests])
    of_document = reading.length + QUESTION
    slots = bench.pick(full=4, smoke=2) * of_document
    last: dict[str, tuple[Answers, Meter]] = {}

    def job(name: str) -> Callable[[], None]:
        def work() -> None:
            last[name] = answered(model, ARMS[name], requests, slots)

        return work

    answered(model, ARMS[MULTI], requests[:8], slots)  # warms up
    seconds = alternate({name: job(name) for name in ARMS}, rounds=2, warmup=0)
    near = alternate(  # what computes as many tokens takes more rounds to tell apart
        {name: job(name) for name in (LPM, SINGLE, MULTI)},
        rounds=bench.pick(full=6, smoke=2),
        warmup=0,
    )
    same = last[NONE][0]
    for name, timing in (seconds | near).items():
        answers, meter = last[name]
        alike = sum(a.tokens == b.tokens for a, b in zip(answers, same, strict=True))
        bench.arm(
            f"B: {name}",
            wall_seconds=timing.seconds(),
            cpu_seconds=timing.seconds("cpu"),
            prefill_tokens=meter.prefill_tokens,
            saving_percent=saving(meter.prefill_tokens, tree.logical_tokens),
            tokens_a_step=rows_a_step(meter),
            kv_tokens_at_most=meter.high_water,
            same_as_unshared_percent=100 * alike / len(same),
        )
    beyond = last[MULTI][1].prefill_tokens - tree.tokens
    bench.verdict("B: prefill tokens beyond those of the tree", beyond, at_least=0, at_most=0)
    for name, timings, least in ((NONE, seconds, 3.0), (LRU, seconds, 2.0), (LPM, near, 1.0)):
        for clock in ("wall", "cpu"):
            times = timings[MULTI].times_faster_than(timings[name], clock, seed=bench.seed)
            bench.verdict(f"B: times faster than {name}, {clock}", times, at_least=least)
    begun = time.perf_counter()
    exact(tree)
    share = (time.perf_counter() - begun) / seconds[MULTI].seconds().estimate
    bench.verdict("B: percent of the run that the exact partition takes", 100 * share, at_most=0.01)
    if not bench.smoke:
        over_budgets(bench, model, requests, of_document)


def over_budgets(bench: Bench, model: Model, requests: Sequence[Request], of_document: int) -> None:
    """Time and prefill tokens of the sharing arms over KV budgets, once each."""
    shown = (LRU, LPM, MULTI)
    points: dict[str, list[tuple[int, float, int]]] = {name: [] for name in shown}
    for held, name in bench.track(list(itertools.product((2, 8, 16), shown)), "KV budgets"):
        begun, cpu = time.perf_counter(), time.process_time()
        _, meter = answered(model, ARMS[name], requests, held * of_document)
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
        points[name].append((held, wall, meter.prefill_tokens))
        bench.arm(
            f"B: {name}, {held} documents fit",
            wall_seconds_once=wall,
            cpu_seconds_once=cpu,
            prefill_tokens=meter.prefill_tokens,
        )
    with bench.plot("budgets", "Time and prefill tokens over the KV budget", panels=2) as axes:
        for name, found in points.items():
            held, wall, tokens = zip(*found, strict=True)
            axes[0].plot(held, wall, marker="o", label=name)
            axes[1].plot(held, tokens, marker="o", label=name)
        for panel, what in zip(axes, ("seconds", "prefill tokens"), strict=True):
            panel.set_xlabel("documents that fit")
            panel.set_ylabel(what)
            panel.set_ylim(bottom=0)
            panel.legend(fontsize=7)


def _tokens(request: Request) -> Tokens:
    (part,) = request.prompt
    assert isinstance(part, Segment) and part.tokens is not None
    return np.array(part.tokens, dtype=np.int32)


def same_answers(bench: Bench) -> None:
    """In fp32, token for token what an engine gives that shares nothing."""
    model = compute.call(lambda: load(dtype="fp32"))
    reading = bench.pick(full=Reading(4, 4, 400, 16), smoke=Reading(2, 3, 100, 4))
    requests = reading_job(bench, model, reading)
    slots = 2 * (reading.length + QUESTION)
    alone, _ = answered(model, ARMS[NONE], requests, 4 * slots)
    for name in (LRU, LPM, SINGLE, MULTI):
        answers, _ = answered(model, ARMS[name], requests, slots)
        other = sum(a.tokens != b.tokens for a, b in zip(answers, alone, strict=True))
        bench.verdict(f"B: fp32 answers of {name} that differ from unshared", other, at_most=0)
