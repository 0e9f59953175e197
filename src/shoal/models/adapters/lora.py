"""LoRA: every site has factors of its own.

LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685): ΔW = (α/r) B A with A drawn
uniformly from ±1/√inputs and B zero, so that training begins at the base model. ``rooted`` divides
by √r instead (rank-stabilised, arXiv 2312.03732). Adapters that others made may have other ranks
and other α at some sites.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field

from shoal.core.rng import seed_of
from shoal.models.adapters.adapter import Adapter, Factors, Options


class LoRAOptions(Options):
    """``ranks`` and ``alphas`` are those of single sites, by name, where they differ."""

    rank: int = Field(default=8, ge=1)
    rooted: bool = False
    ranks: dict[str, int] = Field(default={})
    alphas: dict[str, float] = Field(default={})


class LoRA(Adapter):
    """Tensors ``SITE.A`` [r, I] and ``SITE.B`` [O, r]."""

    kind = "lora"
    options_type = LoRAOptions
    options: LoRAOptions

    def _make(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for site in self.sites.values():
            random = torch.Generator().manual_seed(seed_of("lora", self.options.seed, site.name))
            rank = self.rank(site.name)
            A_RI = torch.empty(rank, site.inputs).uniform_(-1, 1, generator=random)
            tensors[f"{site.name}.A"] = A_RI / math.sqrt(site.inputs)
            tensors[f"{site.name}.B"] = torch.zeros(site.outputs, rank)
        return tensors

    def rank(self, site: str) -> int:
        """The rank at a site."""
        return self.options.ranks.get(site, self.options.rank)

    def materialise(self, site: str) -> Factors:
        """The site's own factors."""
        rank, alpha = self.rank(site), self.options.alphas.get(site, self.options.alpha)
        scale = alpha / (math.sqrt(rank) if self.options.rooted else rank)
        return Factors(self.tensors[f"{site}.A"], self.tensors[f"{site}.B"], scale)
