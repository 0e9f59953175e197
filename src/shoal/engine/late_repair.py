"""Computing moved tokens again while an answer is written: KVShare's second stage.

An answer attends to other tokens than its prompt did, so tokens that were left alone may matter
later (arXiv 2503.16525, reconstructed: its text could not be had). At each decoding step the
attention that the new token pays to every moved token is averaged over time; the two tokens with
the largest attention times deviation of values ride along as rows of the next step. They are
computed at all layers and written over what was moved. What was moved lies in nodes of the request
alone (a private copy), so nobody else's cache changes.

Departure: attention is read at eight of the layers above the check layer, evenly spaced, instead
of at all; reading it costs as much as a short span at every layer it is read.

Shapes: M moved tokens, K key-value heads, G query heads of each, N slots, d head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from shoal.engine.tree import Node

LAYERS = 8  # at which attention is read


@dataclass(frozen=True, slots=True)
class Late:
    """How a repair goes on while the answer is written.

    rule       what chooses: attention times deviation, or chance as a control
    a_step     moved tokens computed again at each step, at most
    share      of all moved tokens, at most, over the whole answer
    threshold  in mean scores at the beginning: a token below it is left alone
    patience   steps without a token above it after which the repair ends
    keep       of the running average of attention at each step
    """

    rule: Literal["dhd", "random"] = "dhd"
    a_step: int = 2
    share: float = 0.05
    threshold: float = 1.0
    patience: int = 8
    keep: float = 0.9

    def __post_init__(self) -> None:
        if self.rule not in ("dhd", "random"):
            raise ValueError(f"There is no late repair {self.rule!r}: choose dhd or random.")
        if not 0 <= self.share <= 1 or self.a_step < 1:
            raise ValueError(
                f"A late repair computes {self.a_step} tokens a step, {self.share} of all: give at "
                "least one, and a share in [0, 1]."
            )


class FirstStage(Protocol):
    """What a repair of the prompt knows (:class:`shoal.engine.repair.Repaired`)."""

    selected: torch.Tensor
    deviation_A: torch.Tensor
    attention_A: torch.Tensor
    check_layer: int


@dataclass(slots=True, eq=False)
class LateRepair:
    """The second stage of one request: what each moved token is worth.

    places     of each moved token that was left alone: its node and place in it
    slots_M    where they lie
    deviation_M  of their values at the check layer
    average_M  of the attention paid to them; begins with what the prompt's new tokens paid
    budget     tokens that may still be computed
    done       tokens computed so far
    chosen     which are computed in the next step (of M)
    """

    policy: Late
    places: Sequence[tuple[Node, int]]
    slots_M: torch.Tensor
    deviation_M: torch.Tensor
    average_M: torch.Tensor
    layers: frozenset[int]
    budget: int
    seed: int = 0
    done: int = 0
    chosen: tuple[int, ...] = ()
    _floor: float = field(init=False)
    _open_M: torch.Tensor = field(init=False)
    _seen_M: torch.Tensor = field(init=False)
    _idle: int = 0
    _draw: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._open_M = torch.ones(len(self.places), dtype=torch.bool)
        self._seen_M = torch.zeros(len(self.places))
        self._draw = torch.Generator().manual_seed(self.seed)
        score_M = self.average_M * self.deviation_M
        self._floor = self.policy.threshold * float(score_M.mean()) if len(score_M) else 0.0
        self._choose()

    @classmethod
    def of(
        cls,
        policy: Late,
        path: Sequence[Node],
        beginning: int,
        moved_A: torch.Tensor,
        first: FirstStage,
        layers: int,
        seed: int,
    ) -> LateRepair:
        """After the first stage, whose results are given; A counts from the exact beginning."""
        left_A = moved_A.clone()
        left_A[first.selected] = False
        here = [
            (node, place)
            for node in path
            if node.position >= beginning
            for place in range(len(node.tokens))
        ]
        places = [here[index] for index in left_A.nonzero()[:, 0].tolist()]
        above = first.check_layer + 1
        read = torch.linspace(min(above, layers - 1), layers - 1, LAYERS).round()
        return cls(
            policy,
            places,
            torch.tensor([node.start + place for node, place in places], dtype=torch.long),
            first.deviation_A[left_A].float(),
            first.attention_A[left_A].float(),
            frozenset(int(layer) for layer in read),
            math.ceil(policy.share * int(moved_A.sum())),
            seed,
        )

    @property
    def ended(self) -> bool:
        """Whether nothing will be computed again any more."""
        return not self.budget or self._idle >= self.policy.patience or not self._open_M.any()

    def rows(self) -> list[tuple[Node, int]]:
        """What the next step computes again."""
        return [self.places[index] for index in self.chosen]

    def see(
        self, layer: int, q_KGd: torch.Tensor, slab_N2Kd: torch.Tensor, lse_KG: torch.Tensor
    ) -> None:
        """Read what one row pays to the moved tokens at a layer; its log-sum-exp is known."""
        if layer not in self.layers:
            return
        k_MKd = slab_N2Kd[self.slots_M, 0].float()
        scores_KGM = torch.einsum("kgd,mkd->kgm", q_KGd.float(), k_MKd) / math.sqrt(q_KGd.shape[-1])
        paid_KGM = (scores_KGM - lse_KG[..., None]).exp()
        self._seen_M += paid_KGM.mean((0, 1)) / len(self.layers)

    def stepped(self, computed: int) -> None:
        """A step is over, in which the first ``computed`` of the chosen were computed."""
        for index in self.chosen[:computed]:
            self._open_M[index] = False
        self.done += computed
        self.budget -= computed
        self.average_M = self.policy.keep * self.average_M + (1 - self.policy.keep) * self._seen_M
        self._seen_M = torch.zeros_like(self._seen_M)
        self._choose()

    def _choose(self) -> None:
        self.chosen = ()
        if self.ended:
            return
        if self.policy.rule == "random":
            score_M = torch.rand(len(self.places), generator=self._draw)
            floor = 0.0
        else:
            score_M, floor = self.average_M * self.deviation_M, self._floor
        score_M = torch.where(self._open_M, score_M, -math.inf)
        count = min(self.policy.a_step, self.budget, int(self._open_M.sum()))
        values, indices = score_M.topk(count)
        self.chosen = tuple(indices[values > floor].tolist())
        self._idle = 0 if self.chosen else self._idle + 1
