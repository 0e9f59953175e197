"""The peers of the claim on PCCL: processes that reduce, next to gloo or under churn.

python benchmarks/workers/pccl.py ROLE '{"master": …}'

Each prints JSON lines. The claim (benchmarks/pccl.py) starts, measures and kills them.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shoal.collectives import Aborted, Communicator, SharedState, TooFewPeers
from shoal.collectives.links import SO_MAX_PACING_RATE
from shoal.collectives.state import content_hash

TOKEN = "benchmark"


def say(**found: Any) -> None:
    """One JSON line."""
    print(json.dumps(found), flush=True)


def join(options: dict[str, Any], world: int) -> Communicator:
    """A peer in a ring of that many."""
    peer = Communicator(
        options["master"],
        token=TOKEN,
        pool=options.get("pool", 1),
        pacing=options.get("pacing", 0),
        host=options.get("host", ""),
    )
    peer.connect()
    if world > 1:
        peer.gather(world)
    return peer


def cap_sockets(rate: int) -> None:
    """Pace every TCP connection of this process: gloo has no setting for it."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
        except OSError:
            continue


def micro(options: dict[str, Any]) -> None:
    """Time all-reduces of several sizes, gloo and this ring in turn within the same process."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    world, rank = options["world"], options["rank"]
    dist.init_process_group(
        "gloo", init_method=f"file://{options['rendezvous']}", rank=rank, world_size=world
    )
    peer = join(options, world)
    for mib, rounds in options["sizes"]:
        n = int(mib * (1 << 18))
        x, out, t = np.empty(n, np.float32), np.empty(n, np.float32), torch.empty(n)
        kept = torch.empty(n)
        dist.all_reduce(t)
        if options.get("pacing"):
            cap_sockets(options["pacing"])
        arms: dict[str, Callable[[], object]] = {
            "gloo": lambda t=t: dist.all_reduce(t),
            "gloo, input kept": lambda t=t, kept=kept: dist.all_reduce(kept.copy_(t)),
            "ring": lambda x=x, out=out: peer.all_reduce(x, out),
            "ring in place": lambda x=x: peer.all_reduce(x),
            "ring u8": lambda x=x, out=out: peer.all_reduce(x, out, quantization="min_max"),
        }
        chosen = [name for name in options.get("arms", arms) if name in arms]
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
        for number in range(-1, rounds):
            for name in chosen if number % 2 else chosen[::-1]:
                x[:] = 1
                t.fill_(1)
                dist.barrier()
                wall, cpu = time.perf_counter(), time.process_time()
                arms[name]()
                spent = (time.perf_counter() - wall, time.process_time() - cpu)
                result = {"gloo": t, "gloo, input kept": kept, "ring in place": x}.get(name, out)
                assert result[0] == result[n - 1] == world, name
                if number >= 0:
                    seconds[name].append(spent)
        say(rank=rank, mib=mib, seconds=seconds)
    dist.barrier()
    peer.close()
    dist.destroy_process_group()


def reduce(options: dict[str, Any]) -> None:
    """Reduce over shaped links, before and after the ring was chosen by what was measured."""
    peer = join(options, options["world"])
    x = np.ones(int(options["mib"] * (1 << 18)), np.float32)
    out = np.empty_like(x)

    def timed() -> list[float]:
        spent = []
        for number in range(options["rounds"] + 1):
            start = time.perf_counter()
            peer.all_reduce(x, out)
            if number:
                spent.append(time.perf_counter() - start)
        return spent

    before, ring = timed(), peer.ring
    peer.optimize_topology(options["seconds"])
    say(id=peer.id, before=before, after=timed(), ring_before=ring, ring_after=peer.ring)
    peer.close()


def churn(options: dict[str, Any]) -> None:
    """Advance a shared state for ever: ten arrays of 128 x 128, u8, eight in flight."""
    arrays = {f"w{i}": np.zeros((128, 128), np.float32) for i in range(options.get("arrays", 10))}
    state = SharedState(arrays)
    started = time.monotonic()
    peer = join(options, 1)
    say(event="joined", id=peer.id, at=time.monotonic(), seconds=time.monotonic() - started)
    gradients = [np.empty_like(x) for x in arrays.values()]
    rng = np.random.default_rng(abs(hash(peer.id)))
    first = True
    while True:
        try:
            if first or peer.world_size < 2 or peer.peers_pending():
                peer.update_topology()
            synced = peer.sync_state(state)
            for gradient in gradients:
                gradient[:] = rng.normal(size=gradient.shape)
            infos = peer.all_reduce_many(
                gradients, op="avg", quantization="min_max", max_in_flight=8
            )
        except TooFewPeers:
            first = True
            time.sleep(0.01)
            continue
        except Aborted:
            continue
        for x, gradient in zip(arrays.values(), gradients, strict=True):
            x -= 0.1 * gradient
        state.revision += 1
        say(
            event="step",
            id=peer.id,
            at=time.monotonic(),
            revision=state.revision,
            rx=0 if first else synced.rx,
            worlds=sorted({info.world for info in infos}),
            hash=content_hash(np.concatenate([x.ravel() for x in arrays.values()])),
        )
        first = False


def churn_torchft(options: dict[str, Any]) -> None:
    """The same state and step under torchft's lighthouse with gloo, in f32: it has no u8 there."""
    from shoal.collectives.backends import TorchFTBackend

    arrays = {f"w{i}": np.zeros((128, 128), np.float32) for i in range(10)}
    state = SharedState(arrays)
    started = time.monotonic()
    name = f"{os.getpid():08d}"
    backend = TorchFTBackend(options["lighthouse"], replica=name, timeout=options["timeout"])
    rng = np.random.default_rng(os.getpid())
    gradients = [np.empty(x.size, np.float32) for x in arrays.values()]
    say(event="joined", id=name, at=time.monotonic(), seconds=time.monotonic() - started)
    while True:
        backend.begin(state)
        for gradient in gradients:
            gradient[:] = rng.normal(size=gradient.shape)
        infos = backend.average(gradients)
        if not backend.commit():
            continue
        for buffer, gradient in zip(state.buffers.values(), gradients, strict=True):
            buffer.flat[:] -= np.float32(0.1) * gradient
        state.revision += 1
        if infos[0].world > 1:
            flat = np.concatenate([x.ravel() for x in arrays.values()])
            say(
                event="step",
                id=name,
                at=time.monotonic(),
                revision=state.revision,
                hash=content_hash(flat),
            )


