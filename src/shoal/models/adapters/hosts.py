"""Models that adapters can sit in: our decoder, and any ``torch.nn.Module`` with linear layers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import nn

from shoal.core.errors import ModelError
from shoal.models.adapters.sites import Site, decoder_sites, from_hub
from shoal.models.decoder import Decoder

Added = Callable[[str, torch.Tensor], torch.Tensor]
"""What an adapter adds at a site, [T, outputs], for the site's input [T, inputs]."""

_SAMPLES = 64
_CARRYING: WeakSet[nn.Module] = WeakSet()
"""Linear layers that an adapter hangs at."""


class Host(Protocol):
    """A model with sites. Its weights are seen as views [outputs, inputs]."""

    sites: Mapping[str, Site]

    def weight(self, site: str) -> torch.Tensor: ...

    def hang(self, names: Iterable[str], added: Added) -> Callable[[], None]:
        """Add to the products of these sites from now on; what is returned ends that.

        Raises :class:`ModelError` where another adapter hangs there.
        """
        ...

    def changed(self) -> None:
        """Take note of weights that were changed in place."""
        ...


def host_of(model: Decoder | nn.Module) -> Host:
    """The host of a model."""
    return DecoderHost(model) if isinstance(model, Decoder) else ModuleHost(model)


def base_of(host: Host, names: Iterable[str]) -> str:
    """What an adapter was made for: a hash of these sites' sizes and of samples of their weights.

    Samples are rounded to bf16, so a model has one hash in every number format it is loaded in.
    """
    sizes, content = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
    for name in sorted(names):
        site = host.sites[name]
        sizes.update(f"{name} {site.outputs}x{site.inputs}\n".encode())
        weight = host.weight(name).detach()
        rows = torch.linspace(0, weight.shape[0] - 1, _SAMPLES).long()
        columns = torch.linspace(0, weight.shape[-1] - 1, _SAMPLES).long().flip(0)
        sample = weight[rows.to(weight.device), columns.to(weight.device)].float().cpu()
        content.update(sample.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return f"{sizes.hexdigest()}-{content.hexdigest()}"


class DecoderHost:
    """A decoder, whose matrices hold several sites each."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.sites: Mapping[str, Site] = decoder_sites(decoder.config)
        self._rows: dict[str, tuple[int, str, int, int]] = {}  # layer, matrix, first and last row
        parts = {part for site in self.sites.values() for part, _ in site.parts}
        for site in self.sites.values():
            _, layer, kind = site.name.split(".")
            if site.name not in parts:
                self._rows[site.name] = (int(layer), kind, 0, site.outputs)
            first = 0
            for part, outputs in site.parts:
                self._rows[part] = (int(layer), kind, first, first + outputs)
                first += outputs
        self._within: dict[tuple[int, str], list[tuple[str, int, int]]] = {}
        for name, (layer_, matrix, first, last) in self._rows.items():
            self._within.setdefault((layer_, matrix), []).append((name, first, last))

    def within(self, layer: int, matrix: str) -> Sequence[tuple[str, int, int]]:
        """The sites in a matrix, with the first row and that behind the last."""
        return self._within.get((layer, matrix), ())

    def inside(self, names: Container[str], layer: int, matrix: str) -> list[tuple[str, int, int]]:
        """Those sites in a matrix that are among these."""
        return [one for one in self.within(layer, matrix) if one[0] in names]

    def matrices(self, names: Iterable[str]) -> list[tuple[str, ...]]:
        """Sites by the matrix they are in, in the order of :meth:`within`."""
        wanted = set(names)
        found = [self.inside(wanted, *key) for key in self._within]
        return [tuple(name for name, *_ in sites) for sites in found if sites]

    def weight(self, site: str) -> torch.Tensor:
        layer, matrix, first, last = self._rows[site]
        return self._decoder.weights[f"layers.{layer}.{matrix}"][first:last]

    def hang(self, names: Iterable[str], added: Added) -> Callable[[], None]:
        if self._decoder.adapting is not None:
            raise ModelError("The model carries an adapter already: detach that first.")
        self._decoder.adapting = self.adapting(names, added)

        def take_off() -> None:
            self._decoder.adapting = None

        return take_off

    def adapting(
        self, names: Iterable[str], added: Added
    ) -> Callable[[int, str, torch.Tensor, torch.Tensor], torch.Tensor]:
        """What the decoder calls for each product, for a single adapter."""
        own = set(names)

        def adapt(layer: int, matrix: str, x_TK: torch.Tensor, y_TN: torch.Tensor) -> torch.Tensor:
            for name, first, last in self.within(layer, matrix):
                if name in own:
                    y_TN[:, first:last] += added(name, x_TK).to(y_TN.dtype)
            return y_TN

        return adapt

    def changed(self) -> None:
        self._decoder.lay_out()

    def with_deltas(self, deltas: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The decoder's weights with these added; matrices without any stay the same tensors."""
        weights, touched = dict(self._decoder.weights), set[str]()
        for site, delta in deltas:
            layer, matrix, first, last = self._rows[site]
            name = f"layers.{layer}.{matrix}"
            if name not in touched:
                weights[name] = weights[name].detach().clone()
                touched.add(name)
            weights[name][first:last] += delta.to(weights[name].dtype)
        return weights


class ModuleHost:
    """Any module: its ``nn.Linear`` layers, those of the Llama family by our names.

    Layers whose paths end alike are of one kind if their sizes agree; a layer that is fused, or
    shares its weight with another, is a kind like any other.
    """

    def __init__(self, module: nn.Module) -> None:
        found = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
        if not found:
            kinds = sorted({type(part).__name__ for part in module.modules()})
            raise ModelError(f"The model has no nn.Linear layers, only {', '.join(kinds)}.")
        self._modules = {from_hub(name): part for name, part in found.items()}
        leaves: dict[str, set[tuple[int, int]]] = {}
        for name, part in self._modules.items():
            shape = (part.out_features, part.in_features)
            leaves.setdefault(name.rpartition(".")[2], set()).add(shape)

        def kind(name: str, part: nn.Linear) -> str:
            leaf = name.rpartition(".")[2]
            several = len(leaves[leaf]) > 1
            return f"{leaf}[{part.out_features}x{part.in_features}]" if several else leaf

        self.sites: Mapping[str, Site] = {
            name: Site(name, kind(name, part), part.in_features, part.out_features)
            for name, part in self._modules.items()
        }
        self._uses = Counter(
            id(parameter)
            for each in module.modules()
            for parameter in each._parameters.values()
            if parameter is not None
        )

    def weight(self, site: str) -> torch.Tensor:
        return self._modules[site].weight

    def tied(self, site: str) -> bool:
        """Whether another layer has the same weight."""
        return self._uses[id(self._modules[site].weight)] > 1

    def hang(self, names: Iterable[str], added: Added) -> Callable[[], None]:
        names = list(names)
        modules = [self._modules[name] for name in names]
        if any(module in _CARRYING for module in modules):
            raise ModelError("The model carries an adapter already: detach that first.")
        handles = [self._hook(name, added) for name in names]
        _CARRYING.update(modules)

        def take_off() -> None:
            for module, handle in zip(modules, handles, strict=True):
                handle.remove()
                _CARRYING.discard(module)

        return take_off

    def _hook(self, name: str, added: Added) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
            x = inputs[0]
            delta = added(name, x.reshape(-1, x.shape[-1])).view(y.shape)
            return y + delta.to(y.dtype)

        return self._modules[name].register_forward_hook(hook)

    def changed(self) -> None:
        """Modules read their weights anew each time."""
