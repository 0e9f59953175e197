"""Training adapters of several agents in one step over one frozen base, or one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shards import texts
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.mixed import mixed
from shoal.models.adapters.registry import new
from shoal.models.decoder import Decoder
from shoal.models.loading import Model
from shoal.training.byte_llama import row_losses
from shoal.training.optimiser import Optimiser, OptimiserOptions


@dataclass(slots=True)
class Agents:
    """As many fresh MoS adapters as there are agents, each with rows of its own [agents, B, S]."""

    decoder: Decoder
    rows_NBS: torch.Tensor
    losses: list[list[float]]

    def adapters(self) -> list[Adapter]:
        """The same beginning every time."""
        count = len(self.rows_NBS)
        return [new("mos", self.decoder, e=2, r=8, p=1, l=4, seed=n) for n in range(count)]

    def one_by_one(self, steps: int) -> None:
        """A run for each agent."""
        self.losses.clear()
        for adapter, rows_BS in zip(self.adapters(), self.rows_NBS, strict=True):
            seen, optimiser = adapter.over(self.decoder), _optimiser(adapter)
            self.losses.append([])
            for _ in range(steps):
                loss = row_losses(seen, rows_BS).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                self.losses[-1].append(float(loss.detach()))

    def at_once(self, steps: int) -> None:
        """One step for all."""
        adapters = self.adapters()
        N, B, S = self.rows_NBS.shape
        seen = mixed(self.decoder, [(adapter, B * (S - 1)) for adapter in adapters])
        optimisers = [_optimiser(adapter) for adapter in adapters]
        told = []
        for _ in range(steps):
            loss_N = row_losses(seen, self.rows_NBS.view(N * B, S)).view(N, B).mean(1)
            loss_N.sum().backward()  # type: ignore[no-untyped-call]
            for optimiser in optimisers:
                optimiser.step()
            told.append(loss_N.tolist())
        self.losses[:] = [list(one) for one in zip(*told, strict=True)]


def agents(model: Model, count: int, *, rows: int, length: int) -> Agents:
    """Agents with stretches of different documents, as tokens."""
    files = sorted((texts.DOCUMENTS / "jargon").glob("*.md"))
    tokens = [_tokens(model, path, rows * length) for path in files[-count:]]
    decoder = Decoder(model.config, model.decoder.weights)
    return Agents(decoder, torch.stack(tokens).view(count, rows, length), [])


def furthest(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """The largest difference between two tables of losses."""
    return float(np.abs(np.array(one) - np.array(other)).max())


def _tokens(model: Model, path: Path, count: int) -> torch.Tensor:
    text = path.read_text(encoding="utf-8")
    return torch.tensor(model.tokenizer.encode(text, special=False)[:count])


def _optimiser(adapter: Adapter) -> Optimiser:
    return Optimiser(adapter.trainable(), OptimiserOptions(lr=1e-3))
