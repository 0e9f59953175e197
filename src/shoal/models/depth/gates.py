"""Which blocks to remove, by gates that are learned together.

Every block gets a gate, h + g (Block(h) - h), and all gates are trained at once with the weights
frozen, so a gate knows what closing the others does. "FoldGPT: Simple and Effective Large Language
Model Compression Scheme" (arXiv 2407.00928) describes gated block removal with coupling,
polarization and a constraint on FLOPs in words; the gate and its schedule are those of "GDP:
Stabilized Neural Network Pruning via Gates with Differentiable Polarization" (arXiv 2109.02220):
g = w² / (w² + ε), with ε falling geometrically, which drives gates to 0 or 1.

The constraint is the number of blocks to remove, K: all blocks of a decoder cost the same. Its
multiplier θ is found anew at every step as the price of an open gate at which so many of them do
not pay that K will be closed: half way between two of the smoothed benefits -∂L/∂g. Then w descends
on L + θ Σg, gates that do not pay by one scale and those that do by another. ∂g/∂w vanishes where a
gate is decided, so it stays so.

Departures, both measured (see the log): a multiplier that is raised by its violation depends on the
scale of the losses, and Adam, which scales each coordinate by itself, closes gates by chance. What
is removed in the end is measured hard, never soft.

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

_CLOSED = 0.1  # a gate below counts as one of those to close
OnStep = Callable[[int, int], None]
"""Called with the steps done and all there are."""


@dataclass(frozen=True, slots=True)
class GateOptions:
    """How gates are learned.

    steps, batch  steps and rows of each
    lr            the most that w moves in a step; it stays in [0, 1.5]
    memory        share of the smoothed benefit that is kept from step to step
    soft, hard    ε at the first and at the last step
    """

    steps: int = 60
    batch: int = 1
    lr: float = 0.05
    memory: float = 0.9
    soft: float = 0.1
    hard: float = 1e-4


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
    def closed(self) -> int:
        """How many gates ended below 0.1."""
        return int((self.final < _CLOSED).sum())

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
    count: int,
    options: GateOptions = GateOptions(),
    *,
    protect: Collection[int] = (),
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Gates:
    """Train one gate a block so that ``count`` of them close, on rows drawn by the seed.

    Gates of ``protect`` stay open. A loss that is not finite ends it with the last gates that gave
    a finite one. Raises :class:`InputError` where there is no row to learn from, and
    :class:`ConfigError` where fewer blocks than ``count`` + 1 may close.
    """
    if not len(ids_NS):
        raise InputError("There is no row of calibration text to learn gates from.")
    decoder = plain(decoder)
    layers = decoder.config.layers
    free = torch.tensor([index for index in range(layers) if index not in protect])
    if not 0 < count < len(free):
        raise ConfigError(
            f"{count} gates cannot close of {layers}, of which {layers - len(free)} are protected."
        )
    w_N = torch.ones(layers)
    benefit_N = torch.zeros(layers)
    trajectory: list[torch.Tensor] = []
    losses: list[float] = []
    rows = _rows(len(ids_NS), options, seed)
    for step in range(options.steps):
        epsilon = _epsilon(options, step)
        gates_N = gate(w_N, epsilon).requires_grad_()
        loss = language_loss(decoder, ids_NS[rows[step]], gates_N=gates_N)
        if not math.isfinite(loss.item()):
            why = f"the loss was {loss.item()} at step {step}"
            kept = torch.stack(trajectory) if trajectory else gates_N.detach()[None]
            return Gates(kept, tuple(losses), why)
        (slope_N,) = torch.autograd.grad(loss, gates_N)
        benefit_N = options.memory * benefit_N - (1 - options.memory) * slope_N
        w_N[free] = _moved(w_N[free], benefit_N[free], count, epsilon, options.lr)
        trajectory.append(gate(w_N, epsilon))
        losses.append(loss.item())
        if on_step:
            on_step(step + 1, options.steps)
    return Gates(torch.stack(trajectory), tuple(losses))


def _moved(
    w_F: torch.Tensor, benefit_F: torch.Tensor, count: int, epsilon: float, lr: float
) -> torch.Tensor:
    """w after a step in which ``count`` gates are too dear, whatever the scale of the benefits."""
    closed_F = gate(w_F, epsilon) < _CLOSED
    least = benefit_F[~closed_F].sort().values
    left = count - int(closed_F.sum())
    price = (least[left - 1] + least[left]) / 2 if left > 0 else least[0]
    slope_F = 2 * w_F * epsilon / (w_F * w_F + epsilon) ** 2  # ∂g/∂w
    gain_F = (benefit_F - price) * slope_F
    moved_F = torch.zeros_like(w_F)
    for side_F in ((gain_F < 0) & ~closed_F, (gain_F > 0) & ~closed_F):
        if side_F.any():
            scale = gain_F[side_F].abs().median()
            moved_F[side_F] = (gain_F[side_F] / scale).clamp(-1, 1)
    moved_F[closed_F] = -1
    return (w_F + lr * moved_F).clamp(0, 1.5)


def _epsilon(options: GateOptions, step: int) -> float:
    done = step / max(options.steps - 1, 1)
    return float(options.soft * (options.hard / options.soft) ** done)


def _rows(count: int, options: GateOptions, seed: int) -> Sequence[torch.Tensor]:
    """Which rows each step sees: all of them once, in an order of the seed's, then again."""
    wanted = options.steps * options.batch
    passes = -(-wanted // count)
    order = [i for p in range(passes) for i in generator("gates", seed, p).permutation(count)]
    return batches(torch.tensor(order[:wanted]), options.batch)
