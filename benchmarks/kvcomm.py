"""Caches moved between agents' contexts: how far from exact, and how much sooner.

    shoal reproduce kvcomm [--smoke]

KVCOMM's offsets beside rotation alone, CacheBlend's repair and exact answers, on questions no
anchor has seen; then three agents that read one document each in their own words.
"KVCOMM: Online Cross-context KV-cache Communication for Efficient LLM-based Multi-agent Systems"
(arXiv 2510.12872).
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from shoal.core.claims import Bench
from shoal.core.claims.items import Item, items
from shoal.core.protocols import Grammar, Request, Sampling, Segment
from shoal.core.records import Message
from shoal.core.stats import (
    mean_interval,
    paired_permutation_test,
    ratio_interval,
    wilson_interval,
)
from shoal.engine.compute import compute
from shoal.engine.generation import Composition, Generation, Piece
from shoal.engine.kvcomm import CommPolicy, KVComm
from shoal.engine.kvcomm.templates import Template
from shoal.engine.local import LocalEngine
from shoal.engine.repair import Repair
from shoal.engine.segments import KVSegment
from shoal.models.decoder import rotate
from shoal.models.loading import load

FORCED = 16  # tokens of the exact answer over which distributions are compared
ROLES = {
    "solver": (
        "You are a careful solver. You read a problem slowly and reason about every quantity "
        "that it names before you write anything down.",
        "Work through the problem step by step, then give the result as a number.",
    ),
    "checker": (
        "You are the checker of a small team. Others solve; you look for what they overlooked "
        "and you trust nobody's arithmetic, least of all your own.",
        "Which quantities matter here, and what could go wrong? Answer with the result.",
    ),
}
DOCUMENTS = Path(__file__).parent.parent / "examples" / "documents" / "jargon"


def run(bench: Bench) -> None:
    """Fidelity on unseen questions, choices with the gate on, and time to first token."""
    asked = bench.pick(full=36, smoke=2)
    learned = bench.pick(full=22, smoke=3)
    bench.workload = (
        f"SmolLM2-135M in fp32. Fidelity: {asked} GSM8K questions in the prompts of "
        f"{len(ROLES)} agents, {learned} other questions as anchors; divergence from the exact "
        f"distribution over {FORCED} tokens of the exact greedy answer, averaged over agents, so "
        "that questions are the independent cases. All arms read the same tokens, encoded part "
        "by part. Choices: one of four numbers, with the gate on and anchors learned on the way. "
        "Time: in bf16, three agents that read one document of about 900 tokens and what the "
        "others said; base caches, decisions and the last token are in the times."
    )
    torch.manual_seed(bench.seed)
    runner = asyncio.Runner()
    model = compute.call(lambda: load(dtype="fp32"))
    cases = sorted(items("gsm8k"), key=lambda item: bench.seed_of(item.id))
    runner.run(fidelity(bench, LocalEngine(model), cases, asked, learned))
    runner.run(choices(bench, LocalEngine(model), cases[: bench.pick(full=50, smoke=2)]))
    quick = compute.call(lambda: load(dtype="bf16"))
    runner.run(times(bench, [LocalEngine(quick) for _ in range(3)]))


# -- fidelity -----------------------------------------------------------------------------------

ARMS = {
    "rotation only": CommPolicy(offsets=False),
    "rotation only, piece computed": CommPolicy(offsets=False, after="computed"),
    "KVCOMM": CommPolicy(),
    "KVCOMM, piece computed": CommPolicy(after="computed"),
    "random 15 %": CommPolicy(offsets=False, after="computed", repair=Repair("random")),
    "first 15 % (EPIC)": CommPolicy(offsets=False, after="computed", repair=Repair("first")),
    "CacheBlend 15 %": CommPolicy(offsets=False, after="computed", repair=Repair("deviation")),
    "DHD 15 %": CommPolicy(offsets=False, after="computed", repair=Repair("dhd")),
    "KVCOMM, then DHD 15 %": CommPolicy(after="computed", repair=Repair("dhd")),
    "everything computed again": CommPolicy(repair=Repair(share=1)),
}


JUDGED = frozenset(
    {
        "rotation only",
        "KVCOMM",
        "KVCOMM, piece computed",
        "CacheBlend 15 %",
        "KVCOMM, then DHD 15 %",
        "everything computed again",
    }
)


async def fidelity(
    bench: Bench, engine: LocalEngine, cases: Sequence[Item], asked: int, learned: int
) -> None:
    """Divergence from exact answers on questions that no anchor has seen."""
    learner = KVComm(engine, CommPolicy(gated=False, gamma=0, size=learned))  # never reuses
    known = sorted(cases[asked : 4 * asked], key=lambda item: -len(item.question))[:learned]
    for item in bench.track(known, "anchors"):
        await learner.generate([prompt(role, item.question, new=0) for role in ROLES])
    others = [] if bench.smoke else list(ARMS)
    arms = {
        name: learner.with_policy(policy)
        for name, policy in ARMS.items()
        if name in JUDGED or name in others
    }
    kl: dict[str, list[float]] = defaultdict(list)
    same: dict[str, list[float]] = defaultdict(list)
    for item in bench.track(cases[:asked], "questions"):
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for role in ROLES:
            request = prompt(role, item.question, new=FORCED)
            template = learner.template(request)
            whole = (Piece(template.tokens),)
            (exact,) = await engine.compose([Composition(request, whole)])
            true = await distributions(engine, request, whole, exact.tokens)
            for name, arm in arms.items():
                pieces = await arm.pieces(template)
                repair = arm.policy.repair
                got = await distributions(engine, request, pieces, exact.tokens, repair)
                found[name].append(await compared(true, got))
            unrotated = await without_rotation(arms["rotation only"], template)
            got = await distributions(engine, request, unrotated, exact.tokens)
            found["no rotation"].append(await compared(true, got))
        for name, pairs in found.items():
            kl[name].append(float(np.mean([each for each, _ in pairs])))
            same[name].append(float(np.mean([each for _, each in pairs])))
    for name in sorted(kl, key=lambda name: -float(np.mean(kl[name]))):
        test = paired_permutation_test(kl[name], kl["rotation only"], seed=bench.seed)
        bench.arm(
            name,
            kl_nats=float(np.mean(kl[name])),
            kl_median=median(kl[name]),
            same_top_token=float(np.mean(same[name])),
            p_against_rotation=test,
        )
    judge(bench, kl)
    with bench.plot("fidelity", "Divergence from exact answers, mean and 95 % interval") as (axes,):
        names = sorted(kl, key=lambda name: float(np.mean(kl[name])))
        intervals = [mean_interval(kl[name], seed=bench.seed) for name in names]
        axes.barh(names, [each.estimate for each in intervals], color="#4477aa")
        for row, each in enumerate(intervals):
            axes.plot([each.low, each.high], [row, row], color="black", lw=1)
        axes.set_xlabel("KL, nats a token")


def judge(bench: Bench, kl: dict[str, list[float]]) -> None:
    """What the paper and the state of the art promise."""
    seed = bench.seed
    bench.verdict(
        "KL of KVCOMM over that of rotation alone (whole prefill skipped by both)",
        ratio_interval(kl["KVCOMM"], kl["rotation only"], seed=seed),
        at_most=0.5,
    )
    bench.verdict(
        "KL of KVCOMM over CacheBlend at 15 % (which computes the piece and 15 %)",
        ratio_interval(kl["KVCOMM"], kl["CacheBlend 15 %"], seed=seed),
        at_most=1.0,
    )
    bench.verdict(
        "KL of KVCOMM with the piece computed over CacheBlend at 15 %",
        ratio_interval(kl["KVCOMM, piece computed"], kl["CacheBlend 15 %"], seed=seed),
        at_most=1.0,
    )
    bench.verdict(
        "KL of offsets with DHD on top over offsets alone (piece computed)",
        ratio_interval(kl["KVCOMM, then DHD 15 %"], kl["KVCOMM, piece computed"], seed=seed),
        at_most=1.0,
    )
    bench.verdict(
        "KL where everything is computed again", max(kl["everything computed again"]), at_most=1e-6
    )


def prompt(role: str, question: str, *, new: int, grammar: Grammar | None = None) -> Request:
    """What an agent is asked, with the question as placeholder."""
    system, instruction = ROLES[role]
    user = f"The problem of today:\n{question}\n\n{instruction}"
    return Request(
        (Message("system", system), Message("user", user)),
        Sampling(max_tokens=new),
        grammar,
        placeholders=(Segment(question, name="question"),),
    )


@dataclass(slots=True)
class _States:
    """Keeps the final hidden states of a prompt's last tokens."""

    count: int
    rows: list[torch.Tensor] = field(default_factory=list)

    def prefilled(self, job: Generation) -> None:
        assert job.end is not None
        kept = [node.all_hidden for node in job.end.path() if node.all_hidden is not None]
        self.rows.append(torch.cat(kept)[-self.count :].clone())

    def ending(self, job: Generation) -> None:
        """Nothing more is wanted."""


