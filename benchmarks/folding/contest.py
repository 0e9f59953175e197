"""Rankings against each other on one bed: the same number of blocks removed, the same cure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean

import numpy as np
import torch

from folding import rankings
from folding.beds import Bed, Losses, perplexity
from folding.cures import Treated, Ward, difference, recovered, tail_of
from shoal.core.claims import Bench
from shoal.models.depth.arrange import arrange
from shoal.models.depth.cure import CureOptions
from shoal.models.depth.fold import Folding, fold
from shoal.models.depth.footprint import footprint
from shoal.models.depth.gates import GateOptions, Gates
from shoal.models.depth.plan import DepthPlan

GATES, INFLUENCE, LAST = "gates", "Block Influence", "last blocks"
NO_TAIL, LABELS = {"tail": 0.0}, {"tail": 0.0, "distil": 0.0}
OPTIPFAIR, MEASURED, FOLDED = "optipfair", "measured loss", "folded"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a contest is held under.

    counts     blocks removed, or folded away
    gates      how gates are learned
    seeds      of the rows that gates see, all for the first count, the first for the others
    cure       of every plan
    rows       of the calibration text that scores and trials see
    peers      whether optipfair takes part
    parts      cures that leave something out, for the first count and the methods in ``ablated``
    """

    counts: tuple[int, ...]
    gates: GateOptions
    seeds: tuple[int, ...]
    cure: CureOptions
    rows: int
    peers: bool = True
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: {"no tail": NO_TAIL})
    ablated: tuple[str, ...] = (GATES, FOLDED)


@dataclass(slots=True)
class Contest:
    """Everything that was found on one bed."""

    bed: Bed
    terms: Terms
    bench: Bench
    original: dict[str, Losses] = field(default_factory=dict)
    learned: dict[int, list[Gates]] = field(default_factory=dict)
    plans: dict[str, DepthPlan] = field(default_factory=dict)
    treated: dict[str, Treated] = field(default_factory=dict)
    influence: list[float] = field(default_factory=list)
    foldings: dict[int, Folding] = field(default_factory=dict)
    missing: str = ""
    control: Mapping[str, Losses] = field(default_factory=dict)

    def name(self, count: int, method: str) -> str:
        return f"{self.bed.name}, -{count / self.bed.layers:.0%}: {method}"

    def removal(self, count: int, order: Sequence[int]) -> DepthPlan:
        return DepthPlan.whole(self.bed.layers).without(order[:count])


def hold(bench: Bench, bed: Bed, terms: Terms) -> Contest:
    """Choose by every method, cure, measure; arms and plans are in the contest's order."""
    contest = Contest(bed, terms, bench, bed.losses(bed.decoder))
    rows = bed.fitted_NS[: terms.rows]
    _choose(contest, rows)
    ward = Ward(bed, terms.cure, tail_of(contest.plans))
    for name in bench.track(list(contest.plans), f"Curing {bed.name}"):
        contest.treated[name] = ward.treat(contest.plans[name])
    count = terms.counts[0]
    for what, options in terms.parts.items():
        for method in terms.ablated:
            name = contest.name(count, method)
            contest.treated[f"{name}, {what}"] = ward.treat(contest.plans[name], **options)
    contest.control = ward.treat(DepthPlan.whole(bed.layers)).after
    _report(contest)
    return contest


