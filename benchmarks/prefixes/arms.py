"""Ways to compute one batch, and one step of learning with each.

All arms use one decoder, one attention kernel where it takes the shapes, and the head on positions
that predict an answer's token alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from prefixes.batches import Batch
from shoal.engine.batch.prefixes import find_prefixes
from shoal.models.decoder import Decoder
from shoal.training.forward import Asked, Forward, Logprobs, asked, distinct, head
from shoal.training.loss import LossOptions, Tokens, policy_loss, token_scale
from shoal.training.policies import Policy, hub_policy, random_weights
from shoal.training.prefix_plan import Cost, forest
from shoal.training.shared_prefix import Plan, SharedPrefix, run

ALONE = Cost(token=0.0, pair=0.0, span=1.0, read=0.0)
"""Under which nothing is worth sharing."""


def smollm(layers: int) -> Policy:
    """The first layers of the packaged model, all of whose weights learn, in fp32."""
    whole = hub_policy("smollm2-135m")
    if layers >= whole.config.layers:
        return whole
    config = replace(whole.config, layers=layers)
    kept = {
        name: tensor
        for name, tensor in whole.trained.items()
        if not name.startswith("layers.") or int(name.split(".")[1]) < layers
    }
    name = f"{layers} layers of {whole.name}"
    return Policy(name, Decoder(config, kept), whole.tokenizer, kept, whole.chat)


def untrained(policy: Policy) -> Policy:
    """The same architecture with random weights."""
    weights = random_weights(policy.config, seed=1)
    decoder = Decoder(policy.config, weights)
    return Policy("random weights", decoder, policy.tokenizer, weights)


def unfused(policy: Policy, prompts: Any, actions: Any, **_: Any) -> Logprobs:
    """The plain forward with torch's attention in separate products: another rounding."""
    with sdpa_kernel(SDPBackend.MATH):
        return distinct(policy, prompts, actions)


def packed(policy: Policy, prompts: Any, actions: Any, **_: Any) -> Logprobs:
    """All rows side by side without padding, each by itself."""
    what = asked(policy, prompts, actions)
    tree = find_prefixes([np.asarray(one) for one in what.inputs])
    rows = forest(what.inputs, tree, ALONE)
    tokens = len(rows.ids_T)
    return run(policy, what, Plan(((np.arange(len(what.inputs)), rows),), "", tokens, tokens, 1.0))


def grouper(policy: Policy, prompts: Any, actions: Any, **_: Any) -> Logprobs:
    """The package ``prefix_grouper`` on one group, with a causal inner function.

    What it passes is a mask of padding alone, so that queries at the end of longer keys need a
    causal mask aligned to the lower right.
    """
    what = asked(policy, prompts, actions)
    (prompt,) = set(prompts)
    first = len(prompt)
    lengths = [len(tokens) - first for tokens in what.inputs]
    sharing = installed().PrefixGrouper([[first, *lengths]])
    ids, positions = list(prompt), list(range(first))
    starts = []
    for tokens in what.inputs:
        starts.append(len(ids))
        ids += tokens[first:]
        positions += range(first, len(tokens))

    def inner(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padding: torch.Tensor
    ) -> torch.Tensor:
        R, L = q.shape[2], k.shape[2]
        if R == L:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            seen_RL = torch.ones(R, L, dtype=torch.bool).tril(L - R)
            mask = padding.bool()[:, None, None] & seen_RL
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2)

    def attend(layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q_THd, *kv_T2Kd.unbind(1)))
        return sharing.forward(inner, q, k, v)[0]

    states_TD = policy.decoder.forward(torch.tensor(ids), torch.tensor(positions), attend)
    return head(policy, states_TD, _grouped_rows(what, first, starts), what.target_A,
                temperature=1.0, entropy=False)  # fmt: skip


def _grouped_rows(what: Asked, first: int, starts: list[int]) -> np.ndarray:
    """Rows of the grouped form: the prompt's last one predicts every answer's first token."""
    own = np.array(starts)[what.input_A] + what.position_A - first
    return np.where(what.position_A < first, first - 1, own)


def installed() -> Any:
    """The package; raises ``ModuleNotFoundError`` without it.

    This folder's own prefix_grouper.py is called the same.
    """
    here = str(Path(__file__).parents[1])
    before = list(sys.path)
    sys.path[:] = [path for path in before if path != here]
    try:
        return importlib.import_module("prefix_grouper")
    finally:
        sys.path[:] = before


FORWARDS: dict[str, Forward] = {
    "plain": distinct,
    "plain, other kernel": unfused,
    "packed": packed,
    "shared": SharedPrefix(check=False),
    "prefix_grouper": grouper,
}


def step(policy: Policy, batch: Batch, arm: str, old_A: torch.Tensor | None = None) -> float:
    """One forward and backward pass of GRPO's loss; gradients stay in the weights.

    ``old_A`` are the log-probabilities before; without them the policy's own, up to noise.
    """
    for tensor in policy.trained.values():
        tensor.grad = None
    logp_A = FORWARDS[arm](policy, batch.prompts, batch.actions).logp_A
    loss = grpo_loss(batch, logp_A, noisy(logp_A) if old_A is None else old_A)
    loss.backward()
    return float(loss.detach())


def steps(policy: Policy, batch: Batch, arms: list[str]) -> dict[str, Callable[[], float]]:
    """One step of each arm, to be timed."""
    return {arm: partial(step, policy, batch, arm) for arm in arms}


def noisy(logp_A: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of a policy that differs a little, so that ratios are not all 1."""
    random = torch.Generator().manual_seed(len(logp_A) + 1)
    return logp_A.detach() + 0.05 * torch.randn(len(logp_A), generator=random)


def grpo_loss(batch: Batch, logp_A: torch.Tensor, old_A: torch.Tensor) -> torch.Tensor:
    """GRPO's clipped loss under advantages drawn by the batch's shape."""
    random = torch.Generator().manual_seed(len(logp_A))
    lengths_R = torch.tensor([len(action) for action in batch.actions])
    row_A = torch.repeat_interleave(torch.arange(len(lengths_R)), lengths_R)
    advantage_R = torch.randn(len(lengths_R), generator=random)
    tokens = Tokens(
        logp_A=logp_A,
        old_A=old_A,
        row_A=row_A,
        scale_A=token_scale(lengths_R, "token")[row_A],
        columns_CA=advantage_R[row_A][None],
        weights_CA=torch.ones(1, len(row_A)),
        correction_A=torch.ones(len(row_A)),
    )
    return policy_loss(tokens, LossOptions(clip_low=0.5, clip_high=0.5))[0]


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    """Copies of the gradients there are."""
    return {
        name: tensor.grad.clone()
        for name, tensor in policy.trained.items()
        if tensor.grad is not None
    }


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest difference of any gradient, over that gradient's largest element."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp_min(1e-20))
        for name in theirs
    )
