"""How caches are communicated, what became of a call, and what is known of a prompt's shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from shoal.core.errors import ConfigError
from shoal.engine.kvcomm.anchors import AnchorPool, Comparison
from shoal.engine.kvcomm.gate import Gate
from shoal.engine.repair import Repair
from shoal.engine.segments import KVSegment

Mode = Literal["plain", "dense", "moved"]


SURE = 0.28
"""Nats: from here on 98 % of SmolLM2-135M's choices agreed, on the half that is not tested."""


@dataclass(frozen=True, slots=True)
class Way:
    """How near to exact a prompt is put together.

    after   the fixed piece after a text: "moved" with its offset, or "computed"
    repair  of moved tokens, on top of offsets
    """

    after: Literal["moved", "computed"] = "moved"
    repair: Repair | None = None


CLOSER = Way("computed", Repair("values"))
"""The second way: the fixed pieces and 15 % of the moved tokens are computed."""


@dataclass(frozen=True, slots=True)
class CommPolicy:
    """How caches are communicated.

    gamma     texts are shared whose anchors' entropy is at most ``gamma`` log2 of their number
    top_p     anchors within this mass of weights count as used
    size, window, budget  of a placeholder's anchors, see :class:`AnchorPool`
    bases     texts whose base caches are kept, the last used
    gated     whether measured fidelity decides, too; without it the paper's rule alone does
    sure      where gated, a greedy choice from a list is answered exactly if two of its tokens were
              nearer than this, in nats; :func:`~shoal.engine.kvcomm.gate.least_margin` finds it
    offsets   off: only rotation, a baseline
    after     the fixed piece after a text: "moved" with its offset, or "computed"
    repair    of moved tokens, on top of offsets
    closer    gated: how a prompt is put together where looks find the first way too far off, before
              everything is computed; None: everything is computed at once
    short     tokens of a text that is computed where it stands, beside one at least four times as
              long: its base cache would cost as much
    beginning what a text stands behind when its base cache is computed
    """

    gamma: float = 0.3
    top_p: float = 0.9
    size: int = 20
    window: int = 5
    budget: int = 256 << 20
    bases: int = 64
    gated: bool = True
    sure: float = SURE
    offsets: bool = True
    after: Literal["moved", "computed"] = "moved"
    repair: Repair | None = None
    closer: Way | None = CLOSER
    short: int = 64
    beginning: str = "The task is: "

    @property
    def ways(self) -> tuple[Way, ...]:
        """How a prompt may be put together, the cheapest first."""
        first = Way(self.after, self.repair)
        if not self.gated or self.closer is None or self.closer == first:
            return (first,)
        return first, self.closer

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"gamma is {self.gamma} and top_p {self.top_p}, but both are shares: give gamma in "
                "[0, 1] and top_p above 0, up to 1."
            )
        if (
            min(self.size, self.window, self.budget, self.bases) < 1
            or min(self.sure, self.short) < 0
        ):
            raise ConfigError(
                f"Size is {self.size}, window {self.window}, budget {self.budget}, bases "
                f"{self.bases}, sure {self.sure} and short {self.short}: give the first four from "
                "1, and the others from 0."
            )


@dataclass(frozen=True, slots=True)
class Call:
    """What became of one request with placeholders.

    why         one sentence
    entropy     of the weights of anchors, bits; the largest of its placeholders
    distance    to the nearest anchor, relative; the largest
    anchors     usable ones; the fewest
    prepare_ms  for base caches, decision and offsets, before the prompt was submitted
    kl          nats to the exact next-token distribution, where this call was looked at
    margin      nats between the first and the second token, where they were nearest, of a greedy
                choice from a list that was moved; also of one that was then answered exactly
    """

    mode: Mode
    why: str
    entropy: float = 0.0
    distance: float = 0.0
    anchors: int = 0
    prepare_ms: float = 0.0
    kl: float | None = None
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to move texts, and why.

    way   of the policy's; None: everything is computed
    seen  of each text, beside its anchors; None of one that is computed where it stands
    held  what looks have found is all that speaks against moving
    """

    way: int | None
    why: str
    entropy: float = 0.0
    distance: float = 0.0
    anchors: int = 0
    seen: tuple[Comparison | None, ...] = ()
    held: bool = False


Bases = Sequence[KVSegment | None]
"""The base cache of each text; None of one that is computed where it stands."""


@dataclass(slots=True, eq=False)
class Known:
    """What is known of one template: its fixed pieces after each placeholder, and anchors.

    gates  what looks have found of each way to put it together
    """

    fixed: list[KVSegment]
    pools: list[AnchorPool]
    gates: list[Gate] = field(default_factory=lambda: [Gate(), Gate()])

    def looks(self) -> bool:
        """Whether this call is to be looked at; counts calls."""
        return self.gates[0].looks()