async def distributions(
    engine: LocalEngine,
    request: Request,
    pieces: Sequence[Piece],
    answer: Sequence[int],
    repair: Repair | None = None,
) -> torch.Tensor:
    """Log-probabilities after the prompt and after each token of an answer but the last."""
    *before, last = pieces
    if not before:
        before, last = [Piece(last.tokens[:-1])], Piece(last.tokens[-1:])
    forced = Piece((*last.tokens, *answer[:-1]))
    watch = _States(len(answer))
    bare = replace(request, sampling=Sampling(max_tokens=0), placeholders=())
    composition = Composition(bare, (*before, forced), repair, watch, keep_states=True)
    (done,) = await engine.compose([composition])
    assert not done.error, done.error
    return await on_compute(
        lambda: torch.log_softmax(engine.model.decoder.logits(watch.rows[0], precise=True), -1)
    )


async def compared(true_FV: torch.Tensor, got_FV: torch.Tensor) -> tuple[float, float]:
    """Mean divergence in nats, and how often the likeliest token is the same."""

    def work() -> tuple[float, float]:
        kl = (true_FV.exp() * (true_FV - got_FV)).sum(-1).mean()
        return float(kl), float((true_FV.argmax(-1) == got_FV.argmax(-1)).float().mean())

    return await on_compute(work)


