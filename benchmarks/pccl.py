"""PCCL: all-reduce next to gloo, under churn next to torchft, on unequal links, and DiLoCo on top.

shoal reproduce pccl

Everything runs in processes (benchmarks/workers/pccl.py) that are killed, frozen and reset for
real. Wall times are of the slowest rank; CPU seconds are those of a rank, on average. On a machine
with two cores four ranks share them, and what else runs there shows in the wall times of all arms
alike: they take turns, and ratios are of medians over rounds.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from shoal.collectives import MasterThread
from shoal.collectives.churn import Crowd, Report, analyse
from shoal.collectives.simulator import explore
from shoal.collectives.wan import ShapedNetwork, unavailable
from shoal.core.claims import Bench
from shoal.core.stats import mean_interval
from shoal.models.catalog import DEFAULT

WORKER = Path(__file__).parent / "workers" / "pccl.py"
TEXTS = Path(__file__).parents[1] / "examples" / "documents"
TOKEN = "benchmark"
PACE = 4_000_000
"""Bytes a second of one flow, where flows are capped."""


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
    diloco(bench)
    if not bench.smoke:
        smollm(bench)
    speed(bench)
    if not bench.smoke:
        paced(bench)
        unequal_links(bench)
    churn(bench)
    if not bench.smoke:
        churn_torchft(bench)
    schedules(bench)


# --- processes ----------------------------------------------------------------------------------


def command(role: str, **options: Any) -> list[str]:
    return [sys.executable, str(WORKER), role, json.dumps(options)]


def lines_of(commands: Sequence[Sequence[str]], *, timeout: float) -> list[list[dict[str, Any]]]:
    """Run processes side by side until all have ended; what each printed."""
    running = [
        subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for one in commands
    ]
    try:
        found = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(running, found, strict=True):
        assert process.returncode in (0, -9), errors
    return [[json.loads(line) for line in out.splitlines()] for out, _ in found]


# --- the state machine --------------------------------------------------------------------------


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


# --- speed --------------------------------------------------------------------------------------


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


# --- churn --------------------------------------------------------------------------------------


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


# --- DiLoCo -------------------------------------------------------------------------------------


SETTINGS: dict[str, dict[str, Any]] = {
    "averaging": {},
    "averaging, u8": {"quantization": "min_max"},
    "averaging, one killed and back": {"churn": True},
    "averaging, one step delayed": {"delayed": True},
    "lr 0.7, Nesterov 0.9": {"published": True},
}


def diloco(bench: Bench) -> None:
    """Three workers, one killed in round 3 and back in round 6, beside one and every-step."""
    rounds, H = bench.pick(full=10, smoke=2), bench.pick(full=20, smoke=5)
    steps = rounds * H
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text"
        files = sorted(TEXTS.glob("*/*"))
        text.write_bytes(b"\n".join(path.read_bytes() for path in files if path.is_file()))
        common = {"text": str(text), "seed": bench.seed, "inner_steps": H, "rounds": rounds}
        single, every = alone(text, steps, bench.seed, 1), alone(text, steps, bench.seed, 3)
        bench.arm("one worker alone", held_out_nats=single)
        bench.arm("every-step data parallel, three workers", held_out_nats=every)
        curves = {}
        for name in bench.track(list(SETTINGS)[: 1 if bench.smoke else None], "DiLoCo"):
            curves[name] = train(name, bench, {**common, **SETTINGS[name]}, single, every)
    draw_diloco(bench, curves, single, every)


def draw_diloco(
    bench: Bench, curves: Mapping[str, Sequence[float]], single: float, every: float
) -> None:
    with bench.plot("diloco", "Held-out loss after each round") as (axes,):
        for name, losses in curves.items():
            axes.plot(range(1, len(losses) + 1), losses, "o-", ms=3, label=f"DiLoCo, {name}")
        axes.axhline(single, color="gray", ls=":", label="one worker")
        axes.axhline(every, color="black", ls="--", label="every step")
        axes.set(xlabel="outer round", ylabel="nats a byte")
        axes.legend(fontsize=7)


def alone(text: Path, steps: int, seed: int, workers: int) -> float:
    """Held-out loss of one model on the batches of that many workers, in one process."""
    import torch

    from shoal.training.byte_llama import ByteLlama, rows, tiny_config

    data = torch.frombuffer(bytearray(text.read_bytes()), dtype=torch.uint8)
    cut = int(0.9 * len(data))
    model = ByteLlama(tiny_config(), seed=seed)
    inner = torch.optim.AdamW(model.parameters.values(), 3e-3)
    for step in range(steps):
        inner.zero_grad()
        seeds = [hash((seed, worker, 0, step)) & (2**40 - 1) for worker in range(workers)]
        batch = torch.cat([rows(data[:cut], batch=6, length=65, seed=one) for one in seeds])
        model.loss(batch).backward()
        inner.step()
    with torch.no_grad():
        return float(model.loss(rows(data[cut:], batch=64, length=65, seed=1)))


def train(
    name: str, bench: Bench, options: Mapping[str, Any], single: float, every: float
) -> list[float]:
    """One configuration in three processes; its losses by round."""
    settings = dict(options)
    churned = settings.pop("churn", False)
    with MasterThread(TOKEN) as master:
        settings["master"] = master.address
        workers = [{**settings, "worker": w, "gather": 3} for w in range(3)]
        if churned:
            workers[2]["leave"] = 3
        commands = [command("diloco", **worker) for worker in workers]
        if churned:
            found = with_a_return(commands, {**settings, "worker": 2})
        else:
            found = lines_of(commands, timeout=200)
    lines = [line for one in found for line in one]
    hashes: dict[int, set[str]] = {}
    for line in lines:
        hashes.setdefault(line["revision"], set()).add(line["hash"])
    last = {line["revision"]: line["loss"] for line in found[0] if line["committed"]}
    losses = [last[revision] for revision in sorted(last)]
    tokens = settings["inner_steps"] * 6 * 64
    per_token = float(np.mean([line["tx"] for line in found[0] if line["committed"]])) / tokens
    later = sum(line["fetched"] for one in found for line in one[1:])
    joining = max((one[0]["fetched"] for one in found[3:] if one), default=0)
    bench.arm(
        f"DiLoCo, {name}",
        held_out_nats=losses[-1],
        sent_bytes_a_token=per_token,
        revisions_with_differing_bits=sum(len(one) > 1 for one in hashes.values()),
        **({"state_bytes_fetched_on_joining": joining} if churned else {}),
        state_bytes_fetched_after_joining=later,
        smallest_world=min((min(line["worlds"]) for line in lines if line["worlds"]), default=0),
    )
    differing = sum(len(one) > 1 for one in hashes.values())
    bench.verdict(f"DiLoCo, {name}: revisions with differing bits", differing, at_most=0)
    bench.verdict(f"DiLoCo, {name}: state bytes fetched after joining", later, at_most=0)
    if not bench.smoke and "Nesterov" not in name:
        share = (single - losses[-1]) / (single - every)
        claim = f"DiLoCo, {name}: share of every-step's gain over one worker"
        bench.verdict(claim, share, at_least=0.3)
    return losses


def with_a_return(
    commands: Sequence[Sequence[str]], options: Mapping[str, Any]
) -> list[list[dict[str, Any]]]:
    """Three workers, of which the third kills itself; another joins once the others are at 6.

    It is started at once and waits, as loading torch takes longer than the rounds that are left.
    """
    with tempfile.TemporaryDirectory() as folder, Crowd(list, most=4) as crowd:
        signal = Path(folder) / "join"
        for one in (*commands, command("diloco", **options, after=str(signal))):
            crowd.command = lambda one=one: one  # type: ignore[misc]
            crowd.start()
        first = [event.pid for event in crowd.done]
        back = False
        deadline = time.monotonic() + 200
        while crowd.alive() and time.monotonic() < deadline:
            rounds = [line["revision"] for line in list(crowd.lines) if line["pid"] == first[0]]
            if not back and rounds and max(rounds) >= 5:
                signal.touch()
                back = True
            time.sleep(0.05)
        pids = [event.pid for event in crowd.done]
        return [[line for line in crowd.lines if line["pid"] == pid] for pid in pids]


# --- a pretrained model -------------------------------------------------------------------------


PARTS: dict[str, dict[str, Any]] = {
    "norms": {"rounds": 2, "inner": "AdamW", "lr": 1e-3},
    "all weights": {"rounds": 1, "inner": "SGD", "lr": 1e-2},
}


def smollm(bench: Bench) -> None:
    """SmolLM2-135M between two workers: what a small trainable part saves on the wire."""
    inner_steps, sent = 4, {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text"
        files = sorted(TEXTS.glob("*/*"))
        text.write_bytes(b"\n".join(path.read_bytes() for path in files if path.is_file()))
        for part, setting in PARTS.items():
            options = {"part": part, "model": DEFAULT, "text": str(text), "seed": bench.seed}
            with MasterThread(TOKEN) as master:
                options |= {"master": master.address, "inner_steps": inner_steps, **setting}
                commands = [command("smollm", **options, worker=worker) for worker in range(2)]
                found = lines_of(commands, timeout=200)
            hashes = [{lines[i]["hash"] for lines in found} for i in range(setting["rounds"])]
            differing = sum(len(one) > 1 for one in hashes)
            last = found[0][-1]
            sent[part] = last["tx"] / (inner_steps * 2 * 64)
            bench.arm(
                f"SmolLM2-135M, {part}",
                parameters=last["parameters"],
                sent_bytes_a_token=sent[part],
                held_out_nats_before=last["before"],
                held_out_nats_after=last["after"],
                train_s=float(np.median([line["train_seconds"] for line in found[0]])),
                share_s=float(np.median([line["share_seconds"] for line in found[0]])),
                revisions_with_differing_bits=differing,
            )
            bench.verdict(f"SmolLM2, {part}: revisions with differing bits", differing, at_most=0)
    fewer = sent["all weights"] / sent["norms"]
    bench.verdict("SmolLM2: bytes of all weights over those of the norms", fewer, at_least=100)
