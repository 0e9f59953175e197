"""DiLoCo: a byte-level Llama between three workers, and parts of SmolLM2-135M between two."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rings.processes import TOKEN, command, lines_of, write_text
from shoal.collectives import MasterThread
from shoal.collectives.churn import Crowd
from shoal.core.claims import Bench
from shoal.models.catalog import DEFAULT

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
        text = write_text(folder)
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


PARTS: dict[str, dict[str, Any]] = {
    "norms": {"rounds": 2, "inner": "AdamW", "lr": 1e-3},
    "all weights": {"rounds": 1, "inner": "SGD", "lr": 1e-2},
}


def smollm(bench: Bench) -> None:
    """SmolLM2-135M between two workers: what a small trainable part saves on the wire."""
    inner_steps, sent = 4, {}
    with tempfile.TemporaryDirectory() as folder:
        text = write_text(folder)
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
