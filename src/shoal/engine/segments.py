"""Keys and values of a run of tokens, detached from where they were computed.

Keys are kept un-rotated and in fp32: RoPE is a rotation by position, so one kept copy can be
placed anywhere with a single rounding, and rotations never accumulate (in bf16 they break the
shift invariance of attention; Wang et al., arXiv 2411.13476). Values know no positions.

Shapes: L layers, T tokens, K key-value heads, d head size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shoal.core.errors import EngineError
from shoal.core.files import atomic_path
from shoal.engine.pool import KVPool
from shoal.models.decoder import Decoder
from shoal.models.rope import rotate

_CACHED = 1 << 17
"""Numbers that are worked on at once: half a megabyte in fp32."""


@dataclass(frozen=True, slots=True, eq=False)
class KVSegment:
    """What a model's layers made of some tokens.

    keys_LTKd    un-rotated, fp32
    values_LTKd  in the cache's number format
    fingerprint  of the model; a segment is of use to no other
    """

    tokens: tuple[int, ...]
    keys_LTKd: torch.Tensor
    values_LTKd: torch.Tensor
    fingerprint: str

    def __post_init__(self) -> None:
        assert self.keys_LTKd.shape == self.values_LTKd.shape
        assert self.keys_LTKd.shape[1] == len(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.keys_LTKd.nbytes + self.values_LTKd.nbytes

    def slice(self, start: int, stop: int) -> KVSegment:
        """Tokens ``start .. stop``, as views."""
        return KVSegment(
            self.tokens[start:stop],
            self.keys_LTKd[:, start:stop],
            self.values_LTKd[:, start:stop],
            self.fingerprint,
        )

    def concat(self, other: KVSegment) -> KVSegment:
        """This run and then the other; raises ``ValueError`` for two models' segments."""
        if self.fingerprint != other.fingerprint:
            raise ValueError("Segments of different models cannot be joined.")
        return KVSegment(
            self.tokens + other.tokens,
            torch.cat((self.keys_LTKd, other.keys_LTKd), 1),
            torch.cat((self.values_LTKd, other.values_LTKd), 1),
            self.fingerprint,
        )

    def add(self, keys_LTKd: torch.Tensor, values_LTKd: torch.Tensor) -> KVSegment:
        """The same tokens with an offset to keys (un-rotated) and values."""
        keys, values = torch.empty_like(keys_LTKd), torch.empty_like(self.values_LTKd)
        for layers in in_cache(keys):
            torch.add(self.keys_LTKd[layers], keys_LTKd[layers], out=keys[layers])
            values[layers] = self.values_LTKd[layers].float() + values_LTKd[layers]
        return KVSegment(self.tokens, keys, values, self.fingerprint)

    def save(self, path: Path) -> None:
        """Write one safetensors file with a checksum, whole or not at all."""
        tensors = {
            "tokens": torch.tensor(self.tokens, dtype=torch.long),
            "keys": self.keys_LTKd.contiguous(),
            "values": self.values_LTKd.contiguous(),
        }
        metadata = {"fingerprint": self.fingerprint, "checksum": _checksum(tensors)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> KVSegment:
        """Read what :meth:`save` wrote; raises :class:`EngineError` for a damaged file."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in ("tokens", "keys", "values")}
        except (OSError, SafetensorError) as error:
            raise EngineError(f"The stored segment {path} cannot be read: {error}.") from error
        if metadata.get("checksum") != _checksum(tensors):
            raise EngineError(f"The stored segment {path} is damaged: its checksum is wrong.")
        tokens = tuple(tensors["tokens"].tolist())
        return cls(tokens, tensors["keys"], tensors["values"], metadata["fingerprint"])


def cut(
    pool: KVPool,
    decoder: Decoder,
    slots: Sequence[int],
    tokens: Sequence[int],
    position: int,
    fingerprint: str,
) -> KVSegment:
    """A copy of what lies in ``slots``, whose first token stands at ``position``."""
    kv_LT2Kd = pool.slab[:, torch.tensor(slots, dtype=torch.long)]
    keys_LTKd, values_LTKd = kv_LT2Kd.unbind(2)
    cos_T1d, sin_T1d = decoder.rotation(torch.arange(position, position + len(tokens)))
    scale = decoder.config.rope.attention_factor**2  # both turns would multiply by the factor
    unrotated = rotate(keys_LTKd, cos_T1d / scale, -sin_T1d / scale)
    return KVSegment(tuple(tokens), unrotated, values_LTKd.contiguous(), fingerprint)


def place(
    pool: KVPool, decoder: Decoder, segment: KVSegment, slots: Sequence[int], position: int
) -> None:
    """Write a segment into ``slots`` as if its first token stood at ``position``."""
    cos_T1d, sin_T1d = decoder.rotation(torch.arange(position, position + len(segment)))
    where = _neighbours(slots)
    for layers in in_cache(segment.keys_LTKd):
        pool.keys[layers, where] = rotate(segment.keys_LTKd[layers], cos_T1d, sin_T1d).to(
            pool.slab.dtype
        )
        pool.values[layers, where] = segment.values_LTKd[layers].to(pool.slab.dtype)


def in_cache(x_LTKd: torch.Tensor) -> Iterator[slice]:
    """Runs of layers whose tensors stay in a processor's cache while they are worked on."""
    step = max(1, _CACHED * len(x_LTKd) // max(1, x_LTKd.numel()))
    for first in range(0, len(x_LTKd), step):
        yield slice(first, first + step)


def _neighbours(slots: Sequence[int]) -> slice | torch.Tensor:
    """Slots side by side as a slice, which is copied to in one go."""
    if isinstance(slots, range) and slots.step == 1:
        return slice(slots.start, slots.stop)
    return torch.tensor(slots, dtype=torch.long)


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