async def without_rotation(comm: KVComm, template: Template) -> tuple[Piece, ...]:
    """Moved keys as they were computed, at the positions of their own context."""
    pieces = await comm.pieces(template)
    decoder = comm.engine.model.decoder
    start = len(comm.engine.model.tokenizer.encode(comm.policy.beginning))

    def shifted(segment: KVSegment, by: int) -> KVSegment:
        cos, sin = decoder.rotation(torch.full((len(segment),), by))
        return replace_keys(segment, rotate(segment.keys_LTKd, cos, sin))

    def work() -> tuple[Piece, ...]:
        done, made = 0, []
        for index, piece in enumerate(pieces):
            if piece.segment is not None:  # the text was computed behind the fixed beginning
                by = start - done if index == 1 else -len(pieces[1].tokens)
                made.append(Piece(piece.tokens, shifted(piece.segment, by)))
            else:
                made.append(piece)
            done += len(piece.tokens)
        return tuple(made)

    return await on_compute(work)


def replace_keys(segment: KVSegment, keys: torch.Tensor) -> KVSegment:
    return KVSegment(segment.tokens, keys, segment.values_LTKd, segment.fingerprint)


# -- choices with the gate on ---------------------------------------------------------------------


GATED = {
    "gate on": CommPolicy(),
    "gate on, then DHD 15 %": CommPolicy(after="computed", repair=Repair("dhd")),
}


