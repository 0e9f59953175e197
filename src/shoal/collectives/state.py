"""A shared state: named arrays with a revision, that all peers of a group hold bit for bit.

PCCL (arXiv 2505.14065), "Shared state". Hashes are xxh3-128 over the bytes of each array instead
of a 32-bit hash; the hash of a GPU tensor is that of its copy on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.collectives.errors import StateError
from shoal.collectives.kernels import DTYPES
from shoal.collectives.packets import Entry
from shoal.core.errors import MissingExtra


@dataclass(frozen=True, slots=True)
class Buffer:
    """A contiguous array or CPU tensor as flat numpy memory; bfloat16 comes as uint16."""

    flat: NDArray[Any]
    dtype: str
    shape: tuple[int, ...]


def buffer_of(x: Any, *, writable: bool) -> Buffer:
    """The memory of a numpy array or a CPU torch tensor, without a copy.

    Raises ``ValueError`` for what is not contiguous, is read-only where it must be written, or
    has an element type that cannot be reduced.
    """
    if isinstance(x, np.ndarray):
        array, dtype = x, str(x.dtype)
    else:
        array, dtype = _of_tensor(x)
    if dtype not in DTYPES:
        raise ValueError(f"Elements are {dtype}, but must be one of {', '.join(DTYPES)}.")
    if not array.flags.c_contiguous:
        raise ValueError(f"An array of shape {array.shape} is not contiguous: copy it first.")
    if writable and not array.flags.writeable:
        raise ValueError(f"An array of shape {array.shape} is read-only: copy it first.")
    return Buffer(array.reshape(-1), dtype, tuple(array.shape))


def _of_tensor(x: Any) -> tuple[NDArray[Any], str]:
    import torch

    if not isinstance(x, torch.Tensor):
        raise ValueError(f"{type(x).__name__} is neither a numpy array nor a tensor.")
    if x.device.type != "cpu":
        raise ValueError(f"A tensor on {x.device} cannot be sent: copy it to the CPU first.")
    if not x.is_contiguous():
        raise ValueError(f"A tensor of shape {tuple(x.shape)} is not contiguous: copy it first.")
    flat = x.detach()
    dtype = str(flat.dtype).removeprefix("torch.")
    if flat.dtype is torch.bfloat16:
        flat = flat.view(torch.uint16)
    return flat.numpy(), dtype


def content_hash(x: NDArray[Any]) -> str:
    """xxh3-128 of an array's bytes, as hex."""
    try:
        import xxhash
    except ImportError as error:
        raise MissingExtra("Hashing shared state", "collectives") from error
    return str(xxhash.xxh3_128_hexdigest(np.ascontiguousarray(x).view(np.uint8).data))


class SharedState:
    """Arrays that a group advances together; ``revision`` counts the steps.

    ``arrays`` are numpy arrays or CPU tensors and are written in place. Those in ``unequal`` must
    be there in the same shape but may differ between peers. Raises ``ValueError`` as
    :func:`buffer_of` does.
    """

    def __init__(
        self, arrays: Mapping[str, Any], *, revision: int = 0, unequal: frozenset[str] = frozenset()
    ) -> None:
        if not arrays:
            raise ValueError("A shared state needs at least one array.")
        self.revision = revision
        self.unequal = unequal
        self.buffers = {key: buffer_of(x, writable=True) for key, x in sorted(arrays.items())}

    def entries(self) -> tuple[Entry, ...]:
        """What there is, with hashes."""
        return tuple(
            Entry(key, buffer.dtype, buffer.shape, content_hash(buffer.flat), key in self.unequal)
            for key, buffer in self.buffers.items()
        )

    def bytes_of(self, key: str) -> memoryview:
        """The memory of one array; raises :class:`StateError` for an unknown key."""
        if key not in self.buffers:
            raise StateError(f"There is no {key!r} in the shared state.")
        return self.buffers[key].flat.view(np.uint8).data
