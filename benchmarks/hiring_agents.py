"""The best contract correlates who works, and can be learnt at a regret of order T^(2/3).

    shoal reproduce hiring-agents [--smoke]

The correlated program beside the best single profile of efforts and the best rules for each agent
alone; learners beside polling everybody at flat pay, among simulated best responders; and two
copies of a small model, whose efforts are tokens (benchmarks/deciding).
"Online Information Acquisition: Hiring Multiple Agents" (arXiv 2307.06210).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deciding import hired_models
from shoal.core.claims import Bench, alternate
from shoal.core.stats import mean_interval
from shoal.mechanisms.hiring.agents import TIE, Spell, play_all, regret
from shoal.mechanisms.hiring.examples import common_noise, independent_noise
from shoal.mechanisms.hiring.information_acquisition import (
    ASSUMES,
    solve_correlated,
    solve_deterministic,
    solve_uncorrelated,
    worth,
)
from shoal.mechanisms.hiring.learners import UCBLP, ExploreThenCommit, Setting
from shoal.mechanisms.hiring.lp import variables
from shoal.mechanisms.hiring.oracle import widest_rules
from shoal.mechanisms.hiring.problem import AcquisitionProblem, largest_gain, problem

PUBLISHED = 1e-4
KINDS: dict[str, Callable[[Setting], ExploreThenCommit]] = {
    "explore then commit": ExploreThenCommit,
    "UCB-LP": UCBLP,
}


def run(bench: Bench) -> None:
    """Measure optima, incentives, size, and the regret of learning."""
    bench.workload = (
        "Two agents (up to 5 for the size) with efforts 0 and 1, two signals, two equally likely "
        "states; no effort shows a coin. Common noise: all who work see the same. Random problems: "
        "2 or 3 agents, up to 3 efforts, signals and states, signals correlated by a hidden draw. "
        "Learning: common noise, accuracy 0.7, cost 0.06, cap 1. All these agents are simulated "
        "best responders, found by enumeration. Regret is expected, round by round; a "
        "contract that anybody gains by breaking is charged the worst a round can bring (-2). "
        "Models: two copies of SmolLM2-135M say whether a sum of three one-digit "
        "numbers from reasoning-gym is what somebody claims; they guess, answer at once or write "
        "the steps. Signal laws and token costs from 60 sums, the contract held to 140 others; "
        "models do as they are told, as their prompt is all there is. Assumed: "
        + " ".join(ASSUMES[:-1])
    )
    optima(bench)
    incentives(bench)
    size(bench)
    learning(bench)
    hired_models.with_models(bench)


def optima(bench: Bench) -> None:
    """The published instances."""
    cases = {
        "common noise, c=.06, M=1": (common_noise(), 0.5723, 0.5),
        "common noise, c=.03, M=1": (common_noise(cost=0.03), 0.6381, 0.5950),
        "common noise, c=.06, M=5": (common_noise(cap=5.0), 0.5785, 0.5),
        "common noise, q=.8, c=.1, M=5": (
            common_noise(accuracy=0.8, cost=0.1, cap=5.0), 0.5959, 0.5333,
        ),
        "independent noise, c=.03, M=1": (independent_noise(cost=0.03), 0.5950, 0.5950),
        "one agent, q=(.5, .85), c=.08": (
            independent_noise(1, accuracies=(0.5, 0.85), cost=0.08), 0.6557, 0.6557,
        ),
    }  # fmt: skip
    for name, (case, best, simple) in cases.items():
        contract = solve_correlated(case)
        correlated = worth(contract, case)
        single = solve_deterministic(case)[1].utility
        alone = solve_uncorrelated(case).terms
        bench.arm(
            name,
            correlated=correlated.utility,
            one_profile=single,
            each_alone=alone.utility,
            nobody_hired=case.unhired,
            share_of_both=float(contract.mu[(1,) * case.agents]),
            expected_pay=correlated.pay,
        )
        for what, found, expected in (
            ("correlated", correlated.utility, best),
            ("best single profile", single, simple),
            ("each alone", alone.utility, simple),
        ):
            claim = f"{name}: utility, {what}"
            bench.verdict(claim, found, at_least=expected - PUBLISHED, at_most=expected + PUBLISHED)
    caps = np.geomspace(0.5, 20, bench.pick(full=25, smoke=8))
    shares = [float(solve_correlated(common_noise(cap=cap)).mu[1, 1]) for cap in caps.tolist()]
    for cap, share in ((1.0, 0.064), (5.0, 0.012)):
        found = float(solve_correlated(common_noise(cap=cap)).mu[1, 1])
        claim = f"share of rounds in which both work, M={cap:g}"
        bench.verdict(claim, found, at_least=share - 5e-4, at_most=share + 5e-4)
    pay = solve_uncorrelated(cases["one agent, q=(.5, .85), c=.08"][0]).terms.pay
    bench.verdict("one agent: expected pay q1 c / (q1 - q0)", pay, at_least=0.1942, at_most=0.1944)
    with bench.plot("audits", "The larger the cap on pay, the rarer the check") as (axes,):
        axes.plot(caps, shares, "o-", ms=4)
        axes.set(xscale="log", xlabel="cap M", ylabel="share of rounds in which both work")


def incentives(bench: Bench) -> None:
    """Every deviation on random problems, and what more freedom is worth."""
    gains, over_single, over_alone, paid = [], [], [], []
    for k in bench.track(range(bench.pick(full=200, smoke=40)), "random problems"):
        case = random_problem(bench.generator("problem", k), 2 + k % 2)
        contract = solve_correlated(case)
        best = worth(contract, case).utility
        paid.append(worth(contract, case).pay > 1e-6)
        single = solve_deterministic(case)[1].utility
        gains.append(largest_gain(contract, case.P, case.differences))
        over_single.append(best - single)
        over_alone.append(single - solve_uncorrelated(case).terms.utility)
    bench.arm(
        f"{len(gains)} random problems",
        correlated_minus_one_profile=mean_interval(over_single, seed=bench.seed),
        one_profile_minus_each_alone=mean_interval(over_alone, seed=bench.seed),
        share_where_somebody_is_paid=float(np.mean(paid)),
        share_where_correlation_pays=float(np.mean(np.array(over_single) > 1e-6)),
    )
    claim = f"largest gain by a deviation in {len(gains)} random problems"
    bench.verdict(claim, max(gains), at_most=1e-7)
    bench.verdict("correlated below the best single profile by", -min(over_single), at_most=1e-7)
    bench.verdict("best single profile below each alone by", -min(over_alone), at_most=1e-7)


def random_problem(rng: np.random.Generator, n: int) -> AcquisitionProblem:
    """Signals that share a hidden draw, blurred by effort; effort 0 says nothing about it."""
    most = 3 if n == 2 else 2
    efforts, signals = rng.integers(2, most + 1, (2, n)).tolist()
    states, hidden = int(rng.integers(2, most + 1)), 3
    P = rng.dirichlet(np.full(hidden, 0.5), states) / states
    P = P.reshape((1,) * n + (states, hidden) + (1,) * n)
    for i in range(n):
        blur = rng.dirichlet(np.full(signals[i], 0.4), (efforts[i], states, hidden))
        blur[0] = blur[0, 0, 0]
        axes = [1] * (2 * n + 2)
        axes[i], axes[n], axes[n + 1], axes[n + 2 + i] = blur.shape
        P = P * blur.reshape(axes)
    costs = [0.05 * rng.random(count) * np.arange(count) for count in efforts]
    return problem(P.sum(axis=n + 1), costs, np.eye(states), float(rng.uniform(0.3, 3)))


def size(bench: Bench) -> None:
    """Variables and seconds as agents are added."""
    cases = {n: common_noise(n) for n in (2, 3, 4, 5)}
    arms = {str(n): lambda case=case: solve_correlated(case) for n, case in cases.items()}
    timings = alternate(arms, rounds=bench.pick(full=10, smoke=3))
    for n, case in cases.items():
        bench.arm(
            f"{n} agents, common noise",
            variables=variables(case.efforts, case.states, case.signals),
            wall_s=timings[str(n)].seconds(),
            cpu_s=timings[str(n)].seconds("cpu"),
        )
    bench.verdict("5 agents solved: CPU seconds", timings["5"].seconds("cpu"), at_most=1.0)


def learning(bench: Bench) -> None:
    """Regret by length of the run, of both learners and of principals that do not learn."""
    case = common_noise()
    oracle = widest_rules(case)
    optimum = worth(solve_correlated(case), case).utility
    lengths = bench.pick(full=(10**3, 10**4, 10**5, 10**6), smoke=(10**3, 10**4, 10**5))
    seeds = bench.pick(full=5, smoke=2)
    table: dict[str, dict[int, list[float]]] = {name: {} for name in KINDS}
    runs = [(name, T, seed) for name in KINDS for T in lengths for seed in range(seeds)]
    results: dict[tuple[str, int], list[list[Spell]]] = {}
    for name, T, k in bench.track(runs, "learning"):
        seed = bench.seed_of("learning", k)
        known = Setting(case.P.shape, case.utility, case.cap, oracle, T, seed=seed)
        spells = play_all(KINDS[name](known), case, seed=seed)
        table[name].setdefault(T, []).append(regret(spells, optimum))
        results.setdefault((name, T), []).append(spells)
    flat = {"polling all at flat pay .1": 0.5 - 0.2, "paying all 1 if right": 0.7 - 1.4}
    for (name, T), played in results.items():
        regrets = np.array(table[name][T])
        bench.arm(
            f"{name}, T={T:,}",
            regret_a_round=mean_interval(regrets / T, seed=bench.seed),
            regret_by_T_to_two_thirds=mean_interval(regrets / T ** (2 / 3), seed=bench.seed),
            last_regret_a_round=float(np.mean([optimum - spells[-1].utility for spells in played])),
            share_of_rounds_exploring=float(np.mean([_share(s, explores) for s in played])),
            share_of_rounds_gameable=float(np.mean([_share(s, gameable) for s in played])),
            largest_gain=max(0.0, *(spell.gain for spells in played for spell in spells)),
        )
    for name, utility in {**flat, "hiring nobody": 0.5, "knowing the problem": optimum}.items():
        bench.arm(name, utility_a_round=utility, regret_a_round=optimum - utility)
    fitted = [T for T in lengths if T >= 10**4]
    slopes = {
        name: [
            float(np.polyfit(np.log(fitted), np.log([by_T[T][k] for T in fitted]), 1)[0])
            for k in range(seeds)
        ]
        for name, by_T in table.items()
    }
    ours = mean_interval(slopes["explore then commit"], seed=bench.seed)
    claim = f"explore then commit: slope of log regret, T = 10⁴ to {lengths[-1]:,}"
    bench.verdict(claim, ours, at_least=0.60, at_most=0.72)
    eager = mean_interval(slopes["UCB-LP"], seed=bench.seed)
    bench.arm("slope of log regret", explore_then_commit=ours, ucb_lp=eager)
    ratio = np.mean(table["UCB-LP"][lengths[-1]]) / np.mean(
        table["explore then commit"][lengths[-1]]
    )
    claim = f"UCB-LP: regret by that of explore then commit, T={lengths[-1]:,}"
    bench.verdict(claim, float(ratio), at_most=1.0)
    broken = max(_share(spells, gameable) for played in results.values() for spells in played)
    bench.verdict("rounds under a contract that somebody gains by breaking", broken, at_most=0.0)
    known = Setting(case.P.shape, case.utility, case.cap, oracle, lengths[-1], seed=bench.seed)
    closed = ExploreThenCommit(known, explore=1.0, draws=0)
    spells = play_all(closed, case, seed=bench.seed)
    bench.arm(
        f"closed form of the share, T={lengths[-1]:,}",
        share_of_known_rules=closed.state.share,
        last_regret_a_round=optimum - spells[-1].utility,
        regret_by_T_to_two_thirds=regret(spells, optimum) / lengths[-1] ** (2 / 3),
    )
    with bench.plot("regret", "Regret of learning whom to hire, with T^(2/3)") as (axes,):
        for name, by_T in table.items():
            means = [float(np.mean(by_T[T])) for T in lengths]
            axes.plot(lengths, means, "o-", ms=4, label=name)
        axes.plot(
            lengths, [4 * T ** (2 / 3) for T in lengths], ":", color="gray", label="4 T^(2/3)"
        )
        axes.plot(lengths, [T * (optimum - 0.5) for T in lengths], "--", label="hiring nobody")
        axes.set(xscale="log", yscale="log", xlabel="rounds T", ylabel="regret")
        axes.legend(fontsize=8)


def explores(spell: Spell) -> bool:
    """Whether it is played to learn only."""
    return spell.phase in ("signals", "costs")


def gameable(spell: Spell) -> bool:
    """Whether an agent gains by a deviation."""
    return spell.gain > TIE


def _share(spells: list[Spell], which: Callable[[Spell], bool]) -> float:
    total = sum(spell.rounds for spell in spells)
    return sum(spell.rounds for spell in spells if which(spell)) / total
