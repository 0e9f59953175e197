"""Losses of policy gradients over flat tokens: pure functions, no model and no padding.

ppo_clip is arXiv 1707.06347 with DAPO's two bounds (2503.14476) and the dual clip (1912.09729);
cispo is MiniMax-M1 (2506.13585); gspo is the sequence ratio of arXiv 2507.18071; reinforce has no
ratio at all. KL terms are Schulman's k1 and k3.

A row's tokens carry a coefficient that is computed once for the whole batch, so a sum over
micro-batches is the loss of the batch: gradient accumulation cannot change it.

Shapes: A action tokens of all rows side by side, R rows, C advantage columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

PolicyLoss = Literal["ppo_clip", "cispo", "gspo", "reinforce"]
Aggregate = Literal["token", "sequence", "constant"]
KL = Literal["none", "k1", "k3"]


@dataclass(frozen=True, slots=True)
class LossOptions:
    """How tokens are credited.

    clip_low, clip_high  ratios stay within [1 - low, 1 + high]
    dual_clip            bound c > 1 of the loss where an advantage is negative; 0 for none
    aggregate            "token": mean over all tokens of the batch; "sequence": mean over rows of
                         their token means; "constant": sums over rows, divided by ``length``
    kl, kl_weight        penalty towards the reference policy, and whether in the loss or the reward
    entropy_weight       bonus for the entropy of each token's distribution
    """

    kind: PolicyLoss = "ppo_clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    aggregate: Aggregate = "token"
    length: int = 1
    kl: KL = "none"
    kl_weight: float = 0.0
    kl_in: Literal["loss", "reward"] = "loss"
    entropy_weight: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """What the loss knows of the tokens of some rows, each [A] but for the columns.

    logp_A      of the policy that learns, with gradient
    old_A       of the policy that sampled, as the trainer computes it
    row_A       which row a token is of, 0..R-1, ascending
    scale_A     its share of the batch's mean, from :func:`token_scale`
    columns_CA, weights_CA  advantages of its row
    correction_A  importance weight from sampler to trainer; 1 where they agree
    reference_A   of the reference policy; None without a KL term
    entropy_A     of the policy's distribution, with gradient; None without a bonus
    """

    logp_A: torch.Tensor
    old_A: torch.Tensor
    row_A: torch.Tensor
    scale_A: torch.Tensor
    columns_CA: torch.Tensor
    weights_CA: torch.Tensor
    correction_A: torch.Tensor
    reference_A: torch.Tensor | None = None
    entropy_A: torch.Tensor | None = None


def token_scale(lengths_R: torch.Tensor, aggregate: Aggregate, length: int = 1) -> torch.Tensor:
    """The coefficient of each row's tokens in the batch's mean, [R]; rows without tokens get 0."""
    lengths_R = lengths_R.to(torch.float64)
    rows = max(int((lengths_R > 0).sum()), 1)
    if aggregate == "token":
        return torch.full_like(lengths_R, 1.0) / lengths_R.sum().clamp_min(1)
    if aggregate == "sequence":
        return 1.0 / (rows * lengths_R.clamp_min(1))
    return torch.full_like(lengths_R, 1.0 / (rows * length))


def policy_loss(tokens: Tokens, options: LossOptions) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of these tokens as their part of the whole batch's, and what to tell of it.

    Metrics are sums under the same coefficients, so they add up over micro-batches too.
    """
    scale_A = tokens.scale_A.to(tokens.logp_A.dtype)
    log_ratio_A = tokens.logp_A - tokens.old_A
    if options.kind == "gspo":
        log_ratio_A = _row_mean(log_ratio_A, tokens.row_A)
    credit_A = torch.zeros_like(tokens.logp_A)
    clipped_A = torch.zeros_like(tokens.logp_A)
    for advantage_A, weight_A in zip(tokens.columns_CA, tokens.weights_CA, strict=True):
        term_A, out_A = _surrogate(tokens.logp_A, log_ratio_A, advantage_A, options)
        credit_A = credit_A + weight_A * term_A
        clipped_A = torch.maximum(clipped_A, out_A * (weight_A * advantage_A != 0))
    loss = (scale_A * tokens.correction_A * credit_A).sum()
    metrics = {
        "clip_share": _sum(scale_A * clipped_A),
        "kl_old": _sum(scale_A * kl_terms(tokens.old_A, tokens.logp_A.detach(), "k3")),
    }
    if options.kl != "none" and options.kl_in == "loss" and options.kl_weight:
        assert tokens.reference_A is not None, "a KL term needs the reference's log-probabilities"
        kl = (scale_A * kl_terms(tokens.logp_A, tokens.reference_A, options.kl)).sum()
        loss = loss + options.kl_weight * kl
        metrics["kl_reference"] = float(kl.detach())
    if tokens.entropy_A is not None:
        entropy = (scale_A * tokens.entropy_A).sum()
        metrics["entropy"] = float(entropy.detach())
        loss = loss - options.entropy_weight * entropy
    return loss, metrics


def kl_terms(logp_A: torch.Tensor, reference_A: torch.Tensor, kind: KL) -> torch.Tensor:
    """An estimate per token of KL(policy || reference) from the policy's own samples."""
    if kind == "k1":
        return logp_A - reference_A
    back_A = reference_A - logp_A
    return back_A.exp() - back_A - 1


def _surrogate(
    logp_A: torch.Tensor, log_ratio_A: torch.Tensor, advantage_A: torch.Tensor, options: LossOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each token under one column, and where a bound took its gradient."""
    if options.kind == "reinforce":
        return -advantage_A * logp_A, torch.zeros_like(logp_A)
    ratio_A = log_ratio_A.exp()
    if options.kind == "cispo":
        bounded_A = ratio_A.detach().clamp(1 - options.clip_low, 1 + options.clip_high)
        return -bounded_A * advantage_A * logp_A, (bounded_A != ratio_A.detach()).float()
    bounded_A = ratio_A.clamp(1 - options.clip_low, 1 + options.clip_high)
    plain_A, clipped_A = -ratio_A * advantage_A, -bounded_A * advantage_A
    loss_A = torch.maximum(plain_A, clipped_A)
    if options.dual_clip:
        loss_A = torch.where(
            advantage_A < 0, torch.minimum(loss_A, -options.dual_clip * advantage_A), loss_A
        )
    return loss_A, (loss_A != plain_A).float()


def _row_mean(value_A: torch.Tensor, row_A: torch.Tensor) -> torch.Tensor:
    """Each token's row's mean."""
    if not len(value_A):
        return value_A
    rows = int(row_A.max()) + 1
    count_R = torch.bincount(row_A, minlength=rows).clamp_min(1).to(value_A.dtype)
    sum_R = torch.zeros(rows, dtype=value_A.dtype).index_add(0, row_A, value_A)
    return (sum_R / count_R)[row_A]


def _sum(value_A: torch.Tensor) -> float:
    return float(value_A.detach().sum())
