"""AdamW with a schedule, a bound on the gradient, and a refusal to step on what is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, slots=True)
class OptimiserOptions:
    """``warm_up`` and ``steps`` count optimiser steps; "linear" and "cosine" end at 0."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_norm: float = 1.0
    warm_up: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    steps: int = 0


class Optimiser:
    """Moves named tensors in place; its state is named tensors too."""

    def __init__(self, trained: Mapping[str, torch.Tensor], options: OptimiserOptions) -> None:
        self.options = options
        self.taken = 0
        self.skipped = 0
        self._trained = dict(trained)
        self._adam = torch.optim.AdamW(
            self._trained.values(),
            lr=options.lr,
            betas=options.betas,
            weight_decay=options.weight_decay,
        )

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        options = self.options
        if self.taken < options.warm_up:
            return options.lr * (self.taken + 1) / options.warm_up
        if options.schedule == "constant":
            return options.lr
        span = max(options.steps - options.warm_up, 1)
        done = min((self.taken - options.warm_up) / span, 1.0)
        if options.schedule == "linear":
            return options.lr * (1 - done)
        return options.lr * (1 + math.cos(math.pi * done)) / 2

    def step(self) -> dict[str, float]:
        """Take the gradients there are; a gradient that is not finite is skipped and counted."""
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), self.options.max_norm)
        told = {"gradient_norm": float(norm), "lr": self.lr}
        if not math.isfinite(told["gradient_norm"]):
            self.skipped += 1
            self.zero()
            return {"gradient_norm": 0.0, "lr": self.lr, "skipped_steps": 1.0}
        for group in self._adam.param_groups:
            group["lr"] = self.lr
        self._adam.step()
        self.taken += 1
        self.zero()
        return told

    def zero(self) -> None:
        """Forget gradients."""
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything the next step depends on, beside the weights and ``taken``."""
        found = {}
        for name, tensor in self._trained.items():
            for part, value in self._adam.state.get(tensor, {}).items():
                found[f"{name}/{part}"] = value
        return found

    def restore(self, state: Mapping[str, torch.Tensor], taken: int, skipped: int) -> None:
        """Go on where :meth:`state` was taken."""
        self.taken, self.skipped = taken, skipped
        for name, tensor in self._trained.items():
            parts = {key.rpartition("/")[2]: value.clone() for key, value in state.items()
                     if key.rpartition("/")[0] == name}  # fmt: skip
            if parts:
                self._adam.state[tensor] = parts
