"""Whether choices with a moved cache are those of exact ones, with the gate on.

How near two answers may be before a choice is made exactly is calibrated on questions of which none
is tested. All disagreements in pilots were near-ties of the exact answer, so agreement is also
reported of choices whose exact margin is beyond what the number format bf16 changes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from passing.prompts import options, prompt, roles
from shoal.core.claims import Bench
from shoal.core.claims.items import Item
from shoal.core.protocols import Grammar, Request
from shoal.core.stats import wilson_interval
from shoal.engine.generation import Composition, Piece
from shoal.engine.kvcomm import Call, CommPolicy, KVComm
from shoal.engine.kvcomm.gate import least_margin
from shoal.engine.kvcomm.watches import Glance
from shoal.engine.local import LocalEngine
from shoal.engine.repair import Repair

AGREE = 0.98  # of calibrated choices that must agree: a little more than what is promised of others
PROMISED = 0.95
GATED = {
    "gate on": CommPolicy(),
    "gate on, then DHD 15 %": CommPolicy(after="computed", repair=Repair("dhd")),
}
DEFAULT = "gate on"


@dataclass(frozen=True, slots=True)
class Asked:
    """A choice, and how it is made exactly: the answer, and how near its tokens were."""

    request: Request
    right: str
    exact: str
    margin: float


@dataclass(frozen=True, slots=True)
class Answered:
    """The same choice by an agent whose cache may have been moved."""

    asked: Asked
    text: str
    call: Call

    @property
    def moved(self) -> bool:
        return self.call.mode == "moved"

    @property
    def agrees(self) -> bool:
        return self.text == self.asked.exact


def split(cases: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Questions to test and to calibrate on: halves that are the same whatever the seed."""
    ordered = sorted(
        cases, key=lambda item: hashlib.blake2b(repr((0, item.id)).encode(), digest_size=8).digest()
    )
    return ordered[: len(cases) // 2], ordered[len(cases) // 2 :]


async def choosing(
    bench: Bench, engine: LocalEngine, quick: LocalEngine, cases: Sequence[Item]
) -> None:
    """Agents choose one of four numbers; anchors are learned on the way."""
    tested, known = split(cases)
    if bench.smoke:  # the longest first, so that the first two are anchors of the others
        tested, known = (
            sorted(each, key=lambda item: -len(item.question))[:count]
            for each, count in ((tested, 4), (known, 3))
        )
    calibrating = await asked_of(bench, engine, known, "calibrating")
    testing = await asked_of(bench, engine, tested, "choices")
    noise = await bf16_noise(bench, quick, testing)
    if not bench.smoke:
        plain = await answered(KVComm(engine, replace(GATED[DEFAULT], sure=0.0)), testing)
        tell(bench, "gate of looks alone", plain, 0.0, noise)
    for name in bench.pick(full=tuple(GATED), smoke=(DEFAULT,)):
        policy = GATED[name]
        found = await answered(KVComm(engine, replace(policy, sure=0.0)), calibrating)
        moved = [each for each in found if each.moved]
        margins = [each.call.margin for each in moved]
        assert None not in margins, "a choice that was moved was weighed"
        agreed = [each.agrees for each in moved]
        sure = least_margin([m or 0.0 for m in margins], agreed, AGREE)
        found = await answered(KVComm(engine, replace(policy, sure=sure)), testing)
        tell(bench, name, found, sure, noise)
        moved = [each for each in found if each.moved]
        if name == DEFAULT:
            bench.verdict(
                "share of agent calls that skip the prefill, as the paper counts",
                wilson_interval(len(moved), len(found)),
                at_least=0.7,
            )
        if moved:
            bench.verdict(
                f"moved answers that agree with exact ones (one of four numbers, {name})",
                wilson_interval(sum(each.agrees for each in moved), len(moved)),
                at_least=PROMISED,
            )


async def asked_of(
    bench: Bench, engine: LocalEngine, cases: Sequence[Item], label: str
) -> list[Asked]:
    """Every question in the prompt of every role, answered exactly."""
    found = []
    for item in bench.track(cases, label):
        grammar = Grammar("choice", options(item, bench.seed_of("options", item.id)))
        requests = [prompt(role, item.question, new=12, grammar=grammar) for role in roles(bench)]
        for request, (exact, margin) in zip(requests, await exactly(engine, requests), strict=True):
            found.append(Asked(request, item.answer, exact, margin))
    return found


async def exactly(engine: LocalEngine, requests: Sequence[Request]) -> list[tuple[str, float]]:
    """The exact answers on the same tokens, and how near their tokens were."""
    encoder = KVComm(engine)
    watches = [Glance(engine, sure=0.0) for _ in requests]
    compositions = [
        Composition(
            replace(request, placeholders=()),
            (Piece(encoder.template(request).tokens),),
            watch=watch,
        )
        for request, watch in zip(requests, watches, strict=True)
    ]
    answers = await engine.compose(compositions)
    assert not any(done.error for done in answers)
    return [(done.text, watch.margin) for done, watch in zip(answers, watches, strict=True)]


async def answered(comm: KVComm, asked: Sequence[Asked]) -> list[Answered]:
    """One call after the other, as anchors are learned on the way."""
    found = []
    for each in asked:
        (done,) = await comm.generate([each.request])
        assert not done.error, done.error
        found.append(Answered(each, done.text, comm.calls[-1]))
    return found


async def bf16_noise(bench: Bench, quick: LocalEngine, asked: Sequence[Asked]) -> float:
    """What the number format alone does to the same choices: the reference for agreement.

    Returns by how much it changes margins, at the 95th percentile.
    """
    other = await exactly(quick, [each.request for each in asked])
    changes = [abs(each.margin - margin) for each, (_, margin) in zip(asked, other, strict=True)]
    noise = float(np.quantile(changes, 0.95))
    same = [each.exact == text for each, (text, _) in zip(asked, other, strict=True)]
    bench.arm(
        "choices, exact in bf16",
        agree=wilson_interval(sum(same), len(same)),
        margin_changes_p95_nats=noise,
        near_ties=float(np.mean([each.margin < noise for each in asked])),
    )
    return noise


def tell(bench: Bench, name: str, found: Sequence[Answered], sure: float, noise: float) -> None:
    """One arm's figures."""
    moved = [each for each in found if each.moved]
    clear = [each for each in moved if each.asked.margin >= noise]
    looks = [each.call.kl for each in found if each.call.kl is not None]
    shares = [entropy_share(each.call) for each in found if each.call.anchors]
    apart = [each.asked.margin for each in moved if not each.agrees]
    metrics: dict[str, object] = {
        "calls": len(found),
        "calls_moved": len(moved) / len(found),
        "given_up": float(np.mean([not a.moved and a.call.margin is not None for a in found])),
        "sure_nats": sure if sure < math.inf else -1.0,
        "looks": len(looks),
        "kl_of_looks": float(np.mean(looks)) if looks else 0.0,
        "entropy_share": float(np.mean(shares)) if shares else 1.0,
        "accuracy": float(np.mean([each.text == each.asked.right for each in found])),
        "accuracy_exact": float(np.mean([a.asked.exact == a.asked.right for a in found])),
    }
    if moved:
        metrics["agree"] = wilson_interval(sum(each.agrees for each in moved), len(moved))
        metrics["largest_exact_margin_where_not"] = max(apart, default=0.0)
    if clear:
        metrics["agree_beyond_bf16"] = wilson_interval(sum(a.agrees for a in clear), len(clear))
    bench.arm(f"choices, {name}", **metrics)  # type: ignore[arg-type]


def entropy_share(call: Call) -> float:
    """Of the most that the weights of so many anchors could have."""
    return call.entropy / math.log2(call.anchors) if call.anchors > 1 else 1.0
