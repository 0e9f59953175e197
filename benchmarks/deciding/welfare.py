"""What synergy, share and bar do to contributions and welfare, step by step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from deciding.equilibria import FULL
from shoal.core.claims import Bench
from shoal.mechanisms.goods.subgame_perfect import sequential


def synergy(bench: Bench) -> None:
    """From which synergy on the first mover stops riding free under a low bar."""
    gammas = np.round(np.arange(0, 1.5001, bench.pick(full=0.01, smoke=0.05)), 9).tolist()
    low = replace(FULL, bar=1.8)
    solved = [sequential(replace(low, gamma=gamma))[0] for gamma in bench.track(gammas, "synergy")]
    riding = [bool(one.free_riders) for one in solved]
    threshold = gammas[riding.index(False)]
    back = sum(riding[riding.index(False) :])
    bench.arm(
        "bar 1.8, by synergy", least_without_free_riding=threshold, riding_free_again_above_it=back
    )
    bench.verdict(
        "bar 1.8: least synergy without free-riding", threshold, at_least=0.9, at_most=1.1
    )
    bench.verdict("bar 1.8: larger synergies with free-riding", back, at_most=0)
    with bench.plot("synergy", "Contributions in equilibrium under a bar of 1.8, by synergy") as (
        axes,
    ):
        for i in range(3):
            c = [one.contributions[i] for one in solved]
            axes.step(gammas, c, where="post", label=f"agent {i + 1}")
        axes.set(xlabel="synergy γ", ylabel="contribution")
        axes.legend(fontsize=8)


def theorem_2(bench: Bench) -> None:
    """Welfare rises in synergy and share and falls in the bar: at each step of a scan."""
    steps = bench.pick(full=1, smoke=4)
    bars = np.round(np.arange(6, 61, steps) * 0.05, 9).tolist()
    scale_of = {
        "synergy": [
            replace(FULL, gamma=g) for g in np.round(np.arange(0, 61, steps) * 0.05, 9).tolist()
        ],
        "share": [
            replace(FULL, rho=r) for r in np.round(np.arange(0, 60, steps) * 0.05, 9).tolist()
        ],
        "bar": [replace(FULL, bar=b) for b in bars],
        "bar, no synergy, no share": [replace(FULL, gamma=0, rho=0, bar=b) for b in bars],
    }
    curves: dict[str, list[float]] = {}
    rises, falls = {}, {}
    for name, games in bench.track(list(scale_of.items()), "welfare"):
        curves[name] = [sequential(game)[0].welfare for game in games]
        change = np.diff(curves[name])
        rises[name], falls[name] = int((change > 1e-9).sum()), int((change < -1e-9).sum())
        bench.arm(
            f"welfare by {name}",
            steps=len(change),
            rises=rises[name],
            falls=falls[name],
            first=curves[name][0],
            last=curves[name][-1],
        )
    bench.verdict("Theorem 2: steps of synergy at which welfare falls", falls["synergy"], at_most=0)
    bench.verdict("Theorem 2: steps of share at which welfare falls", falls["share"], at_most=0)
    bench.verdict("Theorem 2: steps of the bar at which welfare rises", rises["bar"], at_most=0)
    bench.verdict(
        "without synergy and share: steps of the bar at which welfare rises",
        rises["bar, no synergy, no share"],
        at_most=0,
    )
    with bench.plot("welfare", "Welfare in equilibrium, by the bar") as (axes,):
        axes.plot(bars, curves["bar"], label="full reward")
        axes.plot(bars, curves["bar, no synergy, no share"], label="no synergy, no share")
        axes.set(xlabel="bar B", ylabel="sum of rewards")
        axes.legend(fontsize=8)
