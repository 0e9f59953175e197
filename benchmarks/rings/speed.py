"""How fast: next to gloo on loopback, with capped flows, over links of unequal rates.

Wall times are of the slowest rank; CPU seconds are those of a rank, on average. Arms take turns
within the same processes, and ratios are of medians over rounds. gloo works in place and leaves a
mixture behind when it fails; "input kept" copies first, as who wants to try again must.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from rings.processes import TOKEN, command, lines_of
from shoal.collectives import MasterThread
from shoal.collectives.wan import ShapedNetwork, unavailable
from shoal.core.claims import Bench
from shoal.core.stats import mean_interval

PACE = 4_000_000
"""Bytes a second of one flow, where flows are capped."""


def micro(world: int, sizes: Sequence[tuple[float, int]], **options: Any) -> dict[float, Any]:
    """Seconds by size and arm: wall [rounds] of the slowest rank, CPU [rounds] of the mean one."""
    with tempfile.TemporaryDirectory() as folder, MasterThread(TOKEN) as master:
        commands = [
            command(
                "micro", master=master.address, world=world, rank=rank, sizes=sizes,
                rendezvous=f"{folder}/gloo", **options,
            )
            for rank in range(world)
        ]  # fmt: skip
        found = lines_of(commands, timeout=300)
    result: dict[float, Any] = {}
    for place, (mib, _) in enumerate(sizes):
        ranks = [lines[place]["seconds"] for lines in found]
        result[mib] = {
            arm: (
                np.max([np.array(rank[arm])[:, 0] for rank in ranks], axis=0),
                np.mean([np.array(rank[arm])[:, 1] for rank in ranks], axis=0),
            )
            for arm in ranks[0]
        }
    return result


def speed(bench: Bench) -> None:
    """1 to 64 MiB on loopback between 2 and 4 peers, next to gloo."""
    plan = bench.pick(
        full={2: ((1, 40), (4, 30), (16, 20), (64, 8)), 4: ((1, 30), (4, 20), (16, 14), (64, 6))},
        smoke={2: ((1, 5), (16, 5))},
    )
    curves: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for world, sizes in plan.items():
        for mib, arms in micro(world, sizes).items():
            for arm, (wall, cpu) in arms.items():
                bench.arm(
                    f"{world} peers, {mib} MiB, {arm}",
                    wall_ms=mean_interval(1e3 * wall, seed=bench.seed),
                    wall_median_ms=1e3 * float(np.median(wall)),
                    cpu_ms=mean_interval(1e3 * cpu, seed=bench.seed),
                )
                curves.setdefault((world, arm), []).append((mib, 1e3 * float(np.median(wall))))
            if mib < 16:
                continue
            for arm in ("ring", "ring in place"):
                slower, dearer = (ratio(arms[arm][i], arms["gloo"][i]) for i in (0, 1))
                what = f"{arm}, {world} peers, {mib} MiB"
                bench.verdict(f"{what}: wall over gloo's", slower, at_most=2)
                bench.verdict(f"{what}: CPU over gloo's", dearer, at_most=1.1)
    with bench.plot("sizes", "All-reduce on loopback", panels=len(plan)) as panels:
        for axes, world in zip(panels, plan, strict=True):
            for (peers, arm), points in curves.items():
                if peers == world:
                    axes.plot(*zip(*points, strict=True), "o-", ms=3, label=arm)
            axes.set(xscale="log", yscale="log", xlabel="MiB", ylabel="ms (median)")
            axes.set_title(f"{world} peers", fontsize=9)
            axes.legend(fontsize=8)


def ratio(ours: Any, theirs: Any) -> float:
    """Of medians over rounds."""
    return float(np.median(ours) / np.median(theirs))


def paced(bench: Bench) -> None:
    """Every flow capped: what several connections and eight bits are for."""
    sizes = ((4, 5),)
    ((_, one),) = micro(2, sizes, pacing=PACE, arms=["gloo", "ring", "ring u8"]).items()
    pools = {1: one["ring"][0]}
    for pool in (4, 8):
        ((_, more),) = micro(2, sizes, pacing=PACE, pool=pool, arms=["ring"]).items()
        pools[pool] = more["ring"][0]
    bench.arm("flows of 4 MB/s, gloo", wall_ms=1e3 * float(np.median(one["gloo"][0])))
    bench.arm("flows of 4 MB/s, ring u8", wall_ms=1e3 * float(np.median(one["ring u8"][0])))
    for pool, wall in pools.items():
        bench.arm(f"flows of 4 MB/s, pool of {pool}", wall_ms=1e3 * float(np.median(wall)))
    bench.verdict("8 connections over 1, flows capped", ratio(pools[1], pools[8]), at_least=6)
    bench.verdict(
        "flows capped: gloo over a pool of 8", ratio(one["gloo"][0], pools[8]), at_least=1
    )
    faster = ratio(one["gloo"][0], one["ring u8"][0])
    bench.verdict("flows capped: gloo over u8 on one connection", faster, at_least=1)


def unequal_links(bench: Bench) -> None:
    """Rings over links of log-uniform rates: in order of arrival, then as measured."""
    if (reason := unavailable()) is not None:
        bench.workload += f" Unequal links were not measured: {reason}."
        return
    hosts = 6
    gains = []
    for draw in bench.track(range(3), "unequal links"):
        rng = bench.generator("links", draw)
        pairs = [(i, j) for i in range(hosts) for j in range(hosts) if i != j]
        rates = {pair: float(np.exp(rng.uniform(np.log(20), np.log(400)))) for pair in pairs}
        with ShapedNetwork(hosts, rates) as network, MasterThread(
            TOKEN, host="0.0.0.0"
        ) as master:  # fmt: skip
            address = f"{network.outside}:{master.address.rpartition(':')[2]}"
            options = {"master": address, "world": hosts, "mib": 2, "rounds": 3, "seconds": 0.4}
            commands = [[*network.command(i), *command("reduce", **options)] for i in range(hosts)]
            found = [lines[0] for lines in lines_of(commands, timeout=120)]
        before, after = (np.max([f[when] for f in found], axis=0) for when in ("before", "after"))
        changed = found[0]["ring_before"] != found[0]["ring_after"]
        gains.append(ratio(before, after))
        bench.arm(
            f"unequal links, draw {draw}",
            arbitrary_ms=1e3 * float(np.median(before)),
            measured_ms=1e3 * float(np.median(after)),
            times_faster=gains[-1],
            ring_changed=int(changed),
        )
    bench.verdict("measured ring over the arbitrary one", float(np.median(gains)), at_least=1.4)
