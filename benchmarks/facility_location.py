"""Exactly one strategyproof rule is fair to groups of every size: what that costs, and saves.

    shoal reproduce facility-location [--smoke]

The Uniform Phantom beside the mean, the median and others: profitable lies, fairness, welfare,
influence of liars, equilibria, and a million reports; a language model in place of a rule, and
models that fish (benchmarks/deciding).
"Strategyproof and Proportionally Fair Facility Location" (arXiv 2111.01566).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np

from deciding import managers
from shoal.core.claims import Bench, alternate
from shoal.core.stats import mean_interval
from shoal.mechanisms.location.audit import audit, shortfalls
from shoal.mechanisms.location.facility_location import settle
from shoal.mechanisms.location.independent_markets import audit_markets, independent_markets
from shoal.mechanisms.location.rules import (
    RULES,
    FairSharePhantoms,
    Floats,
    Mean,
    Median,
    Phantoms,
    Rule,
    UniformPhantom,
)
from shoal.mechanisms.location.running_phantom import RunningUniformPhantom

EXACT = 1e-9
LIARS = 0.2
ASKED, GREEDY = 10.0, 100.0  # what honest agents and liars want of the commons, a month


def run(bench: Bench) -> None:
    """Measure lies, fairness, welfare, influence and speed beside the mean."""
    trials = bench.pick(full=25_000, smoke=1_000)
    bench.workload = (
        "Audits: groups of 2 to 5, all profiles of 11 points (5 in a smoke run) with all lies of "
        f"all coalitions, and {trials:,} random profiles a size with ties, extremes and random "
        "lies; gains of rules that draw are those of their draws, fairness is in expectation. "
        "The baseline is the mean. Uniqueness: all phantom vectors on multiples of 1/(2n). "
        "Ratios: all profiles of zeros and ones, and random ones. Equilibria: agents answer each "
        "other in turn by their best report. Influence: 1,000 reports around 0.30 (standard "
        f"deviation 0.1), of which {LIARS:.0%} become 1. Commons: five agents, a stock of 100 that "
        f"doubles after the harvest up to 100 and is lost below 5; honest caps are {ASKED:g}; "
        "these agents are computed. Models: SmolLM2-135M reads all wishes and chooses a number by "
        "likelihood, and is audited like a rule; five fishers that are models say how much each "
        "may fish."
    )
    audits(bench, trials)
    uniqueness(bench)
    ratios(bench)
    equilibria(bench)
    influence(bench)
    markets(bench)
    commons(bench)
    managers.with_models(bench, survival)
    scale(bench)


def audits(bench: Bench, trials: int) -> None:
    """Every rule against every lie and every group."""
    sizes = (2, 3, 4, 5)
    worst: dict[str, dict[str, float]] = {}
    for name, rule in bench.track(list(RULES.items()), "audits"):
        short = worst[name] = {}
        for n in sizes:
            grid = bench.pick(full=11, smoke=5)
            for one in audit(rule, n, grid=grid, trials=trials, seed=bench.seed).counterexamples:
                short[one.promise] = max(one.shortfall, short.get(one.promise, 0.0))
        bench.arm(
            f"audit of {name}",
            gain_by_a_lie=short.get("strategyproof", 0.0),
            gain_of_a_coalition=short.get("group-strategyproof", 0.0),
            short_of_individual_share=short.get("individual fair share", 0.0),
            short_of_unanimous_share=short.get("unanimous fair share", 0.0),
            short_of_proportional_fairness=short.get("proportional fairness", 0.0),
        )
    ours = worst[UniformPhantom.name]
    for promise, what in (("strategyproof", "a lie"), ("group-strategyproof", "a coalition")):
        claim = f"Uniform Phantom: largest gain by {what}"
        bench.verdict(claim, ours.pop(promise, 0.0), at_most=1e-12)
    unfair = max(ours.values(), default=0.0)
    bench.verdict("Uniform Phantom: largest shortfall of fairness", unfair, at_most=1e-12)
    gain = worst[Mean.name]["strategyproof"]
    # a lie moves the mean by x/n at most and pays while y - x is more: (n-1)/n^2, most at n = 2
    bench.verdict("mean: largest gain by a lie", gain, at_least=0.24, at_most=0.25)


def uniqueness(bench: Bench) -> None:
    """How many phantom vectors keep each promise, counted on a grid."""
    for n, expected in (
        (3, {"vectors": 28, "individual": 6}),
        (4, {"vectors": 165, "individual": 35}),
    ):
        grid = np.arange(2 * n + 1) / (2 * n)
        x = np.array(list(itertools.combinations_with_replacement(grid, n)))
        vectors = list(itertools.combinations_with_replacement(grid, n - 1))
        kept: dict[str, int] = {}
        for phantoms in bench.track(vectors, f"phantoms of {n}"):
            for promise, short in shortfalls(x, Phantoms(phantoms)(x)[None]).items():
                kept[promise] = kept.get(promise, 0) + bool(short.max() <= 1e-12)
        bench.arm(
            f"phantom vectors for {n}",
            vectors=len(vectors),
            individual_fair_share=kept["individual fair share"],
            proportional=kept["proportional"],
            unanimous_fair_share=kept["unanimous fair share"],
            proportional_fairness=kept["proportional fairness"],
        )
        for promise in ("proportional", "unanimous fair share", "proportional fairness"):
            claim = f"phantom vectors of {expected['vectors']} for {n} that are {promise}"
            bench.verdict(claim, kept[promise], at_least=1, at_most=1)
        count = expected["individual"]
        claim = f"phantom vectors of {expected['vectors']} for {n} with individual fair share"
        bench.verdict(claim, kept["individual fair share"], at_least=count, at_most=count)


def worst(ratio: Callable[[Floats, Floats], Floats], rule: Rule, x_Bn: Floats) -> float:
    """The largest ratio over profiles."""
    return float(ratio(x_Bn, rule(x_Bn)).max())


def welfare_of(x_Bn: Floats, y_B: Floats) -> Floats:
    """Welfare at the median, which is the optimum, over welfare at y, [B]."""
    ours_B: Floats = (1 - np.abs(x_Bn - y_B[:, None])).sum(axis=1)
    return (1 - np.abs(x_Bn - Median()(x_Bn)[:, None])).sum(axis=1) / ours_B


def cost_of(x_Bn: Floats, y_B: Floats) -> Floats:
    """Distances to y over distances to the median, [B]; 1 where all agree."""
    best_B: Floats = np.abs(x_Bn - Median()(x_Bn)[:, None]).sum(axis=1)
    ours_B: Floats = np.abs(x_Bn - y_B[:, None]).sum(axis=1)
    return np.where(best_B > 0, ours_B / np.where(best_B > 0, best_B, 1.0), 1.0)


def uniform_bound(n: int) -> float:
    """max over k of n (n-k) / ((n-k)^2 + k^2): k agents at 1, the others at 0."""
    return max(n * (n - k) / ((n - k) ** 2 + k**2) for k in range(n // 2 + 1))


def fair_share_bound(n: int) -> float:
    """1 + (n-2) / (n^2 - 2n + 2): one agent at 1, the others at 0."""
    return 1 + (n - 2) / (n * n - 2 * n + 2)


def ratios(bench: Bench) -> None:
    """Worst welfare and cost against the optimum, beside the closed forms."""
    sizes = (3, 5, 11, 51, 201)
    drawn = bench.pick(full=10_000, smoke=1_000)
    curves: dict[str, list[float]] = {}
    bounds: dict[Rule, Callable[[int], float]] = {
        UniformPhantom(): uniform_bound,
        FairSharePhantoms(): fair_share_bound,
    }
    for rule, bound in bounds.items():
        errors, above, dear, steep = [], [], [], []
        for n in bench.track(sizes, f"ratios of {rule.name}"):
            corners_Bn = (np.arange(n) < np.arange(n + 1)[:, None]).astype(float)
            random_Bn = bench.generator("ratios", rule.name, n).random((drawn, n))
            random_Bn[::2] = np.round(random_Bn[::2])
            lone_Bn = np.eye(n)[:1] / n  # one agent at 1/n, the others at 0
            welfare, cost = (worst(ratio, rule, corners_Bn) for ratio in (welfare_of, cost_of))
            errors += [abs(welfare - bound(n)), abs(cost - (2 - 2 / n))]
            above.append(worst(welfare_of, rule, random_Bn) - bound(n))
            dear.append(worst(cost_of, rule, random_Bn) - (2 - 2 / n))
            steep.append(abs(worst(cost_of, rule, lone_Bn) - (n - 1)))
            curves.setdefault(rule.name, []).append(welfare)
            bench.arm(
                f"{rule.name}, n={n}",
                welfare_ratio=welfare,
                welfare_bound=bound(n),
                cost_ratio=cost,
                cost_closed_form=2 - 2 / n,
                random_cost_ratio=worst(cost_of, rule, random_Bn),
                worst_cost_ratio=worst(cost_of, rule, lone_Bn),
            )
        for claim, measured in (
            ("worst profiles of zeros and ones off the closed forms by", errors),
            ("welfare ratio of random profiles above the closed form by", above),
            ("cost ratio of random profiles above 2-2/n by", dear),
            ("cost ratio of n-1 agents at 0 and one at 1/n off n-1 by", steep),
        ):
            bench.verdict(f"{rule.name}: {claim}", max(measured), at_most=EXACT)
    limit = (1 + 2**0.5) / 2
    last = curves[UniformPhantom.name][-1]
    bench.verdict(
        "price of proportional fairness at n=201", last, at_least=limit - 1e-4, at_most=limit
    )
    with bench.plot("welfare", "Worst welfare ratio: measured (points), closed form (lines)") as (
        axes,
    ):
        n = np.arange(2, 202)
        for rule, bound in bounds.items():
            (line,) = axes.plot(n, [bound(int(one)) for one in n], label=rule.name)
            axes.plot(sizes, curves[rule.name], "o", ms=4, color=line.get_color())
        axes.axhline(1, color="gray", lw=1, label="median")
        axes.set(xscale="log", xlabel="agents n", ylabel="optimal welfare / welfare")
        axes.legend(fontsize=8)


def best_responses(x_Bn: Floats, rounds: int) -> list[Floats]:
    """Reports after each round in which all agents, in turn, answer the others under the mean."""
    report_Bn = x_Bn.copy()
    history = [report_Bn.copy()]
    n = x_Bn.shape[1]
    for _ in range(rounds):
        for i in range(n):
            others_B = report_Bn.sum(axis=1) - report_Bn[:, i]
            report_Bn[:, i] = np.clip(n * x_Bn[:, i] - others_B, 0, 1)
        history.append(report_Bn.copy())
        if (history[-1] == history[-2]).all():
            break
    return history


def equilibria(bench: Bench) -> None:
    """Where best responses under the mean end, in small groups and in a society of 100."""
    each = bench.pick(full=30, smoke=5)
    gaps = []
    for n in bench.track(range(2, 12), "equilibria"):
        x_Bn = bench.generator("equilibria", n).random((each, n))
        reached_Bn = best_responses(x_Bn, 1_000)[-1]
        gaps.append(np.abs(reached_Bn.mean(axis=1) - UniformPhantom()(x_Bn)).max())
    claim = f"mean's equilibria in {10 * each} groups of 2 to 11: distance from the Uniform Phantom"
    bench.verdict(claim, max(gaps), at_most=1e-3)
    x_Bn = bench.generator("society").random((bench.pick(full=100, smoke=20), 100))
    history = best_responses(x_Bn, 50)
    distortion = [float(np.abs(report_Bn - x_Bn).mean()) for report_Bn in history]
    gap = [float(np.abs(r.mean(axis=1) - UniformPhantom()(x_Bn)).mean()) for r in history]
    at_ends = float(np.isin(history[-1], (0, 1)).mean())
    bench.arm(
        "100 best-responding agents, mean",
        rounds_to_converge=len(history) - 1,
        report_distortion=distortion[-1],
        reports_at_an_end=at_ends,
        truthful_distance_from_uniform_phantom=gap[0],
        final_distance_from_uniform_phantom=gap[-1],
    )
    bench.verdict(
        "100 agents under the mean: final distance from the Uniform Phantom", gap[-1], at_most=1e-3
    )
    # uniform ideal points, all but one agent at 0 or 1 on its own side of 1/2: E|r - x| = 1/4
    bench.verdict(
        "100 agents under the mean: report distortion", distortion[-1], at_least=0.24, at_most=0.26
    )
    bench.verdict("100 agents under the mean: share of reports at 0 or 1", at_ends, at_least=0.95)
    with bench.plot("society", "100 agents who answer each other under the mean") as (axes,):
        axes.plot(distortion, label="distance of reports from the truth")
        axes.plot(gap, label="distance of the mean from the Uniform Phantom")
        axes.set(xlabel="round", ylabel="mean over societies")
        axes.legend(fontsize=8)


def influence(bench: Bench) -> None:
    """How far liars at 1 move each rule."""
    draws = bench.pick(full=200, smoke=40)
    x_Bn = bench.generator("influence").normal(0.30, 0.1, (draws, 1_000)).clip(0, 1)
    expected = {Mean(): (0.140, 0.003), UniformPhantom(): (0.037, 0.003), Median(): (0.031, 0.003)}
    shares = np.linspace(0, 0.5, 11)
    with bench.plot("influence", "Shift of the outcome by liars who report 1") as (axes,):
        for rule, (shift, error) in expected.items():
            moved = mean_interval(shifts(rule, x_Bn, LIARS), seed=bench.seed)
            bench.arm(f"{rule.name}, {LIARS:.0%} liars", shift=moved)
            claim = f"{rule.name}: shift by {LIARS:.0%} liars"
            bench.verdict(claim, moved, at_least=shift - error, at_most=shift + error)
            axes.plot(shares, [shifts(rule, x_Bn, s).mean() for s in shares], label=rule.name)
        axes.plot(shares, shares, ":", color="gray", label="share of liars")
        axes.set(xlabel="share of liars", ylabel="shift of the outcome")
        axes.legend(fontsize=8)
    excess = max((shifts(UniformPhantom(), x_Bn, s) - s).max() for s in shares)
    bench.verdict("Uniform Phantom: shift beyond the share of liars", excess, at_most=1e-12)


def shifts(rule: Rule, x_Bn: Floats, share: float) -> Floats:
    """By how much the outcome rises when the first ``share`` of agents report 1, [B]."""
    lies_Bn = x_Bn.copy()
    lies_Bn[:, : round(share * x_Bn.shape[1])] = 1
    return rule(lies_Bn) - rule(x_Bn)


def markets(bench: Bench) -> None:
    """Budgets: two alternatives are the Uniform Phantom; three are truthful and proportional."""
    rng = bench.generator("markets")
    profiles = [rng.random(int(rng.integers(1, 9))) for _ in range(300)]
    pairs = [(independent_markets(np.c_[x, 1 - x])[0], UniformPhantom()(x)) for x in profiles]
    apart = max(abs(float(one - other)) for one, other in pairs)
    bench.verdict(
        "independent markets of 2: distance from the Uniform Phantom", apart, at_most=EXACT
    )
    broken = audit_markets(5, 3, trials=bench.pick(full=2_000, smoke=150), seed=bench.seed)
    worst = max((one.shortfall for one in broken.counterexamples), default=0.0)
    bench.verdict("independent markets of 3: gain by a lie, error of shares", worst, at_most=EXACT)


def commons(bench: Bench) -> None:
    """A harvest cap settled among five agents: how long the stock lasts, by rule and liars."""
    for high in (GREEDY, 1.2 * ASKED):
        for rule in (Mean(), Median(), UniformPhantom()):
            caps, months = [], []
            for liars in range(5):
                wanted = [min(GREEDY, high)] * liars + [ASKED] * (5 - liars)
                caps.append(settle(wanted, 0, high, rule=rule).value)
                months.append(survival(caps[-1]))
            bench.arm(
                f"commons on [0, {high:g}], {rule.name}",
                cap_with_1_liar=caps[1],
                months_with_0_liars=months[0],
                months_with_1_liar=months[1],
                months_with_2_liars=months[2],
                months_with_4_liars=months[4],
            )
            cap = {"mean": 28, "median": 10, "uniform-phantom": 20}[rule.name]
            if high == GREEDY:
                claim = f"{rule.name}: cap on [0, {high:g}] with one liar in five"
                bench.verdict(claim, caps[1], at_least=cap - EXACT, at_most=cap + EXACT)


def survival(cap: float, *, months: int = 12) -> int:
    """Months that a stock of 100 lasts when five agents harvest up to ``cap`` each."""
    stock = 100.0
    for month in range(months):
        stock -= min(stock, 5 * cap)
        if stock < 5:
            return month + 1
        stock = min(100.0, 2 * stock)
    return months


def scale(bench: Bench) -> None:
    """A million reports at once, and one of them changed."""
    n = 1_000_000
    x = bench.generator("scale").random(n)
    weights = bench.generator("weights").random(n)
    phantoms = np.arange(1, n) / n
    arms = {
        "median of 2n-1 numbers": lambda: np.sort(np.concatenate((x, phantoms)))[n - 1],
        "Uniform Phantom": lambda: UniformPhantom()(x),
        "settled": lambda: settle(x),
        "settled by weight": lambda: settle(x, weights=weights),
    }
    timings = alternate(arms, rounds=bench.pick(full=20, smoke=3))
    for name, timing in timings.items():
        bench.arm(f"10⁶ reports, {name}", wall_s=timing.seconds(), cpu_s=timing.seconds("cpu"))
    bench.verdict(
        "10⁶ reports settled: CPU seconds", timings["settled"].seconds("cpu"), at_most=0.15
    )
    running = RunningUniformPhantom(dict(enumerate(x.tolist())))
    rng = bench.generator("updates")
    changes = bench.pick(full=10_000, smoke=1_000)
    agents, values = rng.integers(0, n, changes).tolist(), rng.random(changes).tolist()
    seconds = np.empty((changes // 100, 2))
    for batch in bench.track(range(len(seconds)), "updates"):
        wall, cpu = time.perf_counter(), time.process_time()
        for i in range(100 * batch, 100 * batch + 100):
            running.report(agents[i], values[i])
            y = running.value
            x[agents[i]] = values[i]
        seconds[batch] = time.perf_counter() - wall, time.process_time() - cpu
    wall_us, cpu_us = (mean_interval(column * 1e4, seed=bench.seed) for column in seconds.T)
    bench.arm("one change among 10⁶ reports", wall_us=wall_us, cpu_us=cpu_us)
    bench.verdict("one change among 10⁶ reports: CPU microseconds", cpu_us, at_most=50)
    bench.verdict(
        "and its outcome is that of settling anew: difference", abs(y - settle(x).value), at_most=0
    )
