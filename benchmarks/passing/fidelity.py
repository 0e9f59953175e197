"""Divergence from exact answers on questions that no anchor has seen."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TypeVar

import numpy as np
import torch

from passing.prompts import prompt, roles
from shoal.core.claims import Bench
from shoal.core.claims.items import Item
from shoal.core.protocols import Request, Sampling
from shoal.core.stats import mean_interval, paired_permutation_test, ratio_interval
from shoal.engine.compute import compute
from shoal.engine.generation import Composition, Generation, Piece
from shoal.engine.kvcomm import CommPolicy, KVComm
from shoal.engine.kvcomm.templates import Template
from shoal.engine.local import LocalEngine
from shoal.engine.repair import Repair
from shoal.engine.segments import KVSegment
from shoal.models.rope import rotate

T = TypeVar("T")
FORCED = 16  # tokens of the exact answer over which distributions are compared
ARMS = {
    "rotation only": CommPolicy(offsets=False),
    "rotation only, piece computed": CommPolicy(offsets=False, after="computed"),
    "KVCOMM": CommPolicy(),
    "KVCOMM, piece computed": CommPolicy(after="computed"),
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
        await learner.generate([prompt(role, item.question, new=0) for role in roles(bench)])
    arms = {
        name: learner.with_policy(policy)
        for name, policy in ARMS.items()
        if name in JUDGED or not bench.smoke
    }
    kl: dict[str, list[float]] = defaultdict(list)
    same: dict[str, list[float]] = defaultdict(list)
    for item in bench.track(cases[:asked], "questions"):
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        requests = [prompt(role, item.question, new=FORCED) for role in roles(bench)]
        templates = [learner.template(request) for request in requests]
        wholes = [(Piece(template.tokens),) for template in templates]
        answers = await engine.compose(list(map(Composition, requests, wholes)))
        for request, template, whole, exact in zip(
            requests, templates, wholes, answers, strict=True
        ):
            asked_of: dict[str, tuple[Sequence[Piece], Repair | None]] = {"exact": (whole, None)}
            for name, arm in arms.items():
                asked_of[name] = await arm.pieces(template), arm.policy.repair
            asked_of["no rotation"] = await without_rotation(arms["rotation only"], template), None
            got = await distributions(engine, request, exact.tokens, list(asked_of.values()))
            true, *others = got
            for name, each in zip(list(asked_of)[1:], others, strict=True):
                found[name].append(await compared(true, each))
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
    answer: Sequence[int],
    prompts: Sequence[tuple[Sequence[Piece], Repair | None]],
) -> list[torch.Tensor]:
    """Log-probabilities after each prompt and after each token of an answer but the last."""
    bare = replace(request, sampling=Sampling(max_tokens=0), placeholders=())
    watches = [_States(len(answer)) for _ in prompts]
    compositions = []
    for (pieces, repair), watch in zip(prompts, watches, strict=True):
        *before, last = pieces
        if not before:
            before, last = [Piece(last.tokens[:-1])], Piece(last.tokens[-1:])
        forced = Piece((*last.tokens, *answer[:-1]))
        compositions.append(Composition(bare, (*before, forced), repair, watch, keep_states=True))
    for done in await engine.compose(compositions):
        assert not done.error, done.error
    decoder = engine.model.decoder
    return await on_compute(
        lambda: [
            torch.log_softmax(decoder.logits(watch.rows[0], precise=True), -1) for watch in watches
        ]
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


async def on_compute(work: Callable[[], T]) -> T:
    def inside() -> T:
        with torch.inference_mode():
            return work()

    return await asyncio.wrap_future(compute.future(inside))
