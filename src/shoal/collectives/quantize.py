"""Eight-bit blocks: min-max and zero-point-scale, so that every peer ends with the same bits.

PCCL (arXiv 2505.14065), "Quantization with bit parity". A block is quantised with a range of its
own. On its way through the reduce-scatter a partial sum is quantised at every hop; a finished
block is quantised once, by its owner, who takes over the dequantised values, and all others
forward the bytes they got. What a block of 8 bits cannot hold is sent as it is, with a flag: NaN
and infinities. A block of one value is exact.

A block on the wire: ``flag`` (0 raw, 1 min-max, 2 zero-point), ``zero`` and ``scale`` as f64, then
the payload. A value is ``zero + q * scale`` (min-max) or ``(q - zero) * scale`` (zero-point).
"""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shoal.collectives.errors import WireError

Quantization = Literal["none", "min_max", "zero_point_scale"]
QUANTIZATIONS: tuple[Quantization, ...] = ("none", "min_max", "zero_point_scale")
META = struct.Struct("<Bxxxxxxxdd")
RAW, MIN_MAX, ZERO_POINT = range(3)
LEVELS = 255


def encode(x: NDArray[np.floating], kind: Quantization, out: memoryview) -> int:
    """Write a block of f16, f32 or f64 values into ``out``; how many bytes it takes there.

    ``out`` must have room for :func:`room` bytes.
    """
    assert kind != "none", "a block that is not quantised has no header"
    low, high = float(x.min()), float(x.max())
    if not np.isfinite(high - low) or not _representable(x.dtype, high - low):
        META.pack_into(out, 0, RAW, 0.0, 0.0)
        out[META.size : META.size + x.nbytes] = x.view(np.uint8).data
        return META.size + x.nbytes
    q = np.frombuffer(out, np.uint8, x.size, META.size)
    if kind == "min_max" or low == high:
        scale = (high - low) / LEVELS
        META.pack_into(out, 0, MIN_MAX, low, scale)
        _fill(q, x, low, scale)
    else:
        low, high = min(low, 0.0), max(high, 0.0)  # zero is exact: it is what most updates are
        scale = (high - low) / LEVELS
        zero = float(round(-low / scale)) if scale else 0.0
        META.pack_into(out, 0, ZERO_POINT, zero, scale)
        _fill(q, x, -zero * scale, scale)
    return META.size + x.size


def _representable(dtype: np.dtype[np.floating], spread: float) -> bool:
    """Whether differences neither overflow nor have a subnormal scale."""
    limits = np.finfo(dtype)
    return spread == 0 or float(limits.tiny) <= spread / LEVELS <= float(limits.max) / 1024


def _fill(q: NDArray[np.uint8], x: NDArray[np.floating], low: float, scale: float) -> None:
    """q = round((x - low) / scale), halves to even, within 0 and 255."""
    if scale == 0:
        q.fill(0)
        return
    wide = x if x.dtype != np.float16 else x.astype(np.float32)
    scaled = np.subtract(wide, wide.dtype.type(low))
    scaled *= wide.dtype.type(1 / scale)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, LEVELS, out=scaled)
    np.copyto(q, scaled, casting="unsafe")


def decode(block: memoryview, out: NDArray[np.floating]) -> None:
    """The values of an encoded block, into ``out``; raises :class:`WireError` if it is none."""
    if len(block) < META.size:
        raise WireError(f"A quantised block of {len(block)} bytes has no header.")
    flag, zero, scale = META.unpack_from(block)
    expected = META.size + (out.nbytes if flag == RAW else out.size)
    if flag > ZERO_POINT or len(block) != expected:
        raise WireError(f"A quantised block has flag {flag} and {len(block)} bytes.")
    if flag == RAW:
        out.view(np.uint8)[:] = np.frombuffer(block, np.uint8, out.nbytes, META.size)
        return
    q = np.frombuffer(block, np.uint8, out.size, META.size)
    wide = out if out.dtype != np.float16 else np.empty(out.size, np.float32)
    kind = wide.dtype.type
    if flag == MIN_MAX:
        np.multiply(q, kind(scale), out=wide, casting="unsafe")
        wide += kind(zero)
    else:
        np.subtract(q, kind(zero), out=wide, casting="unsafe")
        wide *= kind(scale)
    if wide is not out:
        np.copyto(out, wide, casting="unsafe")


def room(size: int, dtype: np.dtype[np.generic]) -> int:
    """Bytes an encoded block of ``size`` values may take."""
    return META.size + size * dtype.itemsize
