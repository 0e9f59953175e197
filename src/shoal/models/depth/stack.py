"""A decoder over batches of equal rows, block by block, with gates between and states kept.

Shapes: B rows of a batch, S tokens of a row, T = B·S, D hidden, N blocks, V vocabulary, H query
heads, K key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import functional as F

from shoal.models.decoder import Attend, Decoder


def attend_rows(B: int, S: int) -> Attend:
    """Causal attention within each of B rows of S tokens that lie side by side."""

    def attend(layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            x.reshape(B, S, *x.shape[1:]).transpose(1, 2)
            for x in (q_THd, kv_T2Kd[:, 0], kv_T2Kd[:, 1])
        )
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2).reshape(q_THd.shape)

    return attend


def plain(decoder: Decoder) -> Decoder:
    """The same tensors for a forward pass that can be differentiated."""
    return decoder if decoder.kernels == "plain" else Decoder(decoder.config, decoder.weights)


def run(
    decoder: Decoder,
    ids_BS: torch.Tensor,
    *,
    gates_N: torch.Tensor | None = None,
    keep: Iterable[int] = (),
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """What the last block gives, [T, D] fp32, and the outputs of the blocks in ``keep``.

    With ``gates_N`` a block adds only that part of its change: h + g (Block(h) - h). A gate of 0
    is exact removal, 1 the block as it is.
    """
    B, S = ids_BS.shape
    positions_T = torch.arange(S).repeat(B)
    attend = attend_rows(B, S)
    wanted, kept = set(keep), {}
    x_TD = decoder.embed(ids_BS.reshape(-1))
    for index in range(decoder.config.layers):
        y_TD = decoder.through(x_TD, positions_T, attend, index, index + 1)
        x_TD = y_TD if gates_N is None else x_TD + gates_N[index] * (y_TD - x_TD)
        if index in wanted:
            kept[index] = x_TD
    return x_TD, kept


def batches(ids_NS: torch.Tensor, size: int) -> list[torch.Tensor]:
    """The rows, so many at a time; the last may be fewer."""
    return [ids_NS[first : first + size] for first in range(0, len(ids_NS), size)]


def resume(
    decoder: Decoder, x_TD: torch.Tensor, shape_BS: tuple[int, int], first: int
) -> torch.Tensor:
    """The blocks from ``first`` on, for what the block before gave: [T, D] fp32."""
    B, S = shape_BS
    positions_T = torch.arange(S).repeat(B)
    return decoder.through(x_TD, positions_T, attend_rows(B, S), first, decoder.config.layers)


def next_logits(decoder: Decoder, x_TD: torch.Tensor, shape_BS: tuple[int, int]) -> torch.Tensor:
    """Scores of every token but the first of each row: [B (S - 1), V] fp32."""
    B, S = shape_BS
    states_BSD = decoder.finish(x_TD).view(B, S, -1)[:, :-1]
    return decoder.logits(states_BSD.reshape(B * (S - 1), -1))


def next_targets(ids_BS: torch.Tensor) -> torch.Tensor:
    """The tokens that these scores are about: [B (S - 1)]."""
    return ids_BS[:, 1:].reshape(-1)


def language_loss(
    decoder: Decoder, ids_BS: torch.Tensor, *, gates_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean negative log-likelihood in nats a token."""
    x_TD, _ = run(decoder, ids_BS, gates_N=gates_N)
    B, S = ids_BS.shape
    return F.cross_entropy(next_logits(decoder, x_TD, (B, S)), next_targets(ids_BS))


@torch.inference_mode()
def row_losses(decoder: Decoder, ids_NS: torch.Tensor, *, batch: int = 2) -> torch.Tensor:
    """Mean nats a token of every row: [N]. Their mean's exponential is the perplexity."""
    found = []
    for ids_BS in batches(ids_NS, batch):
        B, S = ids_BS.shape
        x_TD, _ = run(decoder, ids_BS)
        logits = next_logits(decoder, x_TD, (B, S))
        losses = F.cross_entropy(logits, next_targets(ids_BS), reduction="none")
        found.append(losses.view(B, S - 1).mean(1))
    return torch.cat(found)
