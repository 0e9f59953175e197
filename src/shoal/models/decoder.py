"""One decoder for the Llama family: RMSNorm, grouped-query attention, RoPE, SwiGLU.

Covers Llama, Qwen2, Qwen3 and Mistral checkpoints. Attention itself is the caller's: an engine
knows which rows see which cached keys, the decoder only hands it rotated queries, keys and
values. Rows are flat: tokens of many sequences side by side, without padding.

Shapes: T rows (tokens), R rows of interest, D hidden, V vocabulary, H query heads,
K key-value heads, G = H / K, d head size, I intermediate size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch.nn import functional as F

from shoal.models.rope import Rope

Family = Literal["llama", "qwen2", "qwen3", "mistral"]


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The architecture of one checkpoint.

    context  tokens a sequence may have; eos_ids end an answer; bos_id is None where a text does
    not begin with such a token
    """

    family: Family
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    eps: float
    rope: Rope
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None


class Attend(Protocol):
    """Attention of one layer: q [T, H, d], k and v [T, K, d], q and k rotated -> [T, H, d]."""

    def __call__(
        self, layer: int, q_THd: torch.Tensor, k_TKd: torch.Tensor, v_TKd: torch.Tensor, /
    ) -> torch.Tensor: ...


class _Layer(NamedTuple):
    attn_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class Decoder:
    """The forward pass over weights that are stored fused; see ``weights.layout`` for names."""

    def __init__(self, config: DecoderConfig, weights: Mapping[str, torch.Tensor]) -> None:
        self.config = config
        self.weights = weights
        self._embed = weights["embed"]
        self._head = weights["embed" if config.tied_head else "head"]
        self._final_norm = weights["final_norm"]
        self._layers = [
            _Layer(*(weights.get(f"layers.{index}.{part}") for part in _Layer._fields))  # type: ignore[arg-type]
            for index in range(config.layers)
        ]
        frequencies = config.rope.frequencies(config.head_dim)
        if "rope_divisors" in weights:
            frequencies = frequencies / weights["rope_divisors"].float()
        self._frequencies = frequencies.to(self._embed.device)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights and activations."""
        return self._embed.dtype

    def forward(
        self, ids_T: torch.Tensor, positions_T: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Hidden states [T, D] after the final norm; differentiable where weights ask for it."""
        config = self.config
        T, H, K, d = len(ids_T), config.heads, config.kv_heads, config.head_dim
        cos_T1d, sin_T1d = self._rotation(positions_T)
        x_TD = F.embedding(ids_T, self._embed)
        for index, layer in enumerate(self._layers):
            normed_TD = F.rms_norm(x_TD, (config.hidden,), layer.attn_norm, config.eps)
            qkv = F.linear(normed_TD, layer.qkv, layer.qkv_bias).view(T, H + 2 * K, d)
            qk, v_TKd = qkv[:, : H + K], qkv[:, H + K :]
            if layer.q_norm is not None:
                qk = torch.cat(
                    (
                        F.rms_norm(qk[:, :H], (d,), layer.q_norm, config.eps),
                        F.rms_norm(qk[:, H:], (d,), layer.k_norm, config.eps),
                    ),
                    dim=1,
                )
            qk = rotate(qk, cos_T1d, sin_T1d)
            o_THd = attend(index, qk[:, :H], qk[:, H:], v_TKd)
            x_TD = x_TD + F.linear(o_THd.reshape(T, H * d), layer.out)
            normed_TD = F.rms_norm(x_TD, (config.hidden,), layer.mlp_norm, config.eps)
            gate_TI, up_TI = F.linear(normed_TD, layer.gate_up).chunk(2, dim=-1)
            x_TD = x_TD + F.linear(F.silu(gate_TI) * up_TI, layer.down)
        return F.rms_norm(x_TD, (config.hidden,), self._final_norm, config.eps)

    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Scores of the next token: [R, V] fp32."""
        return F.linear(hidden_RD, self._head).float()

    def _rotation(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and signed sin, both [T, 1, d] fp32, as :func:`rotate` wants them."""
        angles = positions_T[:, None, None] * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        if (factor := self.config.rope.attention_factor) != 1:
            cos, sin = cos * factor, sin * factor
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x_THd: torch.Tensor, cos_T1d: torch.Tensor, sin_T1d: torch.Tensor) -> torch.Tensor:
    """RoPE on pairs (i, i + d/2), in fp32; ``sin`` carries the minus sign in its first half."""
    wide = x_THd.float()
    swapped = wide.roll(wide.shape[-1] // 2, -1)
    return torch.addcmul(wide * cos_T1d, swapped, sin_T1d).to(x_THd.dtype)


def causal_attend(
    layer: int, q_THd: torch.Tensor, k_TKd: torch.Tensor, v_TKd: torch.Tensor
) -> torch.Tensor:
    """Attention where all rows are one sequence from its beginning, and nothing is cached."""
    out = F.scaled_dot_product_attention(
        q_THd.transpose(0, 1)[None],
        k_TKd.transpose(0, 1)[None],
        v_TKd.transpose(0, 1)[None],
        is_causal=True,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)
