"""The protocol that every kind of adapter shares.

An adapter is a set of low-rank updates ΔW = scale · B A, one at each of its *sites* (linear maps
of one model), made of tensors that learn while the model's own weights stay. What a kind decides is
how these tensors become A and B; all else is the same for all kinds:

    adapter = new("lora", decoder, rank=8)   # or "mos": e, r, p, l; see registry.new
    adapter.attach(decoder)                  # in place; adds to every product, until
    adapter.detach()                         # the model is as it was
    adapter.trainable()                      # {name: tensor} for an optimiser; refused when merged
    adapter.materialise("layers.3.q")        # Factors(A [r, in], B [out, r], scale), differentiable
    adapter.delta("layers.3.q")              # ΔW [out, in]
    adapter.merge(); adapter.unmerge()       # into the model's weights, and back bit for bit
    adapter.state(); adapter.load_state(s)   # what is stored: for MoS pools, nothing assembled
    adapter.nbytes, adapter.assembled_bytes  # of what is stored; of all A and B once assembled
    with adapter.dropping(seed): ...         # dropout of inputs, drawn from this seed alone
    save(adapter, file); load(file, decoder) # whole or not at all; another base is refused (files)
    export_peft(adapter, folder); export_gguf(adapter, file, config); load_peft(folder, decoder)

A model is a :class:`~shoal.models.decoder.Decoder` or any ``nn.Module`` with linear layers; a
decoder that only looks through an adapter, leaving the original bare, is ``adapter.over(decoder)``.
A new kind is one class with ``kind``, ``options_type``, ``_make`` and ``materialise``, registered
in :mod:`shoal.models.adapters.registry`.

Shapes: T rows, r rank, I inputs and O outputs of a site.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from shoal.core.errors import ConfigError, ModelError
from shoal.models.adapters.hosts import DecoderHost, Host, ModuleHost, base_of, host_of
from shoal.models.adapters.sites import SEVEN, Site, chosen
from shoal.models.decoder import Decoder


class Factors(NamedTuple):
    """One site's update: ΔW = scale · B A."""

    A_RI: torch.Tensor
    B_OR: torch.Tensor
    scale: float


