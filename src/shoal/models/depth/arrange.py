"""From a plan to something that runs: a decoder and a model over the base's own tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from shoal.core.errors import ConfigError
from shoal.models.decoder import Decoder
from shoal.models.depth.plan import DepthPlan
from shoal.models.loading import Model

NORMS = ("attn_norm", "mlp_norm", "q_norm", "k_norm")


def arrange(
    decoder: Decoder, plan: DepthPlan, norms: Mapping[str, torch.Tensor] | None = None
) -> Decoder:
    """A decoder that executes a plan over this one's matrices, none of them copied.

    Every step has the norms of the place it stands in, or those in ``norms``, which are named as
    weights of the new decoder are (``layers.{step}.attn_norm``). Raises :class:`ConfigError` for a
    plan of another number of blocks, and for a group of blocks that differ in shape.
    """
    check_base(decoder, plan)
    given = norms or {}
    own = []
    for place, step in enumerate(plan.steps):
        check_compatible(decoder, step.block, step.origin)
        parts = {part: decoder.weights.get(f"layers.{step.origin}.{part}") for part in NORMS}
        kept = {part: tensor for part, tensor in parts.items() if tensor is not None}
        own.append({part: given.get(f"layers.{place}.{part}", t) for part, t in kept.items()})
    return decoder.arranged([step.block for step in plan.steps], own)


def planned(model: Model, plan: DepthPlan) -> Model:
    """The model that executes a plan, over the same weights; its caches are the plan's own."""
    decoder = arrange(model.decoder, plan)
    return replace(
        model,
        name=f"{model.name} ({len(plan.steps)} of {plan.layers} blocks)",
        config=decoder.config,
        decoder=decoder,
        fingerprint=f"{model.fingerprint}-{plan.key}",
        base=model,
    )


def check_base(decoder: Decoder, plan: DepthPlan) -> None:
    """Refuse a base of another number of blocks, and one that looks through an adapter."""
    if decoder.adapting is not None:
        raise ConfigError(
            "The model carries an adapter, which belongs to its own order of blocks: make the plan "
            "over the model without it."
        )
    if decoder.config.layers != plan.layers:
        raise ConfigError(
            f"The plan is for a base of {plan.layers} blocks, this model has "
            f"{decoder.config.layers}."
        )


def compatible(decoder: Decoder, one: int, other: int) -> bool:
    """Whether two blocks have the same parts in the same shapes, so that they can be folded."""
    return _shape(decoder, one) == _shape(decoder, other)


def check_compatible(decoder: Decoder, one: int, other: int) -> None:
    """Refuse to fold blocks of different kinds; raises :class:`ConfigError` naming both."""
    if not compatible(decoder, one, other):
        raise ConfigError(
            f"Blocks {one} and {other} cannot share weights: they differ in shape or parts."
        )


def _shape(decoder: Decoder, block: int) -> dict[str, tuple[int, ...]]:
    start = f"layers.{block}."
    return {
        name.removeprefix(start): tuple(tensor.shape)
        for name, tensor in decoder.weights.items()
        if name.startswith(start)
    }
