"""Where adapters sit: the linear maps of a model, by name, kind and size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shoal.core.errors import ConfigError, ModelError, nearest
from shoal.models.decoder import DecoderConfig

SEVEN = ("q", "k", "v", "out", "gate", "up", "down")
"""The linear maps of a layer of the Llama family, as :mod:`shoal.models.weights` names them."""

_LEAVES = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "out",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "qkv_proj": "qkv",
    "gate_up_proj": "gate_up",
}
_PATHS = {ours: f"{'mlp' if 'gate' in ours or ours in ('up', 'down') else 'self_attn'}.{leaf}"
          for leaf, ours in _LEAVES.items()}  # fmt: skip
_HUB = re.compile(r"(?:model\.)?layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)")


@dataclass(frozen=True, slots=True)
class Site:
    """One linear map y = x Wᵀ with W [outputs, inputs].

    name   unique in its model, such as ``layers.3.q``
    kind   its role, which sites of one size share: ``q``
    parts  of a fused map: what is stacked in it, names and outputs
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    parts: tuple[tuple[str, int], ...] = ()


def decoder_sites(config: DecoderConfig) -> dict[str, Site]:
    """All sites of a decoder: the seven of each layer, and qkv and gate_up as fused ones."""
    D, inner = config.hidden, config.intermediate
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    sizes = {
        "q": (D, q), "k": (D, kv), "v": (D, kv), "out": (q, D),
        "gate": (D, inner), "up": (D, inner), "down": (inner, D),
    }  # fmt: skip
    fused = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
    sites = []
    for index in range(config.layers):
        for kind, (inputs, outputs) in sizes.items():
            sites.append(Site(f"layers.{index}.{kind}", kind, inputs, outputs))
        for kind, parts in fused.items():
            stacked = tuple((f"layers.{index}.{part}", sizes[part][1]) for part in parts)
            total = sum(outputs for _, outputs in stacked)
            sites.append(Site(f"layers.{index}.{kind}", kind, D, total, stacked))
    return {site.name: site for site in sites}


def kind_of(target: str) -> str:
    """Our name of a target, which may be spelled as the hub does (``q_proj``)."""
    return _LEAVES.get(target, target)


def from_hub(path: str) -> str:
    """A site's name for the hub's path of a module; other paths stay as they are."""
    found = _HUB.fullmatch(path)
    if found is None or found[2] not in _LEAVES:
        return path
    return f"layers.{found[1]}.{_LEAVES[found[2]]}"


def to_hub(name: str) -> str:
    """The hub's path of a site's module."""
    head, _, kind = name.rpartition(".")
    return f"model.{head}.{_PATHS[kind]}" if kind in _PATHS and head.startswith("layers.") else name


def chosen(sites: Mapping[str, Site], targets: Sequence[str]) -> list[Site]:
    """The sites of these kinds, in the model's order.

    Raises :class:`ModelError`, listing what was found, for a kind that the model does not have, and
    :class:`ConfigError` where a fused map and a part of it are both named.
    """
    kinds = {site.kind for site in sites.values()}
    wanted = [kind_of(target) for target in targets]
    for kind in wanted:
        if kind not in kinds:
            raise ModelError(
                f"The model has no linear map {kind!r}; it has {', '.join(sorted(kinds))}."
                f"{nearest(kind, kinds)}"
            )
    found = [site for site in sites.values() if site.kind in wanted]
    inside = {part for site in found for part, _ in site.parts}
    if both := next((site for site in found if site.name in inside), None):
        raise ConfigError(f"The targets name {both.kind!r} and a fused map it is part of.")
    return found


def by_kind(sites: Iterable[Site]) -> dict[str, list[Site]]:
    """Sites of each kind, in order."""
    kinds: dict[str, list[Site]] = {}
    for site in sites:
        kinds.setdefault(site.kind, []).append(site)
    return kinds
