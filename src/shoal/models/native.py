"""Loops in Python that are compiled for this processor when they are first called.

What torch does in several passes over memory, or only with padding, is one loop here; numba
compiles it, spreads it over torch's threads, and keeps the result on disk for the next process.
Tensors go in as numpy views, bf16 as the ``uint16`` that holds its bits: :func:`wide` and
:func:`narrow` convert a number in a register.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar, cast

import llvmlite.binding
import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])

SMALL = 1 << 14  # numbers up to which a second thread costs more than it does
_EXACTNESS: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "nnan"},  # sums in any order, no -0, no NaN
}
_MOST_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
_MADE_OF = hashlib.sha256(
    b"".join((Path(__file__).parent / name).read_bytes() for name in ("native.py", "tile.py"))
).hexdigest()[:8]
_one_team = threading.Lock()  # not every kind of threads numba has can serve two callers
_LN2 = np.float32(0.6931471805599453)
_LOG2E = np.float32(1.4426950408889634)


def has(feature: str) -> bool:
    """Whether this processor has a feature, named as LLVM names it."""
    return bool(llvmlite.binding.get_host_cpu_features().get(feature))


class Loop:
    """A function over arrays whose outer loop is a ``prange``, compiled alone and for threads."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._alone = _compiled(function, parallel=False)
        self._threads = _compiled(function, parallel=True)

    def __call__(self, size: int, *arrays: Any) -> None:
        """Run it on the arrays; ``size`` says how many numbers it goes through."""
        threads = min(torch.get_num_threads(), _MOST_THREADS)
        if threads == 1 or size <= SMALL:
            self._alone(*arrays)
            return
        with _one_team:
            if numba.get_num_threads() != threads:
                numba.set_num_threads(threads)
            self._threads(*arrays)


def _compiled(function: Callable[..., None], *, parallel: bool) -> Callable[..., None]:
    """The function under a name of its own: numba finds kept ones by name and file.

    It takes no notice of how they were compiled, nor of changes to what they are made of.
    """
    own = FunctionType(function.__code__, function.__globals__, function.__name__)
    own.__module__, own.__doc__ = function.__module__, function.__doc__
    own.__qualname__ = f"{function.__qualname__}_{'threads' if parallel else 'alone'}_{_MADE_OF}"
    options: dict[str, Any] = {"parallel": parallel, "nogil": True} | _EXACTNESS
    try:
        return cast(Callable[..., None], numba.njit(cache=True, **options)(own))
    except RuntimeError:  # there is no folder to keep it in
        return cast(Callable[..., None], numba.njit(**options)(own))


def inlined(function: F) -> F:
    """A function for use inside loops, compiled into them."""
    return cast(F, numba.njit(inline="always", **_EXACTNESS)(function))


def array(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's memory as an array; bf16 as ``uint16``. Raises what torch does off the CPU.

    A loop is compiled anew for arrays that are not contiguous: give it contiguous ones.
    """
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


def runs_here(*tensors: torch.Tensor) -> bool:
    """Whether loops may be used: on a CPU, in inference mode.

    Training looks at itself with gradients off, too, and should not have to wait for a compiler.
    """
    return torch.is_inference_mode_enabled() and all(t.device.type == "cpu" for t in tensors)


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
