"""Policies that choose with which settings a frozen model speaks.

"Everyone Contributes!" (arXiv 2508.02076): a small network a agent maps its state to six outputs
in (0, 1), which are mapped affinely to temperature, top-p, top-k, token limit, repetition and
presence penalty. All six reach the engine. The published code applies the sigmoid twice, so its
outputs never leave a part of their range, and drops one of them; here neither happens.

Outputs are rounded to a few levels, so that what a policy tries again is not generated again. A
checkpoint knows its ranges and is refused with others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shoal.core.errors import ConfigError, InputError
from shoal.core.files import atomic_path
from shoal.core.protocols import Sampling
from shoal.core.rng import generator
from shoal.mechanisms.goods.features import State, size
from shoal.training.bandit import BanditOptions, Bandits, Draw

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Ranges:
    """What each output of a policy is mapped to, low to high, in ``levels`` equal steps.

    Raises :class:`ConfigError` for a range that runs backwards or leaves what engines take.
    """

    temperature: Range = (0.3, 1.2)
    top_p: Range = (0.6, 0.95)
    top_k: Range = (20, 80)
    max_tokens: Range = (100, 400)
    repetition_penalty: Range = (1.0, 1.3)
    presence_penalty: Range = (0.0, 0.6)
    levels: int = 5

    def __post_init__(self) -> None:
        for name in OUTPUTS:
            low, high = getattr(self, name)
            if not low <= high:
                raise ConfigError(f"The range of {name} runs from {low} to {high}.")
        if self.levels < 2:
            raise ConfigError(f"Outputs need at least 2 levels, not {self.levels}.")
        for end in (0.0, 1.0):
            try:
                self.sampling([end] * len(OUTPUTS))
            except ValueError as error:
                raise ConfigError(f"These ranges are no settings: {error}") from error
        if self.max_tokens[0] < 1:
            raise ConfigError(f"A token limit of {self.max_tokens[0]:g} lets nobody speak.")

    @property
    def longest(self) -> int:
        """The largest token limit."""
        return round(self.max_tokens[1])

    def sampling(self, outputs: Sequence[float]) -> Sampling:
        """Settings for six outputs in [0, 1]."""
        found = {}
        for name, output in zip(OUTPUTS, outputs, strict=True):
            low, high = getattr(self, name)
            step = round(float(output) * (self.levels - 1)) / (self.levels - 1)
            found[name] = low + step * (high - low)
        return Sampling(
            temperature=round(found["temperature"], 6),
            top_p=round(found["top_p"], 6),
            top_k=round(found["top_k"]),
            max_tokens=round(found["max_tokens"]),
            repetition_penalty=round(found["repetition_penalty"], 6),
            presence_penalty=round(found["presence_penalty"], 6),
        )


OUTPUTS = tuple(each.name for each in fields(Ranges) if each.name != "levels")
"""The names of a policy's outputs, in order."""


@dataclass(slots=True)
class Decider:
    """Decides as the policies do, for one play, and remembers what it decided.

    ``noise`` draws around the middles; without it the middles are taken.
    """

    policies: DecodingPolicies
    noise: str | None = None
    draws: list[Draw] = field(default_factory=list)

    def __call__(self, place: int, states: Sequence[State]) -> list[Sampling]:
        """Settings for the agent at ``place``; see :class:`~...goods.sequence.Decide`."""
        bandits = self.policies.bandits
        state_LBF = torch.from_numpy(np.stack(states)).expand(bandits.learners, -1, -1)
        noise_LBO = None
        if self.noise is not None:
            rng = generator(bandits.seed, "decoding", self.noise, place)
            shape = (bandits.learners, len(states), len(OUTPUTS))
            noise_LBO = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
        draw = bandits.act(state_LBF, noise_LBO=noise_LBO)
        own = Draw(*(part[place] for part in draw))
        self.draws.append(own)
        return [self.policies.ranges.sampling(row) for row in own.outputs.tolist()]


class DecodingPolicies:
    """One policy an agent, over the states of :mod:`shoal.mechanisms.goods.features`."""

    def __init__(
        self,
        agents: Sequence[str],
        ranges: Ranges = Ranges(),
        options: BanditOptions = BanditOptions(),
        *,
        seed: int = 0,
    ) -> None:
        self.agents, self.ranges = tuple(agents), ranges
        features = size(len(self.agents))
        self.bandits = Bandits(len(self.agents), features, len(OUTPUTS), options, seed=seed)

    def decide(self, noise: str | None = None) -> Decider:
        """A fresh decider; ``noise`` names its draws."""
        return Decider(self, noise)

    def save(self, path: Path) -> None:
        """Write weights, the optimiser's state and what they are for, whole or not at all."""
        about = {
            "agents": self.agents,
            "ranges": asdict(self.ranges),
            "options": asdict(self.bandits.options),
            "seed": self.bandits.seed,
            "updates": self.bandits.updates,
        }
        tensors = {name: one.contiguous() for name, one in self.bandits.state().items()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"shoal": json.dumps(about)})

    @classmethod
    def load(cls, path: Path, *, ranges: Ranges | None = None) -> DecodingPolicies:
        """Read policies; raises :class:`InputError` for a file that is none, or of other ranges."""
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["shoal"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            levels = int(about["ranges"].pop("levels"))
            pairs = {
                name: (float(low), float(high)) for name, (low, high) in about["ranges"].items()
            }
            kept = Ranges(**pairs, levels=levels)
            options = {**about["options"], "hidden": tuple(about["options"]["hidden"])}
            found = cls(about["agents"], kept, BanditOptions(**options), seed=about["seed"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(f"{path} holds no decoding policies: {error}.") from error
        if ranges is not None and ranges != kept:
            differ = [name for name in OUTPUTS if getattr(ranges, name) != getattr(kept, name)]
            name = differ[0] if differ else "levels"
            raise InputError(
                f"{path} was trained with {name} in {getattr(kept, name)}, not in "
                f"{getattr(ranges, name)}: policies keep the ranges they learnt with."
            )
        found.bandits.restore(tensors, about["updates"])
        return found
