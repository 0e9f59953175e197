"""A byte-level Llama small enough to train on a laptop's core, for claims, examples and tests.

The decoder is that of :mod:`shoal.models`, with weights that ask for gradients; a batch is rows of
equal length, so attention is one causal product for all of them.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from shoal.models.decoder import Decoder, DecoderConfig
from shoal.models.rope import Rope
from shoal.models.weights import layout


def tiny_config(*, hidden: int = 96, layers: int = 3, context: int = 128) -> DecoderConfig:
    """Byte-level Llama of about a third of a million parameters."""
    return DecoderConfig(
        family="llama",
        layers=layers,
        hidden=hidden,
        heads=hidden // 24,
        kv_heads=hidden // 24,
        head_dim=24,
        intermediate=hidden * 8 // 3,
        vocab=256,
        context=context,
        eps=1e-5,
        rope=Rope(theta=10_000.0),
        tied_head=True,
    )


class ByteLlama:
    """The model and its loss. ``parameters`` are by name, in an order that is the same for all."""

    def __init__(self, config: DecoderConfig, *, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, torch.Tensor] = {}
        for name, tensor in sorted(layout(config).items()):
            if len(tensor.shape) == 1:
                weight = torch.ones(tensor.shape)
            else:
                shrink = math.sqrt(2 * config.layers) if name.endswith(("out", "down")) else 1.0
                weight = torch.randn(tensor.shape, generator=random) * 0.05 / shrink
            self.parameters[name] = weight.requires_grad_()
        self._decoder = Decoder(config, self.parameters)

    def loss(self, bytes_BS: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood in nats a byte, of all bytes but the first of each row."""
        return next_token_loss(self._decoder, bytes_BS)


def next_token_loss(decoder: Decoder, ids_BS: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood in nats a token, of all tokens but the first of each row."""
    return row_losses(decoder, ids_BS).mean()


def row_losses(decoder: Decoder, ids_BS: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of each row [B], in nats a token."""
    B, S = ids_BS.shape
    positions = torch.arange(S - 1).repeat(B)

    def attend(layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            x.reshape(B, S - 1, *x.shape[1:]).transpose(1, 2)
            for x in (q_THd, kv_T2Kd[:, 0], kv_T2Kd[:, 1])
        )
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2).reshape(q_THd.shape)

    hidden = decoder.forward(ids_BS[:, :-1].reshape(-1), positions, attend)
    loss_T = F.cross_entropy(decoder.logits(hidden), ids_BS[:, 1:].reshape(-1), reduction="none")
    return loss_T.view(B, S - 1).mean(1)


def rows(text: torch.Tensor, *, batch: int, length: int, seed: int) -> torch.Tensor:
    """Random stretches of a text of bytes [n]: [batch, length] int64, by the seed alone."""
    random = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - length, (batch,), generator=random)
    return torch.stack([text[start : start + length] for start in starts.tolist()]).long()
