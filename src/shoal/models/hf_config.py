"""Reads ``config.json`` of a checkpoint, in the spellings of transformers 4 and 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast, get_args

from shoal.core.errors import ModelError
from shoal.models.decoder import DecoderConfig, Family
from shoal.models.rope import Rope, yarn_attention_factor


def config_from_hf(settings: Mapping[str, Any]) -> DecoderConfig:
    """The architecture a ``config.json`` describes.

    Raises :class:`ModelError` where it is not supported or incomplete.
    """
    kind = settings.get("model_type")
    if kind not in get_args(Family):
        raise ModelError(
            f"Models of type {kind!r} are not known, only {', '.join(get_args(Family))}."
        )
    _refuse_variants(settings)
    try:
        return _config(settings, cast(Family, kind))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"config.json of this {kind} model is incomplete: {error}.") from error


def _config(settings: Mapping[str, Any], family: Family) -> DecoderConfig:
    heads = settings["num_attention_heads"]
    hidden = settings["hidden_size"]
    rope = _rope(settings)
    context = settings["max_position_embeddings"]
    if rope.scaling == "yarn":
        context = max(context, int(rope.factor * rope.original_context))
    if settings.get("sliding_window") and settings.get("use_sliding_window", True):
        context = min(context, settings["sliding_window"])  # up to there it makes no difference
    return DecoderConfig(
        family=family,
        layers=settings["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=settings.get("num_key_value_heads") or heads,
        head_dim=settings.get("head_dim") or hidden // heads,
        intermediate=settings["intermediate_size"],
        vocab=settings["vocab_size"],
        context=context,
        eps=settings["rms_norm_eps"],
        rope=rope,
        qkv_bias=family == "qwen2" or bool(settings.get("attention_bias")),
        qk_norm=family == "qwen3",
        tied_head=bool(settings.get("tie_word_embeddings", False)),
        eos_ids=token_ids(settings.get("eos_token_id")),
    )


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """Ids as they stand in a configuration: none, one, or a list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _refuse_variants(settings: Mapping[str, Any]) -> None:
    for key, fine in (
        ("hidden_act", ("silu", "swish")),
        ("partial_rotary_factor", (1.0,)),
        ("quantization_config", ()),
    ):
        if (value := settings.get(key)) is not None and value not in fine:
            raise ModelError(f"config.json asks for {key} {value!r}, which is not supported.")


def _rope(settings: Mapping[str, Any]) -> Rope:
    scaling: Mapping[str, Any] = (
        settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    )
    theta = float(scaling.get("rope_theta") or settings.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return Rope(theta)
    if kind not in ("linear", "llama3", "yarn"):
        raise ModelError(f"config.json scales RoPE by {kind!r}, which is not supported.")
    factor = float(scaling["factor"])
    if kind == "linear":
        return Rope(theta, "linear", factor)
    original = scaling.get("original_max_position_embeddings")
    original = original or settings["max_position_embeddings"]
    if kind == "llama3":
        return Rope(
            theta,
            "llama3",
            factor,
            original,
            low_freq_factor=float(scaling["low_freq_factor"]),
            high_freq_factor=float(scaling["high_freq_factor"]),
        )
    return Rope(
        theta,
        "yarn",
        factor,
        original,
        beta_slow=float(scaling.get("beta_slow") or 1),
        beta_fast=float(scaling.get("beta_fast") or 32),
        truncate=bool(scaling.get("truncate", True)),
        attention_factor=_attention_factor(scaling, factor),
    )


def _attention_factor(scaling: Mapping[str, Any], factor: float) -> float:
    """yarn's factor, which DeepSeek's spelling gives as a ratio of two ``mscale``."""
    if (given := scaling.get("attention_factor")) is not None:
        return float(given)
    over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if over and under:
        grown = 0.1 * math.log(max(factor, 1.0))
        return (grown * float(over) + 1) / (grown * float(under) + 1)
    return yarn_attention_factor(factor)
