"""Which blocks a model executes, in what order and with whose weights: a depth plan.

A plan is a list of steps over the blocks of an untouched base. A block that no step names is
removed; one that several neighbouring steps name is shared by them (folded). Nothing is copied, so
any number of plans may run over one base at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from shoal.core.errors import ConfigError

FEWEST = 2
"""Blocks that a plan executes at least, and stores at least."""


@dataclass(frozen=True, slots=True)
class Step:
    """One executed block.

    block   the block of the base whose attention and MLP matrices it multiplies with
    origin  the block in whose place it stands: it keeps that one's norms, and its output is
            compared with that one's
    """

    block: int
    origin: int


@dataclass(frozen=True, slots=True)
class DepthPlan:
    """An order of execution over a base of ``layers`` blocks.

    Raises :class:`ConfigError` for steps out of order, blocks the base has not, a group that does
    not share one of its own members, and fewer than two blocks.
    """

    layers: int
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        for step in self.steps:
            for index in (step.block, step.origin):
                if not 0 <= index < self.layers:
                    raise ConfigError(
                        f"The plan names block {index}, which the base has not: it has blocks 0 to "
                        f"{self.layers - 1}."
                    )
        origins = self.kept
        if any(later <= earlier for earlier, later in pairwise(origins)):
            raise ConfigError("A plan keeps the order of its base and executes no place twice.")
        for group in self.groups:
            if len({step.block for step in group}) != 1 or group[0].block not in {
                step.origin for step in group
            }:
                raise ConfigError(
                    f"The steps in place of blocks {[step.origin for step in group]} share block "
                    f"{group[0].block}: a group shares the weights of one of its own members."
                )
        if len({step.block for step in self.steps}) < FEWEST:
            raise ConfigError(
                f"A plan stores at least {FEWEST} blocks, this one would store "
                f"{len({step.block for step in self.steps})}."
            )

    @classmethod
    def whole(cls, layers: int) -> DepthPlan:
        """Every block once: the base itself."""
        return cls(layers, tuple(Step(index, index) for index in range(layers)))

    @property
    def kept(self) -> tuple[int, ...]:
        """Places of the base that are still executed."""
        return tuple(step.origin for step in self.steps)

    @property
    def removed(self) -> tuple[int, ...]:
        """Places of the base that are not executed."""
        return tuple(index for index in range(self.layers) if index not in set(self.kept))

    @property
    def groups(self) -> tuple[tuple[Step, ...], ...]:
        """Neighbouring steps that execute the same weights."""
        return tuple(tuple(same) for _, same in groupby(self.steps, key=lambda step: step.block))

    @property
    def folded(self) -> tuple[int, ...]:
        """Places in the plan of all steps that share weights with another."""
        places: list[int] = []
        first = 0
        for group in self.groups:
            if len(group) > 1:
                places += range(first, first + len(group))
            first += len(group)
        return tuple(places)

    @property
    def stored(self) -> tuple[int, ...]:
        """Blocks whose weights are needed."""
        return tuple(group[0].block for group in self.groups)

    @property
    def key(self) -> str:
        """A short name of the steps, by content: what caches are kept apart by."""
        told = ",".join(f"{step.block}:{step.origin}" for step in self.steps)
        return hashlib.sha256(f"{self.layers}/{told}".encode()).hexdigest()[:16]

    def without(self, places: Iterable[int]) -> DepthPlan:
        """The plan without the steps that stand in these places of the base."""
        gone = set(places)
        return DepthPlan(self.layers, tuple(s for s in self.steps if s.origin not in gone))

    def merged(self, left: int, block: int) -> DepthPlan:
        """The plan with groups ``left`` and ``left + 1`` made one that shares ``block``."""
        groups = [list(group) for group in self.groups]
        both = groups[left] + groups.pop(left + 1)
        groups[left] = [Step(block, step.origin) for step in both]
        return DepthPlan(self.layers, tuple(step for group in groups for step in group))

    def __str__(self) -> str:
        """Such as ``0 1 2=3 5``: blocks in order, shared ones joined, the parent first."""
        return " ".join("=".join(map(str, _parent_first(group))) for group in self.groups)


def _parent_first(group: Sequence[Step]) -> list[int]:
    parent = group[0].block
    return [parent, *(step.origin for step in group if step.origin != parent)]


def check_shares(layers: int, remove: float, fold: float) -> tuple[int, int]:
    """How many blocks to remove and how many to fold away, for shares of all blocks.

    Raises :class:`ConfigError` with the feasible range where a share lies outside [0, 1) or leaves
    fewer than two stored blocks.
    """
    most = (layers - FEWEST) / layers
    for name, share in (("remove", remove), ("fold", fold)):
        if not 0 <= share < 1:
            raise ConfigError(
                f"The share to {name} must lie in [0, 1), not at {share:g}: for {layers} blocks "
                f"give 0 to {most:.3g}."
            )
    gone, shared = round(remove * layers), round(fold * layers)
    if layers - gone - shared < FEWEST:
        raise ConfigError(
            f"Removing {remove:g} and folding {fold:g} of {layers} blocks leaves "
            f"{max(layers - gone - shared, 0)}: together they may be at most {most:.3g}."
        )
    return gone, shared
