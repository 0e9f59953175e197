"""Data parallel training under ``torchrun``: every rank plays its share, all learn one batch.

Ranks exchange what they played, so every rank credits the whole batch alike, statistics between
prompts included. Each then computes the gradients of its share of the rows, scaled by the whole,
and gradients are summed: the update is that of one process, up to the order of the sum.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from shoal.core.errors import ConfigError
from shoal.training.rollout import Rollout
from shoal.training.rows import Ints

T = TypeVar("T")


class Ranks:
    """The processes of one ``torchrun``, or this process alone."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        """Whether this rank writes files and measures."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's consecutive part; parts in order of rank are the whole."""
        cuts = np.linspace(0, len(items), self.world + 1).round().astype(int)
        return items[cuts[self.rank] : cuts[self.rank + 1]]

    def share_rows(self, rows: Ints) -> Ints:
        """This rank's part of row numbers."""
        part: Ints = np.array_split(rows, self.world)[self.rank]
        return part

    def gather(self, rollout: Rollout) -> Rollout:
        """What all ranks played, in order of rank."""
        if self.world == 1:
            return rollout
        return sum(self._all(rollout), Rollout())

    def sum_gradients(self, trained: Iterable[torch.Tensor]) -> None:
        """Sum the gradients of all ranks in place; a rank without rows adds nothing."""
        if self.world == 1:
            return
        for tensor in trained:
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
            dist.all_reduce(tensor.grad)

    def sum_metrics(self, told: dict[str, float]) -> dict[str, float]:
        """Metrics that are sums over rows, over all ranks."""
        if self.world == 1:
            return told
        parts = self._all(told)
        names = sorted({name for part in parts for name in part})
        return {name: sum(part.get(name, 0.0) for part in parts) for name in names}

    def same(self, value: T) -> T:
        """The first rank's value."""
        return value if self.world == 1 else self._all(value)[0]

    def _all(self, value: T) -> list[T]:
        found: list[bytes] = [b""] * self.world
        dist.all_gather_object(found, pickle.dumps(value))
        return [pickle.loads(each) for each in found]  # written by our own ranks a moment ago

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1:
            dist.destroy_process_group()


def join(device: str = "cpu") -> tuple[Ranks, str]:
    """The ranks that ``torchrun`` started, and this one's device; alone without it.

    Raises :class:`ConfigError` where torchrun's variables do not fit together.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks(), device
    if "RANK" not in os.environ:
        raise ConfigError("WORLD_SIZE is set, but RANK is not: start the run with torchrun.")
    on_gpu = device.startswith("cuda")
    dist.init_process_group("nccl" if on_gpu else "gloo")
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else device
    return Ranks(int(os.environ["RANK"]), world), own
