"""What stands between a decoder's products, each in one pass over memory.

Outside inference mode, or off the CPU, torch computes the same in several.

Shapes: T rows, D hidden, H heads, d head size, I intermediate size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch.nn import functional as F

from shoal.models.native import Loop, array, exp, narrow, of_rank, rank, runs_here, wide
from shoal.models.rope import rotate

MIDDLE = 128  # the code of zero


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """RMSNorm over the last dimension: in fp32, then rounded to ``dtype``."""
    if not runs_here(x):
        return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(dtype)
    out = torch.empty(x.shape, dtype=dtype)
    rows = x.contiguous().view(-1, len(weight))
    _rms_norm(x.numel(), array(rows), array(weight), np.float32(eps), array(out.view_as(rows)))
    return out


def add(x_TD: torch.Tensor, y_TD: torch.Tensor) -> torch.Tensor:
    """x + y: fp32, where y may be bf16."""
    if not runs_here(x_TD):
        return x_TD + y_TD
    assert x_TD.dtype == torch.float32 and x_TD.shape == y_TD.shape
    sum_TD = torch.empty(x_TD.shape)
    _add(x_TD.numel(), array(x_TD.contiguous()), array(y_TD.contiguous()), array(sum_TD))
    return sum_TD


def gated(gate_up_T2I: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up [T, I], of both side by side."""
    gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
    if not runs_here(gate_up_T2I):
        return F.silu(gate_TI) * up_TI
    out_TI = torch.empty(gate_TI.shape, dtype=gate_up_T2I.dtype)
    _gated(gate_up_T2I.numel(), array(gate_up_T2I), array(out_TI))
    return out_TI


def rotated(
    x_THd: torch.Tensor, heads: int, cos_T1d: torch.Tensor, sin_T1d: torch.Tensor
) -> torch.Tensor:
    """RoPE on the first ``heads`` heads, in place; see :func:`shoal.models.rope.rotate`."""
    if not runs_here(x_THd):
        turned = rotate(x_THd[:, :heads], cos_T1d, sin_T1d).to(x_THd.dtype)
        return torch.cat((turned, x_THd[:, heads:]), 1)
    cos_Td, sin_Td = cos_T1d[:, 0], sin_T1d[:, 0]
    _rotate(x_THd.numel(), array(x_THd), heads, array(cos_Td), array(sin_Td))
    return x_THd


def rounded(x_TK: torch.Tensor, relief_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x times ``relief_K``, every row in whole steps of its own: codes [T, K] and steps [T] fp32.

    A code is ``MIDDLE`` (zero) plus -127 to 127 steps, in ``uint8``.
    """
    codes_TK = torch.empty(x_TK.shape, dtype=torch.uint8)
    steps_T = torch.empty(len(x_TK), dtype=torch.float32)
    _rounded(
        x_TK.numel(), array(x_TK.contiguous()), array(relief_K), array(codes_TK), array(steps_T)
    )
    return codes_TK, steps_T


def scale_rows(x_TN: torch.Tensor, scale_T: torch.Tensor) -> None:
    """Multiply every row by a number, in place."""
    _scale_rows(x_TN.numel(), array(x_TN), array(scale_T))


@Loop
def _rms_norm(x_TD: Any, weight_D: Any, eps: Any, out_TD: Any) -> None:
    T, D = x_TD.shape
    for t in prange(T):
        x_D, out_D = x_TD[t], out_TD[t]
        total = np.float32(0)
        for i in range(D):
            total += wide(x_D[i]) * wide(x_D[i])
        scale = np.float32(1) / np.sqrt(total / np.float32(D) + eps)
        for i in range(D):
            out_D[i] = narrow(wide(x_D[i]) * scale * wide(weight_D[i]), out_D[i])


@Loop
def _add(x_TD: Any, y_TD: Any, sum_TD: Any) -> None:
    T, D = x_TD.shape
    for t in prange(T):
        x_D, y_D, sum_D = x_TD[t], y_TD[t], sum_TD[t]
        for i in range(D):
            sum_D[i] = x_D[i] + wide(y_D[i])


@Loop
def _gated(gate_up_T2I: Any, out_TI: Any) -> None:
    T, half = out_TI.shape
    for t in prange(T):
        gate_I, up_I, out_I = gate_up_T2I[t, :half], gate_up_T2I[t, half:], out_TI[t]
        for i in range(half):
            gate = wide(gate_I[i])
            value = gate / (np.float32(1) + exp(-gate)) * wide(up_I[i])
            out_I[i] = narrow(value, out_I[i])


@Loop
def _rotate(x_THd: Any, heads: Any, cos_Td: Any, sin_Td: Any) -> None:
    T, _, d = x_THd.shape
    half = d // 2
    for t in prange(T):
        cos_d, sin_d = cos_Td[t], sin_Td[t]
        for h in range(heads):
            low_d, high_d = x_THd[t, h, :half], x_THd[t, h, half:]
            for i in range(half):
                low, high = wide(low_d[i]), wide(high_d[i])
                low_d[i] = narrow(low * cos_d[i] + high * sin_d[i], low_d[i])
                high_d[i] = narrow(high * cos_d[half + i] + low * sin_d[half + i], high_d[i])


@Loop
def _rounded(x_TK: Any, relief_K: Any, codes_TK: Any, steps_T: Any) -> None:
    T, K = x_TK.shape
    for t in prange(T):
        x_K, codes_K = x_TK[t], codes_TK[t]
        largest = np.int32(0)
        for i in range(K):
            largest = max(largest, rank(abs(wide(x_K[i]) * relief_K[i])))
        step = max(of_rank(largest) / np.float32(127), np.float32(1e-12))
        steps_T[t] = step
        steps = np.float32(1) / step
        for i in range(K):
            value = wide(x_K[i]) * relief_K[i] * steps + np.float32(MIDDLE + 0.5)
            codes_K[i] = np.uint8(np.int32(value))


@Loop
def _scale_rows(x_TN: Any, scale_T: Any) -> None:
    T, N = x_TN.shape
    for t in prange(T):
        x_N, scale = x_TN[t], scale_T[t]
        for i in range(N):
            x_N[i] = narrow(wide(x_N[i]) * scale, x_N[i])
