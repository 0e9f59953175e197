"""Kinds of adapters by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from shoal.core.errors import ConfigError, nearest
from shoal.models.adapters.adapter import Adapter, parse_options
from shoal.models.adapters.lora import LoRA
from shoal.models.adapters.mos import MoS
from shoal.models.decoder import Decoder

KINDS: dict[str, type[Adapter]] = {LoRA.kind: LoRA, MoS.kind: MoS}


def find_kind(name: str) -> type[Adapter]:
    """The class of a kind; raises :class:`ConfigError`, naming the nearest."""
    if name not in KINDS:
        raise ConfigError(
            f"There is no kind of adapter {name!r}: choose from {', '.join(KINDS)}."
            f"{nearest(name, KINDS)}"
        )
    return KINDS[name]


def new(kind: str, model: Decoder | nn.Module, **options: Any) -> Adapter:
    """A new adapter for a model, not attached yet.

    Raises :class:`ConfigError` for options that cannot be used, :class:`ModelError` for targets
    that the model does not have.
    """
    found = find_kind(kind)
    return found.on(model, parse_options(found.options_type, options))
