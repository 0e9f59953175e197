"""Agents that learn what to contribute, group beside group, held against the equilibrium."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from shoal.core.claims import Bench
from shoal.core.stats import mean_interval, wilson_interval
from shoal.mechanisms.goods.contribution_game import Game
from shoal.mechanisms.goods.subgame_perfect import sequential, simultaneous
from shoal.training.bandit import BanditOptions
from shoal.training.contributions import Learnt, learn_contributions

FULL = Game()
PLAIN = replace(FULL, gamma=0, penalty=0)
PUBLISHED = BanditOptions(spread=1.0, target_kl=0.015, decay=0.98)
NEAR = 0.1


def learnt_contributions(bench: Bench) -> None:
    """The plain game, the full reward in sequence, and the same with all at once."""
    many, some, epochs = bench.pick(full=(20, 8, 200), smoke=(3, 2, 20))
    arms = {
        "plain public goods game": (PLAIN, "all", BanditOptions(), some),
        "full reward, all seen": (FULL, "all", BanditOptions(), many),
        "full reward, the last seen": (FULL, "last", BanditOptions(), some),
        "full reward, all at once": (FULL, "none", BanditOptions(), many),
        "full reward, published spread and KL": (FULL, "all", PUBLISHED, some),
    }
    found: dict[str, Learnt] = {}
    started = time.process_time()
    for name, (game, observe, options, groups) in bench.track(list(arms.items()), "learning"):
        found[name] = one = learn_contributions(
            game, observe=observe, groups=groups, epochs=epochs, options=options,  # type: ignore[arg-type]
            seed=bench.seed_of("contributions", name),
        )  # fmt: skip
        totals = one.contributions.sum(axis=1)
        places = sequential(game) if observe != "none" else simultaneous(game)
        bench.arm(
            f"learnt: {name}",
            **{f"c{i + 1}": float(c) for i, c in enumerate(one.contributions.mean(axis=0))},
            total=mean_interval(totals, seed=bench.seed) if np.ptp(totals) else float(totals[0]),
            total_in_equilibrium=max(place.total for place in places),
            near_it=wilson_interval(
                int((np.abs(totals - max(place.total for place in places)) <= NEAR).sum()), groups
            ),
            all_ride_free=wilson_interval(
                int((one.contributions <= game.low + 0.05).all(axis=1).sum()), groups
            ),
        )
    seconds = time.process_time() - started
    plain, full = found["plain public goods game"], found["full reward, all seen"]
    bench.verdict(
        "learnt in the plain game: mean contribution",
        float(plain.contributions.mean()),
        at_most=0.2,
    )
    off = np.abs(full.contributions.sum(axis=1) - sequential(FULL)[0].total)
    bench.verdict(
        f"learnt with the full reward: mean distance of {many} totals from the equilibrium's",
        mean_interval(off, seed=bench.seed),
        at_most=NEAR,
    )
    hidden = found["full reward, all at once"].contributions
    bench.verdict(
        f"learnt all at once: share of {many} groups in the bad equilibrium",
        wilson_interval(int((hidden <= FULL.low + 0.05).all(axis=1).sum()), many),
        at_least=0.05,
    )
    bench.verdict("CPU seconds of learning, five games", seconds, at_most=60.0)
    with bench.plot("learning", "Mean contribution learnt, by epoch") as (axes,):
        for name, one in found.items():
            axes.plot(one.history, label=name)
        axes.set(xlabel="epoch of 50 episodes", ylabel="mean contribution")
        axes.legend(fontsize=7)