def _choose(contest: Contest, rows: torch.Tensor) -> None:
    """Plans of every method for every count."""
    bed, terms, bench = contest.bed, contest.terms, contest.bench
    contest.influence = rankings.influence(bed, rows)
    influence = rankings.by_influence(bed, contest.influence)
    optipfair = rankings.by_optipfair(bed, rows) if terms.peers else "left out of a smoke"
    most = max(terms.counts)
    measured = rankings.by_loss(bed, most, rows)
    folding = fold(bed.decoder, DepthPlan.whole(bed.layers), most, rows)
    for count in bench.track(terms.counts, f"Learning gates, {bed.name}"):
        seeds = terms.seeds if count == terms.counts[0] else terms.seeds[:1]
        contest.learned[count] = [
            rankings.by_gates(bed, count, terms.gates, seed=bench.seed_of(seed) % 2**31)
            for seed in seeds
        ]
        lowest = contest.learned[count][0].lowest(count, protect=bed.edges)
        orders = {
            GATES: lowest,
            INFLUENCE: influence,
            LAST: rankings.by_place(bed),
            MEASURED: measured,
        }
        if isinstance(optipfair, str):
            contest.missing = optipfair
        else:
            orders[OPTIPFAIR] = optipfair
        for method, order in orders.items():
            contest.plans[contest.name(count, method)] = contest.removal(count, order)
        plan = DepthPlan.whole(bed.layers)
        for merge in folding.merges[:count]:
            place = next(i for i, g in enumerate(plan.groups) if g[0].origin == merge.left)
            plan = plan.merged(place, merge.block)
        contest.plans[contest.name(count, FOLDED)] = plan
    contest.foldings[most] = folding


def _report(contest: Contest) -> None:
    bed, bench = contest.bed, contest.bench
    whole = footprint(bed.decoder)
    bench.arm(
        f"{bed.name}: original",
        block_bytes=whole.blocks,
        other_bytes=whole.others,
        median_block_influence=float(np.median(contest.influence)),
        **{f"raw_perplexity_{d}": perplexity(rows) for d, rows in contest.original.items()},
        **{f"cured_perplexity_{d}": perplexity(rows) for d, rows in contest.control.items()},
    )
    for name, treated in contest.treated.items():
        held = footprint(arrange(bed.decoder, treated.plan), treated.cure.trained.values())
        bench.arm(
            name,
            block_bytes=held.blocks,
            added_bytes=held.added,
            **treated.metrics(),
            recovered=recovered(treated, contest.original, bench),
        )
    for count, learned in contest.learned.items():
        scores = [found.final.tolist() for found in learned]
        taus = [rankings.kendall(a, b) for a, b in combinations(scores, 2)]
        chosen = [set(found.lowest(count, protect=bed.edges)) for found in learned]
        overlap = [len(a & b) / count for a, b in combinations(chosen, 2)]
        bench.arm(
            f"{contest.name(count, GATES)}, {len(learned)} calibration seeds",
            polarised=fmean(found.polarised for found in learned),
            closed_of_wanted=fmean(found.closed / count for found in learned),
            **({"kendall_tau": fmean(taus), "same_blocks": fmean(overlap)} if taus else {}),
        )


def judge(contest: Contest) -> None:
    """The promises, each with the bound that the paper's words or the pilots set beforehand."""
    bench = contest.bench
    for count in contest.terms.counts:
        gates = contest.treated[contest.name(count, GATES)]
        for method in (INFLUENCE, LAST, OPTIPFAIR):
            other = contest.treated.get(contest.name(count, method))
            if other is not None:
                bench.verdict(
                    f"{contest.name(count, GATES)} lose no more than {method} after the same "
                    "cure (nats a token)",
                    difference(gates.after, other.after, bench),
                    at_most=0.0,
                )
        folded = contest.treated[contest.name(count, FOLDED)]
        bench.verdict(
            f"{contest.name(count, FOLDED)} and cured loses no more than removed by gates and "
            "cured, at equal bytes of blocks (nats a token)",
            difference(folded.after, gates.after, bench),
            at_most=0.0,
        )
    count = contest.terms.counts[0]
    for method in (GATES, FOLDED):
        name = contest.name(count, method)
        bench.verdict(
            f"the cure takes back half of what {name} lost",
            recovered(contest.treated[name], contest.original, bench),
            at_least=0.5,
        )
        without = contest.treated.get(f"{name}, no tail")
        if without is not None:
            bench.verdict(
                f"{name}: the tail term helps the cure (nats a token)",
                difference(contest.treated[name].after, without.after, bench),
                at_most=0.0,
            )
