"""Element types and reductions: numpy where it is quick, torch for the half-width floats.

``AVG`` sums on the way and divides once, at the peer that finishes a chunk; whole numbers are
divided downwards. All functions work in place on flat arrays and allocate nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Kernel = Callable[[Array, Array, Array], Any]
"""kernel(a, b, out): out = a op b."""


class Op(StrEnum):
    """How elements of different peers become one."""

    SUM = "sum"
    AVG = "avg"
    PROD = "prod"
    MAX = "max"
    MIN = "min"


DTYPES = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "bfloat16", "float32", "float64",
)  # fmt: skip
FLOATS = ("float16", "float32", "float64")
"""Element types that can be quantised."""
_UFUNCS = {
    Op.SUM: np.add,
    Op.AVG: np.add,
    Op.PROD: np.multiply,
    Op.MAX: np.maximum,
    Op.MIN: np.minimum,
}


def reduction(op: Op, dtype: str) -> Kernel:
    """The kernel of an operation; bfloat16 arrays come as uint16."""
    if dtype not in ("float16", "bfloat16"):
        ufunc = _UFUNCS[op]
        return lambda a, b, out: ufunc(a, b, out=out)
    import torch

    kind = getattr(torch, dtype)
    name = {Op.SUM: "add", Op.AVG: "add", Op.PROD: "mul", Op.MAX: "maximum", Op.MIN: "minimum"}[op]
    function = getattr(torch, name)

    def half(a: Array, b: Array, out: Array) -> Any:
        x, y, z = (torch.from_numpy(array.view(np.uint16)).view(kind) for array in (a, b, out))
        return function(x, y, out=z)

    return half


def division(dtype: str, world: int) -> Callable[[Array], Any]:
    """In-place division by the number of peers of this attempt."""
    if dtype == "bfloat16":
        import torch

        return lambda x: torch.from_numpy(x).view(torch.bfloat16).div_(world)
    if dtype.startswith("float"):
        return lambda x: np.true_divide(x, world, out=x)
    return lambda x: np.floor_divide(x, x.dtype.type(world), out=x)
