"""Adapters as files: one safetensors file with what is stored and what it must agree with.

The header's metadata holds kind, options, base and checks as JSON under ``shoal.adapter``, so that
a file is whole or not there at all, and nothing assembled is written: a MoS adapter takes the bytes
of its pools.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from shoal.core.errors import ModelError
from shoal.core.files import atomic_path
from shoal.models.adapters.adapter import Adapter, parse_options
from shoal.models.adapters.hosts import host_of
from shoal.models.adapters.registry import find_kind
from shoal.models.adapters.sites import chosen
from shoal.models.decoder import Decoder

KEY = "shoal.adapter"


class Card(BaseModel):
    """What a file says about its adapter; ``sites`` are those that the tensors are for."""

    model_config = ConfigDict(frozen=True)

    kind: str
    options: dict[str, object]
    base: str = ""
    checks: dict[str, str] = {}
    sites: tuple[str, ...]


def card_of(adapter: Adapter) -> Card:
    """The card of an adapter."""
    return Card(
        kind=adapter.kind,
        options=adapter.options.model_dump(mode="json"),
        base=adapter.base,
        checks=adapter.checks(),
        sites=tuple(adapter.sites),
    )


def save(adapter: Adapter, path: Path) -> None:
    """Write an adapter; what was there before stays where that fails.

    Raises :class:`ModelError` where it cannot be written.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter.state().items()}
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={KEY: card_of(adapter).model_dump_json()})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"Cannot write the adapter {path}: {error}.") from error


def load(path: Path, model: Decoder | nn.Module, *, any_base: bool = False) -> Adapter:
    """An adapter from its file, not attached yet.

    Raises :class:`ModelError` for a file that cannot be read, that is of another base (unless
    ``any_base``), or whose checks do not come out as they were when it was written.
    """
    card, tensors = read(path)
    kind = find_kind(card.kind)
    options = parse_options(kind.options_type, card.options)
    host = host_of(model)
    sites = {name: site for name, site in host.sites.items() if name in set(card.sites)}
    if missing := [name for name in card.sites if name not in sites]:
        raise ModelError(
            f"{path} is an adapter of another base: it sits at {missing[0]}, which the model does "
            "not have."
        )
    adapter = kind(chosen(sites, options.targets), options, card.base)
    if adapter.checks() != card.checks:
        raise ModelError(
            f"{path} was written with index tables that its seed {options.seed} does not give: the "
            "file was changed, or is of another version."
        )
    adapter.load_state(tensors)
    adapter.fits(model, any_base=any_base)
    return adapter.to(host.weight(card.sites[0]).device)


def read(path: Path) -> tuple[Card, dict[str, torch.Tensor]]:
    """Card and tensors of a file; raises :class:`ModelError` where it holds no adapter of ours."""
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(KEY)
            if text is None:
                raise ModelError(f"{path} does not say what adapter it is: give a PEFT folder.")
            card = Card.model_validate_json(text)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValidationError) as error:
        raise ModelError(f"{path} is no adapter that can be read: {error}.") from error
    return card, tensors
