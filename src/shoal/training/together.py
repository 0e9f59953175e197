"""A byte-level Llama trained by whoever joins: DiLoCo at its smallest, on any text.

What ``shoal peers join --text`` and the example run. Every peer draws batches of its own by its
id, so that peers see different parts of the text.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from shoal.collectives.backends import ShoalBackend
from shoal.collectives.peer import Communicator
from shoal.collectives.quantize import Quantization
from shoal.core.errors import InputError
from shoal.core.rng import seed_of
from shoal.training.byte_llama import ByteLlama, rows, tiny_config
from shoal.training.diloco import DiLoCo, Outer, Round

LENGTH = 65
"""Bytes of a row: 64 to predict."""
LEAST = 4_096
"""Bytes a text must have, so that its last tenth is something to measure on."""

OnRound = Callable[[Round, float], None]


def train_together(
    peer: Communicator,
    text: bytes,
    *,
    rounds: int,
    least: int = 1,
    inner_steps: int = 20,
    batch: int = 6,
    seed: int = 0,
    outer: Outer = Outer(),
    quantization: Quantization = "none",
    delayed: bool = False,
    on_round: OnRound = lambda found, loss: None,
) -> float:
    """Train until the group has taken ``rounds`` outer steps; held-out nats a byte at the end.

    ``peer`` is connected. A round begins with ``least`` peers at least: where some have left, it
    waits for others. ``on_round`` gets each round of this peer and its held-out loss. Raises
    :class:`InputError` for a text of less than 4 KiB, and ``ValueError`` for ``least`` with
    ``delayed``: while a pseudo-gradient is on its way, peers notice that one has left at different
    times, and would not wait together.
    """
    if delayed and least > 1:
        raise ValueError(f"Delayed rounds cannot wait for {least} peers: give one of the two.")
    if len(text) < LEAST:
        raise InputError(f"The text has {len(text)} bytes, but training needs {LEAST} at least.")
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    cut = max(len(data) * 9 // 10, LENGTH + 1)
    held_out = rows(data[cut:], batch=64, length=LENGTH, seed=seed)
    model = ByteLlama(tiny_config(), seed=seed)
    inner = torch.optim.AdamW(model.parameters.values(), 3e-3)
    run = DiLoCo(
        model.parameters,
        ShoalBackend(peer),
        outer=outer,
        quantization=quantization,
        delayed=delayed,
    )

    def train() -> None:
        for step in range(inner_steps):
            drawn = seed_of(seed, peer.id, run.rounds + run.in_flight, step)
            inner.zero_grad()
            model.loss(rows(data[:cut], batch=batch, length=LENGTH, seed=drawn)).backward()  # type: ignore[no-untyped-call]
            inner.step()

    def loss() -> float:
        with torch.no_grad():
            return float(model.loss(held_out))

    while run.rounds + run.in_flight < rounds:
        peer.gather(least)
        on_round(run.round(train), loss())
    if (last := run.finish()) is not None:
        on_round(last, loss())
    return loss()
