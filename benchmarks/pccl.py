"""PCCL: all-reduce next to gloo, under churn next to torchft, on unequal links, and DiLoCo on top.

shoal reproduce pccl

Everything runs in processes (benchmarks/workers/pccl.py) that are killed, frozen and reset for
real; the parts are in benchmarks/rings. On a machine with two cores four ranks share them, and
what else runs there shows in the wall times of all arms alike.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from rings import churning, speed, training
from shoal.collectives.simulator import explore
from shoal.core.claims import Bench


def run(bench: Bench) -> None:
    """All parts; each is a claim of its own."""
    bench.workload = (
        "All-reduce of f32 on loopback, this ring and gloo in turn within the same processes; the "
        "same with every flow capped at 4 MB/s; a churn of up to six processes that are killed, "
        "frozen and reset every half to two seconds, beside torchft with gloo; links of unequal "
        "rates between network namespaces; random schedules of the master; and DiLoCo with three "
        "processes, of which one is killed and comes back, training a byte-level Llama of 0.36 "
        "million parameters on public-domain text; and two processes that train SmolLM2-135M, the "
        "scales of its norms alone and all of its weights."
    )
    training.diloco(bench)
    if not bench.smoke:
        training.smollm(bench)
    speed.speed(bench)
    if not bench.smoke:
        speed.paced(bench)
        speed.unequal_links(bench)
    churning.churn(bench)
    if not bench.smoke:
        churning.churn_torchft(bench)
    schedules(bench)


def schedules(bench: Bench) -> None:
    """Random schedules; every one that breaks a promise counts."""
    count = bench.pick(full=100_000, smoke=500)
    block = bench.pick(full=500, smoke=250)
    seeds = [bench.seed * 10**9 + at for at in range(0, count, block)]
    events = broken = 0
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = pool.map(partial(explore, count=block), seeds)
        for _ in bench.track(seeds, "random schedules"):
            more, bad = next(found)
            events, broken = events + more, broken + bad
    bench.arm("random schedules", schedules=count, events=events, violations=broken)
    bench.verdict(f"violations in {count:,} random schedules of the master", broken, at_most=0)