async def choices(bench: Bench, engine: LocalEngine, cases: Sequence[Item]) -> None:
    """Agents choose one of four numbers; anchors are learned on the way."""
    arms = {name: KVComm(engine, policy) for name, policy in GATED.items()}
    default = next(iter(arms))
    agree: dict[str, list[bool]] = {name: [] for name in arms}
    right: dict[str, list[bool]] = {name: [] for name in ("exact", *arms)}
    for item in bench.track(cases, "choices"):
        grammar = Grammar("choice", options(item, bench.seed_of("options", item.id)))
        for role in ROLES:
            request = prompt(role, item.question, new=12, grammar=grammar)
            whole = (Piece(arms[default].template(request).tokens),)
            bare = replace(request, placeholders=())
            (exact,) = await engine.compose([Composition(bare, whole)])
            right["exact"].append(exact.text == item.answer)
            for name, comm in arms.items():
                (moved,) = await comm.generate([request])
                if comm.calls[-1].mode == "moved":
                    agree[name].append(exact.text == moved.text)
                right[name].append(moved.text == item.answer)
    for name, comm in arms.items():
        looks = [call.kl for call in comm.calls if call.kl is not None]
        shares = [_entropy_share(call) for call in comm.calls if call.anchors]
        bench.arm(
            f"choices, {name}",
            calls=len(comm.calls),
            calls_moved=len(agree[name]) / len(comm.calls),
            looks=len(looks),
            kl_of_looks=float(np.mean(looks)) if looks else 0.0,
            entropy_share=float(np.mean(shares)) if shares else 1.0,
            accuracy=float(np.mean(right[name])),
            accuracy_of_exact_answers=float(np.mean(right["exact"])),
        )
    bench.verdict(
        "share of agent calls that skip the prefill, as the paper counts",
        wilson_interval(len(agree[default]), len(arms[default].calls)),
        at_least=0.7,
    )
    for name, same in agree.items():
        if same:
            bench.verdict(
                f"moved answers that agree with exact ones (one of four numbers, {name})",
                wilson_interval(sum(same), len(same)),
                at_least=0.95,
            )


def _entropy_share(call: Any) -> float:
    return call.entropy / max(1e-9, float(np.log2(call.anchors))) if call.anchors > 1 else 1.0


def options(item: Item, seed: int) -> tuple[str, ...]:
    """The right number among three others near to it."""
    draw = random.Random(seed)
    right = float(item.answer.replace(",", ""))
    others: set[str] = set()
    while len(others) < 3:
        wrong = max(
            0.0, round(right * draw.choice((0.5, 0.8, 1.25, 1.5, 2.0)) + draw.randint(-3, 3))
        )
        if wrong != right:
            others.add(str(wrong))
    chosen = [*sorted(others), item.answer]
    draw.shuffle(chosen)
    return tuple(chosen)


# -- time to first token --------------------------------------------------------------------------

READERS = {
    "reader": "You are the reader of a team. You say what a text is about, in plain words.",
    "critic": "You are the critic of a team. You doubt what you read, and you say why, briefly.",
    "editor": "You are the editor of a team. You weigh what the others said and you conclude.",
}


