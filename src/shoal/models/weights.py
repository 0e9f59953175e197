"""The decoder's weights: their names and shapes, and how checkpoints' tensors are fused into them.

Checkpoints keep query, key and value projections apart, and gate and up; we stack them by rows,
so that a layer is four matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch

from shoal.core.errors import ModelError
from shoal.models.decoder import DecoderConfig


@dataclass(frozen=True, slots=True)
class Naming:
    """A checkpoint's own names: of its layers' tensors by part, and of the rest.

    ``layer`` is a pattern such as ``blk.{index}.{part}``.
    """

    layer: str
    parts: Mapping[str, str]
    others: Mapping[str, str]

    def of(self, part: str) -> str:
        """The checkpoint's name of a part such as ``layers.3.q`` or ``embed``."""
        if part.startswith("layers."):
            _, index, name = part.split(".")
            return self.layer.format(index=index, part=self.parts[name])
        return self.others[part]


@dataclass(frozen=True, slots=True)
class Fused:
    """One of the decoder's tensors: its shape and the parts stacked into it, by rows."""

    shape: tuple[int, ...]
    parts: tuple[str, ...]


def layout(config: DecoderConfig) -> dict[str, Fused]:
    """All tensors a decoder of this architecture has."""
    D, inner = config.hidden, config.intermediate
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer: dict[str, Fused] = {
        "attn_norm": Fused((D,), ("attn_norm",)),
        "qkv": Fused((q + 2 * kv, D), ("q", "k", "v")),
        "out": Fused((D, q), ("out",)),
        "mlp_norm": Fused((D,), ("mlp_norm",)),
        "gate_up": Fused((2 * inner, D), ("gate", "up")),
        "down": Fused((D, inner), ("down",)),
    }
    if config.qkv_bias:
        layer["qkv_bias"] = Fused((q + 2 * kv,), ("q_bias", "k_bias", "v_bias"))
    if config.qk_norm:
        layer["q_norm"] = Fused((config.head_dim,), ("q_norm",))
        layer["k_norm"] = Fused((config.head_dim,), ("k_norm",))
    whole = {
        "embed": Fused((config.vocab, D), ("embed",)),
        "final_norm": Fused((D,), ("final_norm",)),
    }
    if not config.tied_head:
        whole["head"] = Fused((config.vocab, D), ("head",))
    for index in range(config.layers):
        for name, fused in layer.items():
            parts = tuple(f"layers.{index}.{part}" for part in fused.parts)
            whole[f"layers.{index}.{name}"] = Fused(fused.shape, parts)
    return whole


def fuse(
    config: DecoderConfig,
    naming: Naming,
    present: Collection[str],
    read: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The decoder's tensors one after the other, made from a checkpoint's; norms are fp32.

    ``present`` are the checkpoint's names, ``read`` gives one tensor. Raises
    :class:`ModelError` where a tensor is missing, left over or of another shape: a model that
    is only nearly of this architecture would answer nonsense.
    """
    if config.layers > len(present):
        raise ModelError(
            f"The checkpoint has {len(present)} tensors, too few for {config.layers} layers."
        )
    whole = layout(config)
    wanted = {naming.of(part) for fused in whole.values() for part in fused.parts}
    for problem, names in (
        ("lacks the tensor", wanted - set(present)),
        ("has an unknown tensor", set(present) - wanted),
    ):
        if names:
            raise ModelError(
                f"The checkpoint {problem} {min(names)!r} for a {config.family} model: "
                "it is incomplete or of another architecture."
            )
    for name, fused in whole.items():
        kept = torch.float32 if name.endswith("norm") else dtype
        try:
            parts = [read(naming.of(part)).to(kept) for part in fused.parts]
            tensor = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
        except RuntimeError as error:
            raise _misfit(naming.of(fused.parts[0]), name, str(error)) from error
        if tensor.shape != fused.shape:
            found, wanted_shape = list(tensor.shape), list(fused.shape)
            raise _misfit(
                naming.of(fused.parts[0]), name, f"the shape is {found}, not {wanted_shape}"
            )
        yield name, tensor


def _misfit(source: str, name: str, why: str) -> ModelError:
    return ModelError(
        f"The checkpoint's {source!r} cannot become {name} of this configuration: {why}."
    )
