"""Peers that are killed, frozen and reset for real, beside torchft under the same script."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rings.processes import TOKEN, command
from shoal.collectives import MasterThread
from shoal.collectives.churn import Crowd, Report, analyse
from shoal.core.claims import Bench


def churn(bench: Bench) -> None:
    """Kill, freeze and reset peers at random; count bits that differ and seconds to recover."""
    parts = [churned(bench, part) for part in range(bench.pick(full=2, smoke=1))]
    kinds = [event.kind for crowd, _ in parts for event in crowd.done]
    reports = [report for _, report in parts]
    differing = sum(report.differing for report in reports)
    fetched = sum(report.fetched_later for report in reports)
    recoveries = [second for report in reports for second in report.recoveries]
    beside = [second for report in reports for second in report.beside_a_freeze]
    bench.arm(
        "churn, this ring",
        events=len(kinds),
        **{kind.replace(" ", "_"): kinds.count(kind) for kind in sorted(set(kinds))},
        steps=sum(report.steps for report in reports),
        revisions=sum(report.revisions for report in reports),
        revisions_with_differing_bits=differing,
        state_bytes_fetched_after_joining=fetched,
        **recovery(recoveries),
        **recovery(beside, "beside_a_freeze_"),
    )
    least = bench.pick(full=200, smoke=4)
    bench.verdict("churn: events", len(kinds), at_least=least)
    bench.verdict("churn: revisions with differing bits", differing, at_most=0)
    bench.verdict("churn: state bytes fetched after joining", fetched, at_most=0)
    slowest = float(np.percentile(recoveries, 95)) if recoveries else 1e3
    bench.verdict(
        "churn: p95 of seconds from a kill to recovery, nobody frozen", slowest, at_most=1
    )
    draw_churn(bench, parts[0][0])


def churned(bench: Bench, part: int) -> tuple[Crowd, Report]:
    """One crowd under all kinds of disruption, for 85 seconds."""
    kinds = ("kill", "kill", "freeze", "long freeze", "reset", "reset")
    seconds = bench.pick(full=85.0, smoke=6.0)
    with MasterThread(TOKEN, heartbeat=0.2, peer_timeout=2.0) as master:
        address = master.address
        return disrupted(
            bench, lambda: command("churn", master=address, pool=2), seconds, kinds, part
        )


def recovery(seconds: Sequence[float], when: str = "") -> dict[str, float]:
    """Quantiles, where there was a kill to recover from."""
    if not seconds:
        return {}
    return {f"recovery_{when}p{q}_s": float(np.percentile(seconds, q)) for q in (50, 95)}


def disrupted(
    bench: Bench, make: Any, seconds: float, kinds: Sequence[str], part: int = 0
) -> tuple[Crowd, Report]:
    """A crowd of up to six under disruption for that long."""
    rng = random.Random(bench.seed_of("churn", part))
    with Crowd(make, most=bench.pick(full=6, smoke=3)) as crowd:
        for _ in range(bench.pick(full=4, smoke=3)):
            crowd.start()
        deadline = time.monotonic() + 30
        while len(crowd.trained()) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        ticks = [rng.uniform(0.5, 2.0) for _ in range(int(seconds / 1.25))]
        for pause in bench.track(ticks, "churn"):
            time.sleep(pause)
            crowd.disrupt(rng, kinds)
        time.sleep(2.0)
        return crowd, analyse(list(crowd.lines), list(crowd.done))


@contextlib.contextmanager
def lighthouse() -> Iterator[str]:
    """torchft's lighthouse in a process of its own."""
    process = subprocess.Popen(
        command("lighthouse"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.kill()
        process.wait()


def churn_torchft(bench: Bench) -> None:
    """Kills and joins by the same script; its collectives wait 2 s for a dead peer."""
    try:
        import torchft  # noqa: F401
    except ImportError:
        bench.workload += " torchft was not installed (extra ft) and is left out."
        return
    with lighthouse() as address:
        crowd, report = disrupted(
            bench,
            lambda: command("churn_torchft", lighthouse=address, timeout=2.0),
            30.0,
            ("kill",),
        )
    bench.arm(
        "churn, torchft with gloo, kills and joins only",
        events=len(crowd.done),
        steps=report.steps,
        revisions=report.revisions,
        revisions_with_differing_bits=report.differing,
        **recovery(report.recoveries),
    )


def draw_churn(bench: Bench, crowd: Crowd) -> None:
    steps = sorted(line["at"] for line in crowd.lines if line["event"] == "step")
    start = steps[0] if steps else 0.0
    with bench.plot("churn", "Committed steps under churn, and what was done") as (axes,):
        axes.plot([at - start for at in steps], range(len(steps)), color="C0")
        for number, kind in enumerate(("kill", "freeze", "long freeze", "reset", "join")):
            at = [e.at - start for e in crowd.done if e.kind == kind]
            axes.plot(at, [-0.03 * len(steps) * (number + 1)] * len(at), "|", label=kind)
        axes.set(xlabel="seconds", ylabel="steps of all peers")
        axes.legend(fontsize=7)
