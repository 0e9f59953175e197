"""A trainer whose weights meet those of peers: DiLoCo around any run file.

Peers play episodes of their own and take optimiser steps of their own; every ``every`` iterations
they average how far they came (:mod:`shoal.training.diloco`). Whoever joins takes over the weights
of those who are there. Inner optimisers stay where they are, as in the paper (arXiv 2311.08105).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from shoal.collectives.backends import Backend
from shoal.collectives.quantize import Quantization
from shoal.core.rng import seed_of
from shoal.training.config import RunConfig
from shoal.training.diloco import DiLoCo, Outer, Round
from shoal.training.loop import Iteration, Trainer


def apart(config: RunConfig, peer: str) -> RunConfig:
    """The run with a seed of this peer's own: equal episodes would teach all the same."""
    return config.model_copy(update={"seed": seed_of(config.seed, "peer", peer)})


class PeerTrainer(Trainer):
    """Another trainer's parts, and peers. ``backend`` is connected already.

    What only this peer has learned counts once it is shared: while it is alone, iterations are
    played, but its weights go back to those that the group agreed on.
    """

    def __init__(
        self,
        trainer: Trainer,
        backend: Backend,
        *,
        every: int = 1,
        outer: Outer = Outer(),
        quantization: Quantization = "none",
        delayed: bool = False,
    ) -> None:
        if every < 1:
            raise ValueError(f"Weights are shared every {every} iterations: give 1 or more.")
        super().__init__(
            trainer.config,
            policy=trainer.policy,
            sampler=trainer.sampler,
            runner=trainer.runner,
            estimate=trainer._estimate,
            learner=trainer.learner,
        )
        self._backend, self._every = backend, every
        self._options = {"outer": outer, "quantization": quantization, "delayed": delayed}
        self._diloco: DiLoCo | None = None

    async def iterate(self) -> Iteration:
        """As without peers; the first of every few begins, and the last ends, with all of them."""
        if self._diloco is None:  # not before the weights are those that training begins with
            self._diloco = DiLoCo(self.policy.trained, self._backend, **self._options)  # type: ignore[arg-type]
        if self.done % self._every == 0:
            await asyncio.to_thread(self._diloco.start)
            await self._hand_over()
        iteration = await super().iterate()
        if self.done % self._every and not self.ended:
            return iteration
        found = await asyncio.to_thread(self._diloco.share)
        if self.ended:
            last = await asyncio.to_thread(self._diloco.finish)
            found = last or found
        await self._hand_over()
        return replace(iteration, metrics={**iteration.metrics, **_told(found)})

    async def _hand_over(self) -> None:
        self.policy.version += 1
        await self.sampler.update(self.policy)


def _told(found: Round) -> dict[str, float]:
    return {
        "peers": float(min(found.worlds, default=1)),
        "peers.rounds": float(found.number),
        "peers.sent_bytes": float(found.tx),
        "peers.fetched_bytes": float(found.fetched),
    }
