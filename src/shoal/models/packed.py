"""Matrices laid out for the kernels that multiply them, and in fewer bits than 16.

A bf16 matrix in the layout oneDNN computes with gives what a plain one gives (bit for bit where
we tried), and saves the reordering that every product otherwise begins with: a third of the time
up to 64 rows, a tenth at 512 and more.

In steps of a few rows reading the weights is most of the time, so fewer bits are faster still;
activations stay bf16 (weight-only quantisation). A matrix whose groups of 32 weights lie on 16
equidistant values, as a GGUF file's Q4 blocks do, is kept in 4 bits and loses nothing but the
rounding of scales to bf16; any other gets 8 bits with one scale per output row.

In steps of more rows the products themselves are most of the time, and processors multiply 8 bits
twice as fast as 16: weights and activations are both rounded to 8 bits there. Activations have
outliers in a few places, which would cost all others their bits; they are divided down first, and
the weights of those places multiplied (SmoothQuant: Xiao et al., arXiv 2211.10438, equation 4).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from shoal.models.fused import MIDDLE, rounded, scale_rows
from shoal.models.native import has

PACKED_ROWS = 4  # up to so many rows the packed product wins (1.5 to 2.5 times; a tie at 8)
GROUP = 32  # weights of one 4-bit scale
ALPHA = 0.65  # how much of the outliers goes into the weights
LOSSLESS = 0.01  # relative error (root mean square); scales in bf16 make 0.005, rounding makes 0.09


class Blocked(NamedTuple):
    """A bf16 matrix [N, K] in oneDNN's own layout; for inference only."""

    weight: torch.Tensor

    def apply(self, x_TK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
        """x Wᵀ + b: bf16 [T, K] -> bf16 [T, N]."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x_TK, self.weight, bias_N, "none", [], ""
        )
        return product


class Int4(NamedTuple):
    """A matrix [N, K] as codes 0 .. 15 with a scale and an offset for each group of a row.

    codes   packed for the kernel, two to a byte
    scales  [K / 32, N, 2] bf16: step and value of code 8
    """

    codes: torch.Tensor
    scales: torch.Tensor

    def apply(self, x_TK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
        """x Wᵀ + b: bf16 [T, K] -> bf16 [T, N]."""
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x_TK, self.codes, GROUP, self.scales
        )
        return product if bias_N is None else product + bias_N


class Int8(NamedTuple):
    """A matrix [N, K] as ``codes`` in -127 .. 127 times a bf16 ``scale`` [N] for each row."""

    codes: torch.Tensor
    scale: torch.Tensor

    def apply(self, x_TK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
        """x Wᵀ + b: bf16 [T, K] -> bf16 [T, N]."""
        product: torch.Tensor = torch.ops.aten._weight_int8pack_mm(x_TK, self.codes, self.scale)
        return product if bias_N is None else product + bias_N


class W8A8(NamedTuple):
    """A matrix [N, K] in 8 bits, for activations that are rounded to 8 bits, row by row.

    codes   in oneDNN's layout
    scale   [N] fp32, of each output row
    relief  [K] fp32: what activations are multiplied with first; the weights were divided by it
    """

    codes: torch.Tensor
    scale: torch.Tensor
    relief: torch.Tensor

    def apply(self, x_TK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
        """x Wᵀ + b: bf16 [T, K] -> bf16 [T, N]."""
        codes_TK, steps_T = rounded(x_TK, self.relief)
        zeros_N = torch.zeros(len(self.scale), dtype=torch.int32)
        product_TN: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            *(codes_TK, 1.0, MIDDLE, self.codes, self.scale, zeros_N, None),
            *(1.0, 0, torch.bfloat16, "none", [], ""),
        )
        scale_rows(product_TN, steps_T)
        return product_TN if bias_N is None else product_TN + bias_N


Matrix = torch.Tensor | Blocked | Int4 | Int8 | W8A8


def blocked(weight_NK: Matrix) -> Matrix:
    """A matrix in oneDNN's layout, or as it is where oneDNN has none (fp32, old processors)."""
    assert isinstance(weight_NK, torch.Tensor), "layouts are made of plain matrices"
    if weight_NK.dtype != torch.bfloat16 or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return weight_NK
    return Blocked(torch.ops.mkldnn._reorder_linear_weight(weight_NK))


def packed(weight_NK: Matrix) -> Int4 | Int8:
    """Four bits where they lose nothing, otherwise eight."""
    assert isinstance(weight_NK, torch.Tensor), "layouts are made of plain matrices"
    return _int4(weight_NK) or int8(weight_NK)


@functools.cache
def multiplies_8_bits() -> bool:
    """Whether this processor adds up products of 8 bits in 32: without that, sums may overflow."""
    return has("avx512vnni") or has("avxvnni")


def w8a8(weight_NK: Matrix, peak_K: torch.Tensor) -> W8A8:
    """Eight bits for both sides; ``peak_K`` are the largest activations [K] there usually are."""
    assert isinstance(weight_NK, torch.Tensor), "layouts are made of plain matrices"
    wide_NK = weight_NK.float()
    largest_K = wide_NK.abs().amax(0).clamp_min(1e-5)
    smoothing_K = peak_K.float().clamp_min(1e-5) ** ALPHA / largest_K ** (1 - ALPHA)
    smoothing_K /= smoothing_K.log().mean().exp()
    wide_NK = wide_NK * smoothing_K
    scale_N = (wide_NK.abs().amax(1) / 127).clamp_min(1e-12)
    codes_NK = (wide_NK / scale_N[:, None]).round().clamp(-127, 127).to(torch.int8)
    return W8A8(torch.ops.onednn.qlinear_prepack(codes_NK, None), scale_N, 1 / smoothing_K)


def int8(weight_NK: torch.Tensor) -> Int8:
    """Round a matrix to 8 bits, row by row; a row of zeros stays zero."""
    wide = weight_NK.float()
    scale = (wide.abs().amax(1) / 127).clamp_min(1e-12).to(torch.bfloat16)
    codes = (wide / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return Int8(codes, scale)


def _int4(weight_NK: torch.Tensor) -> Int4 | None:
    """A matrix in 4 bits; None where its values do not lie on such grids."""
    N, K = weight_NK.shape
    if N % 64 or K % GROUP:
        return None  # what the kernel can take
    groups = weight_NK.float().view(N, K // GROUP, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / 15).to(torch.bfloat16).float()
    middle = (low + 8 * step).to(torch.bfloat16).float()
    codes = ((groups - middle) / step.clamp_min(1e-12)).round().clamp(-8, 7)
    lost = (codes * step + middle - groups).square().mean() / groups.square().mean()
    if not lost.sqrt() < LOSSLESS:
        return None
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        (codes + 8).to(torch.int32).view(N, K), 1
    )
    scales = torch.cat((step, middle), -1).transpose(0, 1).contiguous().to(torch.bfloat16)
    return Int4(packed, scales)
