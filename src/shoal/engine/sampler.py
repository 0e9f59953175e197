"""Choosing tokens: one vectorised pass over the rows of a step.

Every request draws from its own counter-based generator, keyed by its seed and the index of
the token, so a draw never depends on who else is in the batch. Truncation keeps the smallest
set of likeliest tokens (top-k; top-p: Holtzman et al., arXiv 1904.09751; min-p: Nguyen et al.,
arXiv 2407.01082) and the token is found by inverting the cumulative distribution.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shoal.core import rng
from shoal.core.protocols import Sampling

_FEW = 1024
"""Up to how many candidates a row is drawn from without sorting the vocabulary."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one row's choice depends on.

    ``history`` holds the distinct tokens of prompt and answer (for the repetition penalty),
    ``answered`` those of the answer (for the presence penalty),
    ``index`` counts generated tokens, ``allowed`` is a grammar's mask [V] (None: all),
    ``banned`` are tokens that must not come yet (the end, before ``min_tokens``).
    """

    sampling: Sampling
    index: int
    history: torch.Tensor | None = None
    allowed: torch.Tensor | None = None
    banned: tuple[int, ...] = ()
    answered: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen tokens and, for rows that asked, natural-log probabilities after temperature."""

    tokens: list[int]
    logprobs: list[tuple[float, list[tuple[int, float]]] | None]


def choose(logits_RV: torch.Tensor, rows: Sequence[Row]) -> Choice:
    """Choose one token per row; ``logits_RV`` (fp32) is changed in place."""
    for r, row in enumerate(rows):
        _adjust(logits_RV[r], row)
    logprobs = _logprobs_before_truncation(logits_RV, rows)
    _mask(logits_RV, rows)
    tokens_R = logits_RV.argmax(-1)
    drawn = [r for r, row in enumerate(rows) if row.sampling.temperature > 0]
    if drawn:
        tokens_R[drawn] = _draw(logits_RV[drawn], [rows[r] for r in drawn])
    tokens: list[int] = tokens_R.tolist()
    return Choice(tokens, _report(logprobs, rows, tokens))


def _adjust(logits_V: torch.Tensor, row: Row) -> None:
    """Repetition penalty (Keskar et al., arXiv 1909.05858), presence penalty, then temperature."""
    sampling = row.sampling
    if sampling.repetition_penalty != 1 and row.history is not None:
        seen = logits_V[row.history]
        penalty = sampling.repetition_penalty
        logits_V[row.history] = torch.where(seen > 0, seen / penalty, seen * penalty)
    if row.answered is not None:
        logits_V[row.answered] -= sampling.presence_penalty
    if sampling.temperature > 0:
        logits_V /= max(sampling.temperature, 1e-4)


def _mask(logits_RV: torch.Tensor, rows: Sequence[Row]) -> None:
    for r, row in enumerate(rows):
        if row.banned:
            logits_RV[r, list(row.banned)] = float("-inf")
        if row.allowed is not None:
            logits_RV[r].masked_fill_(~row.allowed, float("-inf"))


def _draw(logits_RV: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """One token per row from the truncated distribution.

    Rows with a small ``top_k`` look at those candidates alone: sorting a whole vocabulary takes
    most of a step. Which way a row goes depends on its own settings only.
    """
    few = [r for r, row in enumerate(rows) if 0 < row.sampling.top_k <= _FEW]
    many = [r for r in range(len(rows)) if r not in set(few)]
    tokens_R = torch.empty(len(rows), dtype=torch.long)
    for r in few:
        tokens_R[r] = _draw_of_few(logits_RV[r], rows[r])
    if many:
        tokens_R[many] = _draw_of_all(logits_RV[many], [rows[r] for r in many])
    return tokens_R


def _draw_of_few(logits_V: torch.Tensor, row: Row) -> torch.Tensor:
    """The same draw among the ``top_k`` likeliest tokens, of equal ones the first."""
    sampling = row.sampling
    k = min(sampling.top_k, logits_V.numel())
    within = (logits_V >= logits_V.topk(k).values[-1]).nonzero()[:, 0]
    order_K = within[logits_V[within].argsort(descending=True, stable=True)][:k]
    probs_K = (logits_V[order_K] - logits_V.logsumexp(0)).double().exp()
    kept_K = probs_K.cumsum(-1) - probs_K < sampling.top_p
    kept_K &= probs_K >= sampling.min_p * probs_K[0]
    kept_K[0] = True
    cumulative_K = (probs_K * kept_K).cumsum(-1)
    uniform = rng.uniform("token", sampling.seed, row.index)
    place = torch.searchsorted(cumulative_K, uniform * cumulative_K[-1], right=True)
    return order_K[torch.minimum(place, kept_K.sum() - 1)]


def _draw_of_all(logits_RV: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    V = logits_RV.shape[-1]
    top_k = torch.tensor([row.sampling.top_k or V for row in rows]).clamp_max(V)
    top_p = torch.tensor([row.sampling.top_p for row in rows], dtype=torch.float64)
    min_p = torch.tensor([row.sampling.min_p for row in rows], dtype=torch.float64)
    sorted_RV, order_RV = logits_RV.sort(descending=True, stable=True)
    probs_RV = torch.softmax(sorted_RV.double(), -1)
    before_RV = probs_RV.cumsum(-1) - probs_RV
    kept_RV = before_RV < top_p[:, None]
    kept_RV &= torch.arange(V) < top_k[:, None]
    kept_RV &= probs_RV >= min_p[:, None] * probs_RV[:, :1]
    kept_RV[:, 0] = True
    cumulative_RV = (probs_RV * kept_RV).cumsum(-1)
    uniform_R = torch.tensor(
        [rng.uniform("token", row.sampling.seed, row.index) for row in rows], dtype=torch.float64
    )
    target_R1 = (uniform_R * cumulative_RV[:, -1])[:, None]
    place_R1 = torch.searchsorted(cumulative_RV, target_R1, right=True)
    last_R1 = kept_RV.sum(-1, keepdim=True) - 1
    return order_RV.gather(1, torch.minimum(place_R1, last_R1))[:, 0]


def _logprobs_before_truncation(
    logits_RV: torch.Tensor, rows: Sequence[Row]
) -> dict[int, torch.Tensor]:
    asked = [r for r, row in enumerate(rows) if row.sampling.logprobs is not None]
    if not asked:
        return {}
    return dict(zip(asked, torch.log_softmax(logits_RV[asked], -1), strict=True))


def _report(
    logprobs: dict[int, torch.Tensor], rows: Sequence[Row], tokens: list[int]
) -> list[tuple[float, list[tuple[int, float]]] | None]:
    report: list[tuple[float, list[tuple[int, float]]] | None] = [None] * len(rows)
    for r, logprobs_V in logprobs.items():
        best = logprobs_V.topk(rows[r].sampling.logprobs or 0)
        top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        report[r] = (float(logprobs_V[tokens[r]]), top)
    return report