def lighthouse(options: dict[str, Any]) -> None:
    """torchft's, until stdin ends; a process of its own, as it talks much."""
    from torchft.coordination import LighthouseServer

    server = LighthouseServer(bind="127.0.0.1:0", min_replicas=1, join_timeout_ms=200)
    port = server.address().rpartition(":")[2]
    say(address=f"http://127.0.0.1:{port}")
    sys.stdin.read()
    server.shutdown()


def diloco(options: dict[str, Any]) -> None:
    """Train a byte-level Llama with peers; leave after ``leave`` rounds where that is given."""
    import torch

    from shoal.collectives.backends import ShoalBackend
    from shoal.training.byte_llama import ByteLlama, rows, tiny_config
    from shoal.training.diloco import PUBLISHED, DiLoCo, Outer, Round

    torch.set_num_threads(1)
    data = bytearray(Path(options["text"]).read_bytes())
    text = torch.frombuffer(data, dtype=torch.uint8)
    cut = int(0.9 * len(text))
    held = rows(text[cut:], batch=64, length=65, seed=1)
    model = ByteLlama(tiny_config(), seed=options["seed"])
    inner = torch.optim.AdamW(model.parameters.values(), 3e-3)
    worker, H = options["worker"], options["inner_steps"]
    while "after" in options and not Path(options["after"]).exists():
        time.sleep(0.02)
    peer = Communicator(options["master"], token=TOKEN, pool=2)
    peer.connect()
    if options.get("gather"):
        peer.gather(options["gather"])
    run = DiLoCo(
        model.parameters,
        ShoalBackend(peer),
        outer=PUBLISHED if options.get("published") else Outer(),
        quantization=options.get("quantization", "none"),
        delayed=options.get("delayed", False),
    )

    def train() -> None:
        for step in range(H):
            seed = hash((options["seed"], worker, run.rounds + run.in_flight, step)) & (2**40 - 1)
            inner.zero_grad()
            model.loss(rows(text[:cut], batch=6, length=65, seed=seed)).backward()
            inner.step()

    def report(found: Round, start: float) -> None:
        with torch.no_grad():
            loss = model.loss(held).item()
        content = content_hash(np.concatenate([b.flat for b in run.state.buffers.values()]))
        say(
            event="step", worker=worker, at=time.monotonic(), revision=found.number, loss=loss,
            worlds=found.worlds, tx=found.tx, fetched=found.fetched, hash=content,
            committed=found.committed, seconds=time.monotonic() - start,
        )  # fmt: skip

    while run.rounds + run.in_flight < options["rounds"]:
        start = time.monotonic()
        found = run.round(train)
        report(found, start)
        if options.get("leave") and found.number >= options["leave"]:
            os.kill(os.getpid(), 9)
    start = time.monotonic()
    if (last := run.finish()) is not None:
        report(last, start)
    peer.close()


