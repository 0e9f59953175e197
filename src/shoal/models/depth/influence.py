"""Block Influence: how much a block turns the hidden states that pass through it.

BI_i = 1 - E cos(h_i, h_{i+1}), of ShortGPT (arXiv 2403.03853, equation 1): a score of each block by
itself, and the baseline that learned gates are held against.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from shoal.models.decoder import Decoder
from shoal.models.depth.stack import batches, run


@torch.inference_mode()
def block_influence(decoder: Decoder, ids_NS: torch.Tensor, *, batch: int = 2) -> torch.Tensor:
    """BI of every block: [N] fp32, from 0 (nothing is turned) to 2."""
    layers = decoder.config.layers
    total = torch.zeros(layers, dtype=torch.float64)
    tokens = 0
    for ids_BS in batches(ids_NS, batch):
        before = decoder.embed(ids_BS.reshape(-1))
        _, after = run(decoder, ids_BS, keep=range(layers))
        for index in range(layers):
            total[index] += (1 - F.cosine_similarity(before, after[index], dim=-1)).sum()
            before = after[index]
        tokens += ids_BS.numel()
    return (total / tokens).float()