async def times(bench: Bench, engines: Sequence[LocalEngine]) -> None:
    """Three agents read one document, each behind its own words; three ways to share."""
    documents = texts(engines[0], bench.pick(full=12, smoke=3), bench.pick(full=1000, smoke=200))
    warm = bench.pick(full=4, smoke=2)
    exact, ordered, engine = engines
    comm = KVComm(engine, CommPolicy(gated=False, gamma=1, size=warm))
    arms = {"exact prefix": exact, "reordered prompt": ordered, "KVCOMM": comm}
    first: dict[tuple[str, int], list[float]] = defaultdict(list)
    computed: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, document in enumerate(bench.track(documents, "documents")):
        for arm, where in arms.items():
            said: list[str] = []
            for place, (name, role) in enumerate(READERS.items()):
                request = reading(role, name, document, said, first_text=arm == "reordered prompt")
                template = comm.template(request)
                if arm != "KVCOMM":
                    segments = (Segment(tokens=template.tokens),)
                    request = replace(request, prompt=segments, placeholders=())
                (answer,) = await where.generate([request])
                assert not answer.error, answer.error
                said.append(padded(engine, answer.text))
                if index >= warm:
                    first[arm, place].append(answer.usage.first_token_ms)
                    computed[arm, place].append(answer.usage.computed_prompt_tokens)
    moved = [call.mode for call in comm.calls[len(READERS) * warm :]]
    for arm in arms:
        for place, name in enumerate(READERS):
            bench.arm(
                f"{arm}: {name}",
                first_token_ms=median(first[arm, place]),
                prompt_tokens_computed=median(computed[arm, place]),
            )
    bench.arm("calls moved after the first documents", share=moved.count("moved") / len(moved))
    later = range(1, len(READERS))
    pairs = {arm: [ms for place in later for ms in first[arm, place]] for arm in arms}
    bench.verdict(
        "time to first token of later agents: exact prefix over KVCOMM",
        ratio_interval(pairs["exact prefix"], pairs["KVCOMM"], seed=bench.seed),
        at_least=3.0,
    )
    bench.verdict(
        "time to first token of later agents: reordered prompt over KVCOMM",
        ratio_interval(pairs["reordered prompt"], pairs["KVCOMM"], seed=bench.seed),
        at_least=1.0,
    )
    with bench.plot("first-token", "Time to first token by agent, median") as (axes,):
        for offset, arm in enumerate(arms):
            places = np.arange(len(READERS)) + 0.25 * (offset - 1)
            heights = [median(first[arm, place]) for place in range(len(READERS))]
            axes.bar(places, heights, 0.25, label=arm)
        axes.set_xticks(range(len(READERS)), list(READERS))
        axes.set_ylabel("ms")
        axes.legend()


def reading(
    role: str, name: str, document: str, said: Sequence[str], *, first_text: bool
) -> Request:
    """An agent's prompt; with ``first_text`` what all read stands before who they are."""
    heard = " ".join(said)
    placeholders = [Segment(document, name="document")]
    if said:
        placeholders.append(Segment(heard, name="said"))
    others = f"\n\nThe others said: {heard}" if said else ""
    task = f"You are the {name}. Say it in one sentence."
    if first_text:
        system, user = "You work in a team.", f"Text: {document}{others}\n\n{role} {task}"
    else:
        system, user = role, f"Text: {document}{others}\n\n{task}"
    return Request(
        (Message("system", system), Message("user", user)),
        Sampling(max_tokens=24, ignore_eos=True),
        placeholders=tuple(placeholders),
    )


def texts(engine: LocalEngine, count: int, tokens: int) -> list[str]:
    """Pieces of real text of nearly equal length, the longest first."""
    words = " ".join(path.read_text() for path in sorted(DOCUMENTS.glob("*.md"))).split()
    length = int(tokens * 0.62)
    stride = (len(words) - length) // count
    cut = [" ".join(words[i * stride : i * stride + length]) for i in range(count)]
    return sorted(cut, key=lambda text: -engine.count_tokens((Segment(text),)))


def padded(engine: LocalEngine, answer: str) -> str:
    """An answer without what would break the search for it in a prompt."""
    return " ".join(answer.split())


async def on_compute(work: Any) -> Any:
    def inside() -> Any:
        with torch.inference_mode():
            return work()

    return await asyncio.wrap_future(compute.future(inside))
