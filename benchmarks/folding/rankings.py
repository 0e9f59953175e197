"""Which blocks to remove, by five methods on the same calibration text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch

from folding.beds import Bed
from shoal.models.depth.gates import GateOptions, Gates, learn_gates
from shoal.models.depth.influence import block_influence
from shoal.models.depth.remove import remove_measured
from shoal.models.export import hub_config, unfuse


def by_gates(bed: Bed, count: int, options: GateOptions, *, seed: int) -> Gates:
    """Gates for removing ``count`` blocks; the seed decides which rows they see."""
    return learn_gates(bed.decoder, bed.fitted_NS, count, options, protect=bed.edges, seed=seed)


def by_influence(bed: Bed, scores: list[float]) -> list[int]:
    """All blocks that may go, least influence first."""
    order = sorted(range(bed.layers), key=scores.__getitem__)
    return [index for index in order if index not in bed.edges]


def influence(bed: Bed, rows: torch.Tensor) -> list[float]:
    """Block Influence of every block."""
    return block_influence(bed.decoder, rows, batch=bed.batch).tolist()


def by_place(bed: Bed) -> list[int]:
    """From the end, the last block kept: removing it too loses more (SmolLM2: 8.7 to 7.8 nats)."""
    return list(range(bed.layers - 2, 0, -1))


def by_loss(bed: Bed, count: int, rows: torch.Tensor) -> list[int]:
    """Greedily, by what is lost on the calibration text."""
    return remove_measured(bed.decoder, count, rows, protect=bed.edges)


def by_optipfair(bed: Bed, rows: torch.Tensor) -> list[int] | str:
    """As optipfair 0.4.2 ranks them, through transformers; a reason where it cannot be had."""
    try:
        from optipfair import analyze_layer_importance
    except ImportError:
        return "optipfair is not installed (pip install 'shoal[peers]')"
    scores = analyze_layer_importance(
        transformers_model(bed), list(_batches(rows)), show_progress=False
    )
    order = sorted(scores, key=lambda index: scores[index])
    return [index for index in order if index not in bed.edges]


def transformers_model(bed: Bed) -> Any:
    """The bed's model as transformers has it, over copies of its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**hub_config(bed.decoder.config))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = dict(unfuse(bed.decoder.config, bed.decoder.weights))
    if bed.decoder.config.tied_head:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    dtype = bed.decoder.dtype
    model.load_state_dict({name: t.to(dtype) for name, t in weights.items()}, assign=True)
    rotary = type(model.model.rotary_emb)(config)  # its buffers are not weights
    model.model.rotary_emb = rotary
    return model.eval()


def _batches(rows: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    for ids_BS in rows.split(2):
        yield {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}


def kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's τ-b of two scores of the same blocks."""
    agree = disagree = tied_one = tied_other = 0
    for i, j in combinations(range(len(one)), 2):
        a, b = one[i] - one[j], other[i] - other[j]
        agree += a * b > 0
        disagree += a * b < 0
        tied_one += a == 0
        tied_other += b == 0
    total = len(one) * (len(one) - 1) / 2
    scale = ((total - tied_one) * (total - tied_other)) ** 0.5
    return (agree - disagree) / scale if scale else 0.0
