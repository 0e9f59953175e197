"""How caches are communicated, what became of a call, and what is known of a prompt's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal.engine.kvcomm.anchors import AnchorPool, Comparison
from shoal.engine.kvcomm.gate import Gate
from shoal.engine.repair import Repair
from shoal.engine.segments import KVSegment

Mode = Literal["plain", "dense", "moved"]


@dataclass(frozen=True, slots=True)
class CommPolicy:
    """How caches are communicated.

    gamma     texts are shared whose anchors' entropy is at most ``gamma`` log2 of their number
    top_p     anchors within this mass of weights count as used
    size, window, budget  of a placeholder's anchors, see :class:`AnchorPool`
    bases     texts whose base caches are kept, the last used
    gated     whether measured fidelity decides, too; without it the paper's rule alone does
    offsets   off: only rotation, a baseline
    after     the fixed piece after a text: "moved" with its offset, or "computed"
    repair    of moved tokens, on top of offsets
    beginning what a text stands behind when its base cache is computed
    """

    gamma: float = 0.3
    top_p: float = 0.9
    size: int = 20
    window: int = 5
    budget: int = 256 << 20
    bases: int = 64
    gated: bool = True
    offsets: bool = True
    after: Literal["moved", "computed"] = "moved"
    repair: Repair | None = None
    beginning: str = "The task is: "


@dataclass(frozen=True, slots=True)
class Call:
    """What became of one request with placeholders.

    why         one sentence
    entropy     of the weights of anchors, bits; the largest of its placeholders
    distance    to the nearest anchor, relative; the largest
    anchors     usable ones; the fewest
    prepare_ms  for base caches, decision and offsets, before the prompt was submitted
    kl          nats to the exact next-token distribution, where this call was looked at
    """

    mode: Mode
    why: str
    entropy: float = 0.0
    distance: float = 0.0
    anchors: int = 0
    prepare_ms: float = 0.0
    kl: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    move: bool
    why: str
    entropy: float = 0.0
    distance: float = 0.0
    anchors: int = 0
    seen: tuple[Comparison, ...] = ()


@dataclass(slots=True, eq=False)
class Known:
    """What is known of one template: its fixed pieces after each placeholder, and anchors."""

    fixed: list[KVSegment]
    pools: list[AnchorPool]
    gate: Gate
