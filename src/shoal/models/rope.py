"""Rotary position embeddings: the frequencies of a model, scaled the way its context was.

Plain RoPE is Su et al. (arXiv 2104.09864); linear scaling is position interpolation (Chen et al.,
arXiv 2306.15595); yarn is Peng et al. (arXiv 2309.00071, equations 19-22); llama3 is the scaling
of Llama 3.1 (arXiv 2407.21783, section 3.4.2, as released in its configuration files).

Shapes: d head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, slots=True)
class Rope:
    """How positions turn into angles.

    factor            how much longer the context is than the one trained on
    original_context  tokens of the context trained on (llama3, yarn)
    low_freq_factor, high_freq_factor  bounds of llama3's blend, in turns per original context
    beta_slow, beta_fast, truncate     the same of yarn's blend, and whether to whole pairs
    attention_factor  what yarn multiplies cos and sin with
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_slow: float = 1.0
    beta_fast: float = 32.0
    truncate: bool = True
    attention_factor: float = 1.0

    def frequencies(self, head_dim: int) -> torch.Tensor:
        """Radians per position of every rotated pair: [d/2] fp32."""
        pairs = torch.arange(0, head_dim, 2, dtype=torch.float32)
        plain = 1.0 / self.theta ** (pairs / head_dim)
        if self.scaling == "none":
            return plain
        stretched = plain / self.factor
        if self.scaling == "linear":
            return stretched
        keep = self._llama3_keep(plain) if self.scaling == "llama3" else self._yarn_keep(head_dim)
        return keep * plain + (1 - keep) * stretched

    def _llama3_keep(self, plain: torch.Tensor) -> torch.Tensor:
        """Share of the plain frequency: 1 where a pair turns often, 0 where it hardly turns."""
        turns = self.original_context * plain / (2 * math.pi)
        span = self.high_freq_factor - self.low_freq_factor
        return ((turns - self.low_freq_factor) / span).clamp(0, 1)

    def _yarn_keep(self, head_dim: int) -> torch.Tensor:
        low = self._pair_turning(self.beta_fast, head_dim)
        high = self._pair_turning(self.beta_slow, head_dim)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        pairs = torch.arange(head_dim // 2, dtype=torch.float32)
        return 1 - ((pairs - low) / max(high - low, 1e-3)).clamp(0, 1)

    def _pair_turning(self, turns: float, head_dim: int) -> float:
        """The (fractional) pair that makes so many turns in the original context."""
        scale = math.log(self.original_context / (turns * 2 * math.pi))
        return head_dim * scale / (2 * math.log(self.theta))


def yarn_attention_factor(factor: float) -> float:
    """The default of yarn: 0.1 ln(factor) + 1 (equation 22)."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def rotate(x_THd: torch.Tensor, cos_T1d: torch.Tensor, sin_T1d: torch.Tensor) -> torch.Tensor:
    """RoPE on pairs (i, i + d/2): fp32; ``sin`` carries the minus sign in its first half."""
    wide = x_THd.float()
    swapped = wide.roll(wide.shape[-1] // 2, -1)
    return torch.addcmul(wide * cos_T1d, swapped, sin_T1d)
