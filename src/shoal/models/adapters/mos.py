"""Mixture of Shards: every layer's low-rank factors are put together from one pool of pieces.

MoS: Unleashing Parameter Efficiency of Low-Rank Adaptation with Mixture of Shards (arXiv
2410.00938). All sites of one kind share a pool of shards; which of them make up the rows of a
layer's A and B is drawn once, from the seed, and frozen. That is an index table, nothing is routed
by inputs. Four options tell layers apart: a layer takes some of the pool (subset selection, r > e),
A and B by tables of their own (pair dissociation), in pieces of vectors (vector sharding, l > 1),
and has some shards to itself (shard privatisation, p > 0). p = e = r is LoRA.

    pools    A [e·L·l, I/l], B [e·L·l, O/l]: as many numbers as LoRA of rank e has
    public   rows [0, (e-p)·L·l); layer k owns p·l rows after these
    table    of layer k, for A and for B: (r-p)·l public rows, none twice, then its own rows
    factors  row j of A_k and of B_kᵀ: shards table[j·l] … table[j·l + l-1] side by side
    update   ΔW_k = (α/r) B_k A_k: the divisor is the rank in use, not e

Pool A begins uniform in ±1/√I, with the I of the whole vector and not of its shard; pool B begins
at zero. Gradients of a shard are the sum over all layers that use it. Departures: pools are stored
and factors are not; adapters can be disabled, merged, and mixed in a batch; any model with linear
layers will do, with a pool for each size.

Shapes: L layers of a kind, e budget, r rank in use, p private rank, l shards of a vector, I inputs,
O outputs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from shoal.core.errors import ConfigError
from shoal.core.rng import seed_of
from shoal.models.adapters.adapter import Adapter, Factors, Options
from shoal.models.adapters.sites import Site, by_kind

Half = Literal["A", "B"]


class MoSOptions(Options):
    """``e`` is the budget, as a rank of LoRA with as many parameters; ``r`` the rank in use, ``p``
    of it private, vectors in ``l`` shards. ``dissociated`` off gives B the table of A.
    """

    e: int = Field(default=2, ge=1)
    r: int = Field(default=8, ge=1)
    p: int = Field(default=1, ge=0)
    l: int = Field(default=4, ge=1)  # noqa: E741 - the paper's name
    dissociated: bool = True


class MoS(Adapter):
    """Tensors ``KIND.A`` and ``KIND.B``, the pools."""

    kind = "mos"
    options_type = MoSOptions
    options: MoSOptions

    def _make(self) -> dict[str, torch.Tensor]:
        options, tensors = self.options, {}
        self._tables: dict[tuple[str, Half], torch.Tensor] = {}
        for kind, sites in by_kind(self.sites.values()).items():
            _check(options, kind, sites)
            rows = options.e * len(sites) * options.l
            inputs, outputs = sites[0].inputs, sites[0].outputs
            random = torch.Generator().manual_seed(seed_of("mos", options.seed, kind))
            A = torch.empty(rows, inputs // options.l).uniform_(-1, 1, generator=random)
            tensors[f"{kind}.A"] = A / math.sqrt(inputs)
            tensors[f"{kind}.B"] = torch.zeros(rows, outputs // options.l)
            for place, site in enumerate(sites):
                a = index_table(options, kind, place, len(sites), "A")
                b = index_table(options, kind, place, len(sites), "B")
                self._tables[site.name, "A"] = torch.from_numpy(a)
                self._tables[site.name, "B"] = torch.from_numpy(b if options.dissociated else a)
        return tensors

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Adapter:
        """Move pools and tables to a device, or the pools to another number format."""
        self._tables = {key: table.to(device) for key, table in self._tables.items()}
        return super().to(device, dtype)

    def rank(self, site: str) -> int:
        """The rank in use, the same everywhere."""
        return self.options.r

    def table(self, site: str, half: Half) -> torch.Tensor:
        """Rows of the pool that make up a site's factor, [r·l] int64."""
        return self._tables[site, half]

    def materialise(self, site: str) -> Factors:
        """The site's factors, gathered from the pools; their gradients flow back into these."""
        kind, r = self.sites[site].kind, self.options.r
        A_RI = self.tensors[f"{kind}.A"].index_select(0, self._tables[site, "A"]).view(r, -1)
        B_RO = self.tensors[f"{kind}.B"].index_select(0, self._tables[site, "B"]).view(r, -1)
        return Factors(A_RI, B_RO.T, self.options.alpha / r)

    def checks(self) -> dict[str, str]:
        """A checksum of all index tables, which are made from the seed and not stored."""
        content = hashlib.blake2b(digest_size=16)
        for (site, half), table in sorted(self._tables.items(), key=lambda item: item[0]):
            content.update(f"{site} {half}\n".encode())
            content.update(table.cpu().numpy().astype("<i8").tobytes())
        return {"tables": content.hexdigest()}


def index_table(
    options: MoSOptions, kind: str, place: int, layers: int, half: Half
) -> NDArray[np.int64]:
    """Pool rows of one layer's factor: public ones, drawn without repeats, then its own.

    A permutation is the order of raw 64-bit draws of Philox, which is the same on every machine.
    """
    public = (options.e - options.p) * layers * options.l
    own = options.p * options.l
    key = [seed_of("mos", options.seed, kind, place, half), seed_of("mos", half, place, kind)]
    draws = np.random.Philox(key=np.array(key, np.uint64)).random_raw(public)
    drawn = np.argsort(draws, kind="stable")[: (options.r - options.p) * options.l]
    private = public + place * own + np.arange(own)
    return np.concatenate([drawn, private]).astype(np.int64)


def _check(options: MoSOptions, kind: str, sites: Sequence[Site]) -> None:
    """Raises :class:`ConfigError` with the inequality that does not hold."""
    e, r, p, l, L = options.e, options.r, options.p, options.l, len(sites)  # noqa: E741
    inputs, outputs = sites[0].inputs, sites[0].outputs
    if inputs % l or outputs % l:
        fit = [str(n) for n in range(1, 65) if math.gcd(inputs, outputs) % n == 0]
        raise ConfigError(
            f"The {inputs} inputs and {outputs} outputs of {kind!r} cannot be cut into l = {l} "
            f"shards: take l of {', '.join(fit)}."
        )
    if p > e:
        raise ConfigError(f"A private rank p = {p} is more than the budget e = {e}: p <= e.")
    if r < p:
        raise ConfigError(f"The rank in use r = {r} is less than the private p = {p}: r >= p.")
    if p == e and r != e:
        raise ConfigError(
            f"With p = e = {e} nothing is public, so the rank in use must be {e}, too, not {r}."
        )
    if r - p > (e - p) * L:
        raise ConfigError(
            f"The rank in use r = {r} needs r - p = {r - p} public vectors, but {kind!r} has "
            f"(e - p) L = ({e} - {p}) {L} = {(e - p) * L}: r - p <= (e - p) L."
        )
