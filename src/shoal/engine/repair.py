"""Computing a few moved tokens again, in the context they were moved to.

Keys and values that were computed behind another prefix are only nearly right. The layers up to
a check layer are computed for all tokens; there a score chooses which of the moved tokens are
worth more, and the layers above are computed for these and for the new tokens alone.

"deviation" is CacheBlend (Yao et al., arXiv 2405.16444): tokens whose keys and values differ most
at the check layer. "dhd" is KVShare's rule (arXiv 2503.16525, reconstructed: its text could not
be had): attention the new tokens pay times the deviation of the values. "first" computes the
beginning of every moved run, as EPIC does (arXiv 2410.15332). With ``share`` 1 nothing is left
of what was moved, and the result is the exact one.

Shapes: A tokens of the request below its exact beginning, M of them moved, R rows computed,
P tokens of the whole prompt, K key-value heads, H query heads, d head size, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from shoal.engine.late_repair import Late
from shoal.engine.parts import Part, Parts
from shoal.engine.pool import KVPool
from shoal.engine.tree import Node
from shoal.models.decoder import Decoder

Kind = Literal["none", "random", "first", "deviation", "values", "attention", "dhd"]
KINDS: tuple[Kind, ...] = ("none", "random", "first", "deviation", "values", "attention", "dhd")


@dataclass(frozen=True, slots=True)
class Repair:
    """Which moved tokens are computed again.

    share        of the moved tokens, at most
    threshold    in mean scores: a token below it is left alone, so a good match costs nothing
    check_layer  the last layer computed for all tokens; deviations are taken there
    late         how it goes on while the answer is written; None: it ends with the prompt
    """

    kind: Kind = "dhd"
    share: float = 0.15
    threshold: float = 0.0
    check_layer: int = 1
    seed: int = 0
    late: Late | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"There is no repair {self.kind!r}: choose from {', '.join(KINDS)}.")
        if not 0 <= self.share <= 1:
            raise ValueError(f"The share to repair is {self.share}, but must lie in [0, 1].")


@dataclass(slots=True, eq=False)
class Repaired:
    """What a repair did.

    states_AD     final hidden states; rows of moved tokens that were left alone are not a number
    selected      places (among A) of moved tokens that were computed again
    deviation_A   of values at the check layer (0 for new tokens)
    attention_A   mean attention of the new tokens at the check layer; 0 where no rule asks for it
    rows          rows that went through the first layer
    check_layer   where deviation and attention were taken
    """

    states_AD: torch.Tensor
    selected: torch.Tensor
    deviation_A: torch.Tensor
    attention_A: torch.Tensor
    rows: int
    check_layer: int


@dataclass(slots=True, eq=False)
class _Attend:
    """Attention of some rows of one request over all its slots, and what the check layer saw."""

    pool: KVPool
    slots_P: torch.Tensor
    pieces: Sequence[tuple[int, int]]  # of these slots: (first, length)
    beginning: int  # tokens of the exact beginning; rows count from its end
    check_layer: int
    new_A: torch.Tensor
    wants_attention: bool
    rows: torch.Tensor = field(init=False)
    deviation_A: torch.Tensor = field(init=False)
    key_deviation_A: torch.Tensor = field(init=False)
    attention_A: torch.Tensor = field(init=False)
    _attention: Parts = field(init=False)

    def see(self, rows: torch.Tensor) -> None:
        """Compute these rows (places among A) from now on."""
        self.rows = rows
        seen = (self.beginning + rows + 1).tolist()
        self._attention = Parts([Part(range(len(rows)), seen, self.pieces)])

    def __call__(self, layer: int, q_RHd: torch.Tensor, kv_R2Kd: torch.Tensor) -> torch.Tensor:
        slab_N2Kd = self.pool.slab[layer]
        slots_R = self.slots_P[self.beginning + self.rows]
        if layer == self.check_layer:
            change_A2 = (slab_N2Kd[slots_R].float() - kv_R2Kd.float()).square().sum((2, 3))
            self.key_deviation_A, self.deviation_A = change_A2.sqrt().unbind(1)
        slab_N2Kd[slots_R] = kv_R2Kd
        if layer == self.check_layer:
            self.attention_A = torch.zeros(len(self.new_A))
            if self.wants_attention:
                self.attention_A = self._paid(q_RHd[self.new_A], slab_N2Kd[self.slots_P, 0])
        R, H, d = q_RHd.shape
        q_RKGd = q_RHd.view(R, kv_R2Kd.shape[2], -1, d)
        out_RKGd = torch.empty(q_RKGd.shape, dtype=q_RHd.dtype)
        lse_RKG = torch.full(q_RKGd.shape[:3], -math.inf)
        self._attention.attend(q_RKGd, slab_N2Kd, out_RKGd, lse_RKG)
        return out_RKGd.view(R, H, d)

    def _paid(self, q_RHd: torch.Tensor, k_PKd: torch.Tensor) -> torch.Tensor:
        """Mean attention of the new rows to each token below the exact beginning."""
        K, d = k_PKd.shape[1:]
        q_RKGd = q_RHd.float().unflatten(1, (K, -1))  # type: ignore[no-untyped-call]
        scores = torch.einsum("rkgd,pkd->rkgp", q_RKGd, k_PKd.float()) / math.sqrt(d)
        places = self.beginning + self.rows[self.new_A]
        later_rp = torch.arange(len(k_PKd)) > places[:, None]
        scores.masked_fill_(later_rp[:, None, None], -math.inf)
        return scores.softmax(-1).mean((0, 1, 2))[self.beginning :]


@torch.inference_mode()
def repair(
    decoder: Decoder,
    pool: KVPool,
    path: list[Node],
    beginning: int,
    policy: Repair,
    moved_A: torch.Tensor,
) -> Repaired:
    """Compute what a request needs below its exact beginning and write it into its slots.

    path       its nodes from the top; the first ``beginning`` tokens are complete
    moved_A    [A] bool: tokens whose slots hold keys and values from elsewhere
    """
    tokens = [token for node in path for token in node.tokens]
    slots = [slot for node in path for slot in range(node.start, node.start + len(node.tokens))]
    own = tokens[beginning:]
    positions_A = torch.arange(beginning, len(tokens))
    layers = decoder.config.layers
    check = min(policy.check_layer, layers - 1)
    wants = policy.late is not None or policy.kind in ("attention", "dhd")
    pieces = [(node.start, len(node.tokens)) for node in path if node.tokens]
    attend = _Attend(pool, torch.tensor(slots), pieces, beginning, check, ~moved_A, wants)
    everything = torch.arange(len(own))
    attend.see(everything)
    x_AD = decoder.embed(torch.tensor(own))
    x_AD = decoder.through(x_AD, positions_A, attend, 0, check + 1)
    chosen_A = _choose(policy, moved_A, attend)
    rows = everything[chosen_A | ~moved_A]
    attend.see(rows)
    x_RD = decoder.through(x_AD[rows], positions_A[rows], attend, check + 1, layers)
    states_RD = decoder.finish(x_RD)
    states_AD = states_RD.new_full((len(own), states_RD.shape[1]), math.nan)
    states_AD[rows] = states_RD
    return Repaired(
        states_AD, everything[chosen_A], attend.deviation_A, attend.attention_A, len(own), check
    )


def _choose(policy: Repair, moved_A: torch.Tensor, attend: _Attend) -> torch.Tensor:
    """Which moved tokens are computed again: [A] bool."""
    count = math.ceil(policy.share * int(moved_A.sum()))
    chosen_A = torch.zeros_like(moved_A)
    if policy.kind == "none" or not count:
        return chosen_A
    score_A = _score(policy, moved_A, attend)
    score_A = torch.where(moved_A, score_A, -math.inf)
    chosen_A[score_A.topk(count).indices] = True
    if policy.threshold:
        chosen_A &= score_A > policy.threshold * score_A[moved_A].mean()
    return chosen_A


def _score(policy: Repair, moved_A: torch.Tensor, attend: _Attend) -> torch.Tensor:
    match policy.kind:
        case "random":
            return torch.rand(len(moved_A), generator=torch.Generator().manual_seed(policy.seed))
        case "first":
            return -_place_in_run(moved_A).float()
        case "deviation":
            return torch.hypot(attend.key_deviation_A, attend.deviation_A)
        case "values":
            return attend.deviation_A
        case "attention":
            return attend.attention_A
        case _:
            return attend.attention_A * attend.deviation_A


def _place_in_run(moved_A: torch.Tensor) -> torch.Tensor:
    """How many moved tokens stand before each in its own run of moved tokens."""
    index = torch.arange(len(moved_A))
    starts = torch.where(moved_A & ~moved_A.roll(1), index, 0)
    starts[0] = 0
    return index - starts.cummax(0).values