def smollm(options: dict[str, Any]) -> None:
    """Train SmolLM2-135M with peers: the scales of its norms alone, or all of its weights."""
    import torch

    from shoal.collectives.backends import ShoalBackend
    from shoal.training.byte_llama import next_token_loss, rows
    from shoal.training.diloco import DiLoCo
    from shoal.training.policies import hub_policy

    torch.set_num_threads(1)
    policy = hub_policy(options["model"])
    if options["part"] == "norms":
        for weight in policy.trained.values():
            weight.requires_grad_(weight.dim() == 1)
    chosen = {name: weight for name, weight in policy.trained.items() if weight.requires_grad}
    text = torch.tensor(policy.tokenizer.encode(Path(options["text"]).read_text()))
    cut = int(0.9 * len(text))
    held = rows(text[cut:], batch=4, length=65, seed=1)

    def loss() -> float:
        with torch.no_grad():
            return next_token_loss(policy.decoder, held).item()

    before = loss()
    peer = join(options, 2)
    inner = getattr(torch.optim, options["inner"])(chosen.values(), options["lr"])
    run = DiLoCo(chosen, ShoalBackend(peer))

    def train() -> None:
        for step in range(options["inner_steps"]):
            seed = hash((options["seed"], options["worker"], run.rounds, step)) & (2**40 - 1)
            inner.zero_grad()
            next_token_loss(
                policy.decoder, rows(text[:cut], batch=2, length=65, seed=seed)
            ).backward()
            inner.step()

    for number in range(options["rounds"]):
        start = time.monotonic()
        run.start()
        train()
        trained = time.monotonic()
        found = run.share()
        say(
            revision=found.number, worlds=found.worlds, tx=found.tx, fetched=found.fetched,
            hash=content_hash(np.concatenate([b.flat for b in run.state.buffers.values()])),
            parameters=sum(weight.numel() for weight in chosen.values()),
            train_seconds=trained - start, share_seconds=time.monotonic() - trained,
            before=before, after=loss() if number + 1 == options["rounds"] else None,
        )  # fmt: skip
    peer.close()


ROLES = {
    "micro": micro,
    "reduce": reduce,
    "churn": churn,
    "churn_torchft": churn_torchft,
    "lighthouse": lighthouse,
    "diloco": diloco,
    "smollm": smollm,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](json.loads(sys.argv[2]))
