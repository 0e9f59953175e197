"""Loops in Python that are compiled for this processor when they are first called.

What torch does in several passes over memory, or only with padding, is one loop here; numba
compiles it, spreads it over torch's threads, and keeps the result on disk for the next process.
Tensors go in as numpy views, bf16 as the ``uint16`` that holds its bits: :func:`wide` and
:func:`narrow` convert a number in a register.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])

SMALL = 1 << 14  # numbers up to which a second thread costs more than it does
_FAST = {"reassoc", "contract", "nsz", "nnan"}  # sums in any order, no signed zeros, no NaN
_MOST_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
_LN2 = np.float32(0.6931471805599453)
_LOG2E = np.float32(1.4426950408889634)


class Loop:
    """A function over arrays whose outer loop is a ``prange``, compiled alone and for threads."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._alone, self._threads = (
            numba.njit(
                parallel=parallel, cache=True, nogil=True, fastmath=_FAST, error_model="numpy"
            )(function)
            for parallel in (False, True)
        )

    def __call__(self, size: int, *arrays: Any) -> None:
        """Run it; ``size`` says how many numbers it goes through."""
        threads = torch.get_num_threads()
        if threads == 1 or size <= SMALL:
            self._alone(*arrays)
            return
        if numba.get_num_threads() != threads:
            numba.set_num_threads(min(threads, _MOST_THREADS))
        self._threads(*arrays)


def inlined(function: F) -> F:
    """A function for use inside loops, compiled into them."""
    return cast(F, numba.njit(inline="always", fastmath=_FAST, error_model="numpy")(function))


def array(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's memory as an array; bf16 as ``uint16``. Raises what torch does off the CPU."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


def runs_here(*tensors: torch.Tensor) -> bool:
    """Whether loops may be used: on a CPU, where nothing asks for gradients."""
    return not torch.is_grad_enabled() and all(t.device.type == "cpu" for t in tensors)


# -- numbers, inside loops ---------------------------------------------------------------------


def _bitcast(source: Any, target: Any) -> Any:
    """A function that reads the bits of one type as another."""

    def typed(context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return intrinsic(typed)


_float_of = _bitcast(types.uint32, types.float32)
_bits_of = _bitcast(types.float32, types.uint32)


def wide(number: Any) -> Any:
    """A stored number as fp32: the bits of a bf16 one, or fp32 as it is."""
    raise NotImplementedError("this runs inside compiled loops only")


@overload(wide, inline="always", strict=False)
def _wide(number: Any) -> Any:
    if number == types.uint16:
        return lambda number: _float_of(np.uint32(number) << np.uint32(16))
    return lambda number: number


def narrow(number: Any, like: Any) -> Any:
    """fp32 rounded to what ``like`` is: the nearest bf16's bits, ties to even, or itself."""
    raise NotImplementedError("this runs inside compiled loops only")


@overload(narrow, inline="always", strict=False)
def _narrow(number: Any, like: Any) -> Any:
    if like == types.uint16:

        def rounded(number: Any, like: Any) -> Any:
            bits = _bits_of(number)
            half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            return np.uint16((bits + half) >> np.uint32(16))

        return rounded
    return lambda number, like: number


@inlined
def exp(x: Any) -> Any:
    """e^x in fp32, to 3e-7 of itself; beyond -87.3 and 88 what it is there."""
    x = min(max(x, np.float32(-87.3)), np.float32(88.0))
    n = np.floor(x * _LOG2E + np.float32(0.5))
    r = x - n * _LN2
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = _float_of(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23))
    return (p * r * r + r + np.float32(1)) * power


@inlined
def rank(x: Any) -> Any:
    """An ``int32`` that orders as x does: the compiler vectorises a maximum of integers only."""
    bits = np.int32(_bits_of(x))
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@inlined
def of_rank(bits: Any) -> Any:
    """The number with this rank."""
    return _float_of(np.uint32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))))


LOWEST = np.int32(-(1 << 31))  # below every rank
