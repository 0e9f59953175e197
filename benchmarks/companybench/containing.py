"""Code that tries to leave the sandbox, in every tier there is; and how soon a session starts."""

from __future__ import annotations

import os
import time

import numpy as np

from shoal.core.claims import Bench
from shoal.core.stats import mean_interval
from shoal.sandbox import TIERS, UNPROTECTED, Policy, Sandbox
from shoal.sandbox.attacks import judge, load


def attacks(bench: Bench) -> None:
    suite = load()
    if bench.smoke:
        waits = ("for ever", "never ends", "its time")
        suite = tuple(one for one in suite if not any(word in one.name for word in waits))[::2]
    working = [name for name, tier in TIERS.items() if tier.missing() is None]
    best = working[0]
    tried = working if not bench.smoke else [best]
    contained: dict[str, int] = {}
    for tier in tried:
        verdicts = list(judge(suite, tier))  # type: ignore[arg-type]
        contained[tier] = sum(verdict.contained for verdict in verdicts)
        starts = _starts(tier, bench.pick(full=30, smoke=5))
        reached = [verdict for verdict in verdicts if not verdict.contained]
        bench.arm(
            f"sandbox: {tier}",
            **{
                "attacks contained": float(contained[tier]),
                "attacks": float(len(suite)),
                "not tried, as they would harm": float(sum(not v.tried for v in reached)),
                "milliseconds to start": mean_interval(starts, seed=bench.seed),
                "milliseconds to start, median": float(np.median(starts)),
                "load of the machine": os.getloadavg()[0],
                "milliseconds a run": _run(tier),
            },
        )
        if tier == best:
            bench.verdict(
                f"{best} contains every one of {len(suite)} attacks",
                contained[tier] / len(suite),
                at_least=1.0,
            )
            bench.verdict(
                f"a session of {best} starts within 40 milliseconds (median)",
                float(np.median(starts)),
                at_most=40.0,
            )
    with bench.plot("attacks", "Attacks contained, by tier") as (axes,):
        axes.barh(list(contained)[::-1], list(contained.values())[::-1])
        axes.axvline(len(suite), color="grey", linestyle=":")
        axes.set_xlabel(f"of {len(suite)}")


def _starts(tier: str, rounds: int) -> np.ndarray:
    """Milliseconds from nothing to a first answer."""
    spent = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        session = Sandbox.open(Policy(tier=tier, unprotected=UNPROTECTED))  # type: ignore[arg-type]
        assert session.run("1 + 1").value == 2
        spent.append(1000 * (time.perf_counter() - began))
        session.close()
    return np.array(spent[1:])


def _run(tier: str) -> float:
    session = Sandbox.open(Policy(tier=tier, unprotected=UNPROTECTED))  # type: ignore[arg-type]
    began = time.perf_counter()
    for number in range(100):
        session.run(f"{number} + 1")
    took = time.perf_counter() - began
    session.close()
    return 10 * took
