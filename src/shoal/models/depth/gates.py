"""Which blocks to remove, by gates that are learned together.

Every block gets a gate, h + g (Block(h) - h), and all gates are trained at once with the weights
frozen, so a gate knows what closing the others does. "FoldGPT: Simple and Effective Large Language
Model Compression Scheme" (arXiv 2407.00928) describes gated block removal with coupling,
polarization and a constraint on FLOPs in words; the gate and its schedule are those of "GDP:
Stabilized Neural Network Pruning via Gates with Differentiable Polarization" (arXiv 2109.02220):
g = w² / (w² + ε), with ε falling geometrically, which drives gates to 0 or 1.

Departures: the weight of the constraint is raised by its violation (dual ascent) rather than
alternated with a projection; all blocks of a decoder cost the same, so the constraint is on the
mean gate. What is removed in the end is measured hard, never soft.

Shapes: N blocks, B rows, S tokens of a row, P steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from shoal.core.errors import ConfigError, InputError
from shoal.core.rng import generator
from shoal.models.decoder import Decoder
from shoal.models.depth.stack import batches, language_loss, plain

OnStep = Callable[[int, int], None]
"""Called with the steps done and all there are."""


@dataclass(frozen=True, slots=True)
class GateOptions:
    """How gates are learned.

    steps, batch  optimiser steps and rows of each
    lr            of Adam on w, without decay; w stays in [0, 1.5]
    soft, hard    ε at the first and at the last step
    pressure      weight of the constraint at first, in nats
    raised        what a violation of 1 adds to it at every step
    """

    steps: int = 60
    batch: int = 1
    lr: float = 0.05
    soft: float = 0.1
    hard: float = 1e-4
    pressure: float = 1.0
    raised: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Gates:
    """What was learned.

    gates_PN  the gates after every step
    losses    nats a token at every step, gates as they were
    stopped   why learning ended early; None where it did not
    """

    gates_PN: torch.Tensor
    losses: tuple[float, ...]
    stopped: str | None = None

    @property
    def final(self) -> torch.Tensor:
        """The gates at the end: [N]."""
        return self.gates_PN[-1]

    @property
    def polarised(self) -> float:
        """Share of gates below 0.1 or above 0.9."""
        final = self.final
        return float(((final < 0.1) | (final > 0.9)).float().mean())

    def lowest(self, count: int, *, protect: Collection[int] = ()) -> list[int]:
        """The ``count`` blocks to remove, lowest gate first.

        Gates that end alike are told apart by their mean over the last fifth of the steps.
        """
        recent = self.gates_PN[-max(1, len(self.gates_PN) // 5) :].mean(0)
        final = self.final
        free = [index for index in range(len(final)) if index not in protect]
        if count > len(free):
            raise ConfigError(
                f"{count} blocks cannot be removed of {len(final)}, of which "
                f"{len(final) - len(free)} are protected."
            )
        order = sorted(free, key=lambda i: (round(float(final[i]), 3), float(recent[i]), i))
        return order[:count]


def gate(w_N: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Smoothed L0: 0 at w = 0, near 1 for w² far above ``epsilon``."""
    square = w_N * w_N
    return square / (square + epsilon)


def learn_gates(
    decoder: Decoder,
    ids_NS: torch.Tensor,
    remove: float,
    options: GateOptions = GateOptions(),
    *,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Gates:
    """Train one gate a block until their mean is 1 - ``remove``, on rows drawn by the seed.

    A loss that is not finite ends it with the last gates that gave a finite one. Raises
    :class:`InputError` where there is no row to learn from.
    """
    if not len(ids_NS):
        raise InputError("There is no row of calibration text to learn gates from.")
    decoder = plain(decoder)
    w_N = torch.ones(decoder.config.layers, requires_grad=True)
    adam = torch.optim.Adam([w_N], lr=options.lr)
    pressure = options.pressure
    trajectory: list[torch.Tensor] = []
    losses: list[float] = []
    rows = _rows(len(ids_NS), options, seed)
    for step in range(options.steps):
        epsilon = _epsilon(options, step)
        gates_N = gate(w_N, epsilon)
        loss = language_loss(decoder, ids_NS[rows[step]], gates_N=gates_N)
        if not math.isfinite(loss.item()):
            why = f"the loss was {loss.item()} at step {step}"
            kept = torch.stack(trajectory) if trajectory else gates_N.detach()[None]
            return Gates(kept, tuple(losses), why)
        over = gates_N.mean() - (1 - remove)
        (loss + pressure * over.abs()).backward()  # type: ignore[no-untyped-call]
        pressure = max(0.0, pressure + options.raised * over.item())
        adam.step()
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            w_N.clamp_(0, 1.5)
            trajectory.append(gate(w_N, epsilon))
        losses.append(loss.item())
        if on_step:
            on_step(step + 1, options.steps)
    return Gates(torch.stack(trajectory), tuple(losses))


def _epsilon(options: GateOptions, step: int) -> float:
    done = step / max(options.steps - 1, 1)
    return float(options.soft * (options.hard / options.soft) ** done)


def _rows(count: int, options: GateOptions, seed: int) -> Sequence[torch.Tensor]:
    """Which rows each step sees: all of them once, in an order of the seed's, then again."""
    wanted = options.steps * options.batch
    passes = -(-wanted // count)
    order = [i for p in range(passes) for i in generator("gates", seed, p).permutation(count)]
    return batches(torch.tensor(order[:wanted]), options.batch)