class Options(BaseModel):
    """What all kinds have in common; a kind's own options extend it.

    ``alpha`` over the rank is the scale; ``targets`` are kinds of sites, also as the hub spells
    them (``q_proj``); ``seed`` is what everything random is drawn from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(default=16.0, gt=0, allow_inf_nan=False)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = SEVEN
    seed: int = 0


class Adapter(ABC):
    """See the module's text.

    sites    where it sits, by name
    base     what it was made for; see :func:`shoal.models.adapters.hosts.base_of`
    """

    kind: ClassVar[str]
    options_type: ClassVar[type[Options]]

    def __init__(self, sites: Sequence[Site], options: Options, base: str) -> None:
        self.options = options
        self.sites = {site.name: site for site in sites}
        self.base = base
        self.tensors: dict[str, nn.Parameter] = {
            name: nn.Parameter(tensor) for name, tensor in self._make().items()
        }
        self._host: Host | None = None
        self._take_off: Callable[[], None] | None = None
        self._before: dict[str, torch.Tensor] = {}
        self._random: torch.Generator | None = None

    @classmethod
    def on(cls, model: Decoder | nn.Module, options: Options) -> Adapter:
        """A new adapter for a model, not attached yet."""
        host = host_of(model)
        sites = chosen(host.sites, options.targets)
        adapter = cls(sites, options, base_of(host, [site.name for site in sites]))
        return adapter.to(host.weight(sites[0].name).device)

    # -- what a kind decides --------------------------------------------------------------

    @abstractmethod
    def _make(self) -> dict[str, torch.Tensor]:
        """Its tensors at the start, fp32, by name."""

    @abstractmethod
    def materialise(self, site: str) -> Factors:
        """A, B and scale of a site, as functions of the tensors that learn."""

    @abstractmethod
    def rank(self, site: str) -> int:
        """The rank at a site."""

    def checks(self) -> dict[str, str]:
        """What a stored adapter must agree with beside options and sizes."""
        return {}

    # -- what all kinds do alike ----------------------------------------------------------

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Adapter:
        """Move it to a device, or keep it in another number format, as for serving."""
        for tensor in self.tensors.values():
            tensor.data = tensor.data.to(device=device, dtype=dtype)
        return self

    @functools.cached_property
    def signature(self) -> tuple[tuple[str, int], ...]:
        """What adapters agree in that are computed together: sites and ranks."""
        return tuple((name, self.rank(name)) for name in self.sites)

    @property
    def stamp(self) -> int:
        """Changes whenever its tensors are changed in place, as an optimiser does."""
        return sum(tensor._version for tensor in self.tensors.values())

    def added(self, site: str, x_TI: torch.Tensor) -> torch.Tensor:
        """scale · x Aᵀ Bᵀ, [T, O]."""
        A_RI, B_OR, scale = self.materialise(site)
        x_TI = x_TI.to(A_RI.dtype)
        if self._random is not None:
            keep = 1 - self.options.dropout
            drawn = torch.rand(x_TI.shape, generator=self._random, device=self._random.device)
            x_TI = x_TI * (drawn < keep).to(x_TI.device) / keep
        return (x_TI @ A_RI.T) @ (B_OR.T * scale)

    def delta(self, site: str) -> torch.Tensor:
        """ΔW [O, I]."""
        A_RI, B_OR, scale = self.materialise(site)
        return (B_OR * scale) @ A_RI

    def fits(self, model: Decoder | nn.Module, *, any_base: bool = False) -> Host:
        """The model as a host.

        Raises :class:`ModelError` where it lacks a site or has one of another size, and, unless
        ``any_base`` allows it, where its weights are not those the adapter was made for.
        """
        host = host_of(model)
        for site in self.sites.values():
            found = host.sites.get(site.name)
            if found is None:
                known = sorted({each.kind for each in host.sites.values()})
                raise ModelError(
                    f"The adapter sits at {site.name}, which the model does not have; its linear "
                    f"maps are {', '.join(known)}, its layers {_layers(host)}."
                )
            if (found.outputs, found.inputs) != (site.outputs, site.inputs):
                raise ModelError(
                    f"The adapter was made for a {site.name} of {site.outputs} x {site.inputs}, "
                    f"but the model's is {found.outputs} x {found.inputs}: it is another base."
                )
        if not any_base and self.base and base_of(host, self.sites) != self.base:
            raise ModelError(
                "The adapter was made for a model of this size with other weights "
                f"({self.base}, not {base_of(host, self.sites)}): load the base it belongs to."
            )
        return host

    def attach(self, model: Decoder | nn.Module, *, any_base: bool = False) -> None:
        """Add to the model's products from now on; raises :class:`ModelError` as :meth:`fits`."""
        if self._host is not None:
            raise ModelError("The adapter is attached already: detach it first.")
        host = self.fits(model, any_base=any_base)
        self._take_off = host.hang(self.sites, self.added)
        self._host = host

    def over(self, decoder: Decoder) -> Decoder:
        """A decoder over the same weights that looks through this adapter."""
        host = self.fits(decoder)
        assert isinstance(host, DecoderHost)
        return decoder.adapted(host.adapting(self.sites, self.added))

    @torch.no_grad()
    def merged_weights(self, decoder: Decoder) -> dict[str, torch.Tensor]:
        """A decoder's weights with the updates in them, for export; the decoder stays bare."""
        host = self.fits(decoder)
        assert isinstance(host, DecoderHost)
        return host.with_deltas((name, self.delta(name)) for name in self.sites)

    def detach(self) -> None:
        """Leave the model as it was."""
        if self.merged:
            self.unmerge()
        if self._take_off is not None:
            self._take_off()
        self._host = self._take_off = None

    @property
    def merged(self) -> bool:
        """Whether its updates are in the model's weights."""
        return bool(self._before)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to the weights of the model it is attached to; the old ones are kept.

        Raises :class:`ModelError` where it is not attached, or the weights cannot be added to.
        """
        if self._host is None:
            raise ModelError("The adapter is not attached: there is nothing to merge it into.")
        if self.merged:
            raise ModelError("The adapter is merged already.")
        host = self._host
        for name in self.sites:
            if not host.weight(name).is_floating_point():
                raise ModelError(f"The weights of {name} are quantised: load them in bf16 or fp32.")
            if isinstance(host, ModuleHost) and host.tied(name):
                raise ModelError(
                    f"The weight of {name} is shared with another layer, which merging would "
                    "change too: leave it attached."
                )
        assert self._take_off is not None
        self._take_off()
        self._take_off = None
        for name in self.sites:
            weight = host.weight(name)
            self._before[name] = weight.detach().clone()
            weight.copy_((weight.float() + self.delta(name).float()).to(weight.dtype))
        host.changed()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the model its own weights back, bit for bit; the adapter stays attached."""
        if not self.merged or self._host is None:
            raise ModelError("The adapter is not merged.")
        for name, before in self._before.items():
            self._host.weight(name).copy_(before)
        self._before = {}
        self._host.changed()
        self._take_off = self._host.hang(self.sites, self.added)

    def trainable(self) -> dict[str, torch.Tensor]:
        """What an optimiser moves, by name; raises :class:`ModelError` while it is merged."""
        if self.merged:
            raise ModelError(
                "The adapter is merged into the model, where training would not reach it: "
                "unmerge it first."
            )
        return dict(self.tensors)

    def state(self) -> dict[str, torch.Tensor]:
        """What is stored."""
        return {name: tensor.detach() for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take stored tensors; raises :class:`ModelError` where they are of other sizes."""
        mine = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if mine != theirs:
            name = min(name for name, _ in mine.items() ^ theirs.items())
            raise ModelError(
                f"The stored adapter has {name} of {theirs.get(name)}, but its options make "
                f"{mine.get(name)}: the file is damaged or was changed."
            )
        for name, tensor in self.tensors.items():
            tensor.copy_(state[name])

    def copy(self) -> Adapter:
        """The same adapter with tensors of its own, which do not learn."""
        other = type(self)(tuple(self.sites.values()), self.options, self.base)
        for name, tensor in self.tensors.items():
            other.tensors[name] = nn.Parameter(tensor.detach().clone(), requires_grad=False)
        return other

    @contextmanager
    def dropping(self, seed: int) -> Iterator[None]:
        """Drop inputs with the options' probability inside the block, drawn from ``seed``."""
        if self.options.dropout:
            self._random = torch.Generator().manual_seed(seed)
        try:
            yield
        finally:
            self._random = None

    @property
    def parameters(self) -> int:
        """Numbers that learn."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def assembled_bytes(self) -> int:
        """Bytes of all A and B at the stored precision."""
        size = next(iter(self.tensors.values())).element_size()
        return size * sum(
            self.rank(site.name) * (site.inputs + site.outputs) for site in self.sites.values()
        )


def parse_options(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """Options from a table; raises :class:`ConfigError` with the first thing that is wrong."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "the options"
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            said = f"there is no such option; there are {', '.join(kind.model_fields)}"
        raise ConfigError(f"The adapter's {name} cannot be used: {said}.") from error


def _layers(host: Host) -> str:
    layers = {name.split(".")[1] for name in host.sites if name.startswith("layers.")}
    return f"0 to {max(map(int, layers))}" if layers else "not numbered"
