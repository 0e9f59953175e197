"""One update: rows and their credit become optimiser steps.

The batch is cut into mini-batches (an optimiser step each) and these into micro-batches (what fits
into memory), by what rows share; every token's share of the mean is fixed before the cutting.

Shapes: R rows, A action tokens, C advantage columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from shoal.core.rng import generator
from shoal.training.advantage import Advantages
from shoal.training.config import RunConfig
from shoal.training.correction import Correction, importance
from shoal.training.forward import Forward
from shoal.training.loss import LossOptions, Tokens, policy_loss, token_scale
from shoal.training.optimiser import Optimiser
from shoal.training.policies import Policy
from shoal.training.prefix_plan import in_order, subtrees
from shoal.training.ranks import Ranks
from shoal.training.rows import Floats, Ints, Row


class Learner:
    """Moves a policy's weights along the credit of rows."""

    def __init__(
        self,
        config: RunConfig,
        *,
        policy: Policy,
        optimiser: Optimiser,
        forward: Forward,
        reference: Policy | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.policy, self.optimiser, self.reference = policy, optimiser, reference
        self.ranks = ranks or Ranks()
        self._config, self.forward = config, forward
        self._loss = LossOptions(**config.loss.model_dump())
        self._correction = Correction(**config.correction.model_dump(exclude={"max_lag"}))

    def penalised(self, rows: Sequence[Row]) -> list[Row]:
        """Rewards less the KL to the reference, where the run asks for it there."""
        loss = self._loss
        if self.reference is None or loss.kl_in != "reward":
            return list(rows)
        theirs_A = self._logps(self.reference, rows).double().numpy()
        row_A = np.repeat(np.arange(len(rows)), [len(row.action) for row in rows])
        ours_A = np.array([value for row in rows for value in row.logprobs])
        kl_R = np.bincount(row_A, ours_A - theirs_A, minlength=len(rows))
        return [
            replace(row, reward=row.reward - loss.kl_weight * float(kl))
            for row, kl in zip(rows, kl_R, strict=True)
        ]

    def learn(
        self, rows: Sequence[Row], credit: Advantages, *, exact: bool, name: int
    ) -> dict[str, float]:
        """All epochs over the rows; metrics are means over optimiser steps.

        ``exact`` says that the rows' log-probabilities are the trainer's where the weights have
        not moved since; ``name`` keeps the order of this update's mini-batches apart.
        """
        if not rows:
            return {"updates": 0.0}
        old = self._old(rows, exact)
        setting = self._config.optimiser
        size = setting.minibatch or len(rows)
        told: list[dict[str, float]] = []
        for epoch in range(setting.epochs):
            order = generator(self._config.seed, "minibatch", name, epoch).permutation(len(rows))
            if size >= len(rows):
                order.sort()
            cuts = range(0, len(rows), size)
            told += [self._step(rows, credit, old, order[at : at + size]) for at in cuts]
        self.policy.version += 1
        names = sorted({name for one in told for name in one})
        return {
            "updates": float(len(told)),
            **{name: float(np.mean([one.get(name, 0.0) for one in told])) for name in names},
        }

    def _old(self, rows: Sequence[Row], exact: bool) -> list[torch.Tensor]:
        """Log-probabilities under the weights as they are now, by row."""
        if exact and all(row.version == self.policy.version for row in rows):
            flat_A = torch.tensor([value for row in rows for value in row.logprobs])
        else:
            flat_A = self._logps(self.policy, rows)
        return list(torch.split(flat_A, [len(row.action) for row in rows]))

    @torch.no_grad()
    def _logps(self, policy: Policy, rows: Sequence[Row]) -> torch.Tensor:
        found = self.forward(
            policy,
            [row.prompt for row in rows],
            [row.action for row in rows],
            temperature=self._config.sampler.temperature,
        )
        return found.logp_A.float().cpu()

    def gradient_norm(self, rows: Sequence[Row], credit: Advantages) -> float:
        """Norm of the gradient of these rows in one batch; no weights are moved."""
        self.optimiser.zero()
        self._accumulate(rows, credit, self._old(rows, exact=True), np.arange(len(rows)))
        gradients = [t.grad for t in self.policy.trained.values() if t.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimiser.zero()
        return float(norm)

    def _step(
        self, rows: Sequence[Row], credit: Advantages, old: Sequence[torch.Tensor], chosen_R: Ints
    ) -> dict[str, float]:
        """One optimiser step on some rows."""
        told = self._accumulate(rows, credit, old, chosen_R)
        self.ranks.sum_gradients(self.policy.trained.values())
        return self.ranks.sum_metrics(told) | self.optimiser.step()

    def _accumulate(
        self, rows: Sequence[Row], credit: Advantages, old: Sequence[torch.Tensor], chosen_R: Ints
    ) -> dict[str, float]:
        """Gradients of some rows as one mean, as many rows at a time as the run allows.

        Of several ranks each takes its share of the rows, and the mean is that of all.
        """
        lengths_R = torch.tensor([len(rows[index].action) for index in chosen_R])
        scale_R = token_scale(lengths_R, self._loss.aggregate, self._loss.length)
        whole = len(chosen_R)
        told: dict[str, float] = {}
        for places in self._micro_batches([rows[index] for index in chosen_R]):
            part_R = chosen_R[places]
            tokens, apart, shared = self._tokens(
                [rows[index] for index in part_R],
                credit.columns_CR[:, part_R],
                credit.weights_CR[:, part_R],
                torch.cat([old[index] for index in part_R]),
                scale_R[torch.from_numpy(places)],
            )
            loss, metrics = policy_loss(tokens, self._loss)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            share = len(part_R) / whole
            metrics |= {"loss": float(loss.detach()), **shared}
            metrics |= {name: share * value for name, value in apart.items()}
            for name, value in metrics.items():
                told[name] = told.get(name, 0.0) + value
        return told

    def _micro_batches(self, rows: Sequence[Row]) -> Iterator[Ints]:
        """Places of this rank's rows, as many at a time as the run allows.

        Rows that begin alike stay together, on one rank and in one micro-batch where they fit:
        what is shared is computed once for each.
        """
        places = np.arange(len(rows))
        micro = self._config.optimiser.micro or max(len(rows), 1)
        share = self._config.forward.share != "never"
        inputs = [(*row.prompt, *row.action[:-1]) if row.action else () for row in rows]
        if share and self.ranks.world > 1:
            places = in_order(inputs)
        places = self.ranks.share_rows(places)
        if share and micro < len(places):
            for part in subtrees([inputs[place] for place in places], rows=micro):
                yield places[part]
            return
        for first in range(0, len(places), micro):
            yield places[first : first + micro]

    def _tokens(
        self,
        rows: Sequence[Row],
        columns_CR: Floats,
        weights_CR: Floats,
        old_A: torch.Tensor,
        scale_R: torch.Tensor,
    ) -> tuple[Tokens, dict[str, float], Mapping[str, float]]:
        found = self.forward(
            self.policy,
            [row.prompt for row in rows],
            [row.action for row in rows],
            temperature=self._config.sampler.temperature,
            entropy=self._loss.entropy_weight != 0,
        )
        device, dtype = found.logp_A.device, found.logp_A.dtype
        lengths_R = torch.tensor([len(row.action) for row in rows])
        row_A = torch.repeat_interleave(torch.arange(len(rows)), lengths_R)
        sampler_A = torch.tensor([value for row in rows for value in row.logprobs])
        correction_A, apart = importance(old_A, sampler_A, row_A, self._correction)
        reference_A = None
        if self.reference is not None and self._loss.kl_in == "loss":
            reference_A = self._logps(self.reference, rows).to(device)
        tokens = Tokens(
            logp_A=found.logp_A,
            old_A=old_A.to(device),
            row_A=row_A.to(device),
            scale_A=scale_R[row_A].to(device),
            columns_CA=torch.from_numpy(columns_CR).to(dtype)[:, row_A].to(device),
            weights_CA=torch.from_numpy(weights_CR).to(dtype)[:, row_A].to(device),
            correction_A=correction_A.to(dtype).to(device),
            reference_A=reference_A,
            entropy_A=found.entropy_A,
        )
        return tokens, apart, found.told
