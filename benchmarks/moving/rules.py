"""Which tokens are worth computing again: rules at equal budget, and how much is enough."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import numpy as np

from moving.probing import probe
from moving.texts import Case, Corpus, cases_of
from moving.timed import Timed
from shoal.core.claims import Bench
from shoal.core.protocols import Request, Sampling
from shoal.core.stats import difference_interval, holm, mean_interval
from shoal.core.stats import paired_permutation_test as paired_test
from shoal.engine.compute import compute
from shoal.engine.generation import Composition, Piece
from shoal.engine.kvshare.sharing import REPAIR
from shoal.engine.repair import KINDS, Kind, Repair
from shoal.models.loading import Model, load

FORCED = 12  # tokens of the dense answer over which arms are compared
BUDGET = 0.15
SHARES = (0.0, 0.05, 0.15, 0.3, 0.6, 1.0)
CURVED: tuple[Kind, ...] = ("values", "dhd", "random")
NAMES = {
    "none": "none (rotation only)",
    "random": "random",
    "first": "first of each run (EPIC)",
    "deviation": "deviation of keys and values (CacheBlend)",
    "values": "deviation of values",
    "attention": "attention",
    "dhd": "attention × deviation (DHD)",
}


async def fidelity(bench: Bench, model: Model, corpus: Corpus) -> None:
    """All rules at equal budget, and the share that is computed again."""
    engine = Timed(model, kv_bytes=1 << 30)
    kinds: tuple[Kind, ...] = bench.pick(full=KINDS, smoke=("none", "random", "dhd", "values"))
    at_budget = {NAMES[kind]: Repair(kind, BUDGET) for kind in kinds}
    deeper: dict[str, Repair] = {
        f"{NAMES[kind]}, check layer 4": Repair(kind, BUDGET, check_layer=4)
        for kind in CURVED
        if kind != "random"
    }
    curve = {
        f"{NAMES[kind]} {share:.0%}": Repair(kind, share)
        for kind in CURVED
        for share in SHARES
        if share not in (0.0, BUDGET) and (share < 1 or kind == CURVED[0])
    }
    ruled = bench.pick(full={**at_budget, **deeper}, smoke=at_budget)
    kl: dict[str, list[float]] = {}
    top: dict[str, list[float]] = {}
    for index, case in enumerate(bench.track(cases_of(bench, corpus), "fidelity")):
        repairs = {**ruled, **curve} if index % 3 == 0 and not bench.smoke else ruled
        for name, (far, same) in (await divergences(engine, case, repairs, index)).items():
            kl.setdefault(name, []).append(far)
            top.setdefault(name, []).append(same)
    await engine.close()
    texts = np.array([len(case.texts) for case in cases_of(bench, corpus)])
    for name in kl:
        parts = {}
        if name in ruled:
            by_case = np.array(kl[name])
            parts = {f"kl_{n}_text": float(by_case[texts == n].mean()) for n in (1, 2)}
        bench.arm(
            f"repair {'15 %' if name in ruled else 'at other shares'}: {name}",
            kl_to_dense_nats=mean_interval(kl[name], seed=bench.seed),
            top_1_equal=mean_interval(top[name], seed=bench.seed),
            **parts,
        )
    compare(bench, kl, "dhd")
    compare(bench, kl, REPAIR.kind)
    for kind in ("random", "deviation", "attention"):
        if NAMES[kind] in kl:
            gain = difference_interval(
                kl[NAMES[kind]], kl[NAMES["dhd"]], paired=True, seed=bench.seed
            )
            claim = f"DHD 15 %: KL less than that of {NAMES[kind]} by (nats)"
            bench.verdict(claim, gain, at_least=0.0)
    means = {kind: fmean(kl[NAMES[kind]]) for kind in kinds}
    bench.verdict(
        f"KL of the default, {NAMES[REPAIR.kind]}, over that of the best rule at 15 %",
        means[REPAIR.kind] / min(means.values()),
        at_most=1.0,
    )
    if not bench.smoke:
        draw_curve(bench, kl)


def draw_curve(bench: Bench, kl: dict[str, list[float]]) -> None:
    """KL over the share that is computed again, on every third case."""
    with bench.plot("repair", "KL to dense over what is computed again") as (axes,):
        for kind in CURVED:
            means = [fmean(kl[NAMES["none"]][::3])]
            for share in SHARES[1:-1]:
                name = f"{NAMES[kind]} {share:.0%}"
                means.append(fmean(kl[NAMES[kind]][::3] if share == BUDGET else kl[name]))
            means.append(fmean(kl[f"{NAMES[CURVED[0]]} 100%"]))  # all is all
            axes.plot(SHARES, means, "o-", ms=4, label=NAMES[kind])
        for kind in KINDS:
            if kind not in CURVED and kind != "none":
                axes.plot(BUDGET, fmean(kl[NAMES[kind]][::3]), "x", label=NAMES[kind])
        axes.set(xlabel="share of moved tokens computed again", ylabel="KL, nats a token")
        axes.legend(fontsize=7)


def compare(bench: Bench, kl: dict[str, list[float]], kind: Kind) -> None:
    """One rule against the others, paired by case, p-values adjusted for their number."""
    ours = kl[NAMES[kind]]
    others = [NAMES[each] for each in KINDS if each != kind and NAMES[each] in kl]
    tests = holm([paired_test(ours, kl[name], seed=bench.seed) for name in others])
    for name, p in zip(others, tests.tolist(), strict=True):
        less = difference_interval(kl[name], ours, paired=True, seed=bench.seed)
        bench.arm(f"{NAMES[kind]} against {name}", kl_less_nats=less, p_value_holm=p)


async def divergences(
    engine: Timed, case: Case, repairs: dict[str, Repair], seed: int
) -> dict[str, tuple[float, float]]:
    """KL to dense and share of equal first choices for every repair."""
    segments = [
        await engine.capture((*before, *text), len(before))
        for before, text in zip(case.behind, case.texts, strict=True)
    ]
    exact = (Piece(case.before), *map(Piece, case.texts), Piece(case.after))
    (dense,) = await engine.compose(
        [Composition(Request((), Sampling(max_tokens=FORCED, ignore_eos=True)), exact)]
    )
    carried = map(Piece, case.texts, segments)
    moved = (Piece(case.before), *carried, Piece(case.after))
    reference = await probe(engine, exact, None, dense.tokens)
    found = {}
    for name, repair in repairs.items():
        arm = await probe(engine, moved, replace(repair, seed=seed), dense.tokens)
        kl = (reference.exp() * (reference - arm)).sum(-1).mean()
        found[name] = float(kl), float((reference.argmax(-1) == arm.argmax(-1)).float().mean())
    return found


async def exactness(bench: Bench) -> None:
    """In fp32, computing all moved tokens again is dense to rounding."""
    model = compute.call(lambda: load(dtype="fp32"))
    engine = Timed(model, kv_bytes=1 << 28)
    cases = cases_of(bench, Corpus(model, bench))[:: bench.pick(full=9, smoke=4)]
    whole = {"all": Repair("dhd", 1.0)}
    far = [(await divergences(engine, case, whole, 0))["all"][0] for case in cases]
    await engine.close()
    bench.verdict(
        "fp32, all moved tokens computed again: largest KL to dense", max(far), at_most=1e-6
    )
