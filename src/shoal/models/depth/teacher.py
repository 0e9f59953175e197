"""What the original model says about a batch: the lesson that a shorter one is cured with.

The whole distribution over 49 thousand tokens is too much to keep, so a lesson has the likeliest
tokens and how much probability all others have together. Their divergence, over the likeliest and
one bin for the rest, is a lower bound of the whole.

Shapes: B rows, S tokens of a row, T = B·S, R = B·(S - 1) predictions, k likeliest tokens, D hidden,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from shoal.models.decoder import Decoder
from shoal.models.depth.stack import next_logits, plain, run

_REST = 1e-6  # the least probability the bin of all other tokens is held to have


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Of one batch.

    ids_Rk     the likeliest next tokens
    logp_Rk    their log-probabilities at the temperature of the lesson
    states     outputs [T, D] of the original, by block; of the last one, what the head reads
    """

    ids_Rk: torch.Tensor
    logp_Rk: torch.Tensor
    states: dict[int, torch.Tensor]


class Teacher:
    """The original model; with ``keep`` a lesson that was given is not computed again.

    ``blocks`` are those whose outputs are taught. A kept lesson takes 12 k bytes a token for k
    likeliest tokens, and 2 D for each block.
    """

    def __init__(
        self,
        decoder: Decoder,
        blocks: Collection[int],
        *,
        likeliest: int = 64,
        temperature: float = 2.0,
        keep: bool = False,
    ) -> None:
        self.temperature = temperature
        self._decoder = plain(decoder)
        self._blocks = frozenset(blocks)
        self._likeliest = min(likeliest, decoder.config.vocab - 1)
        self._kept: dict[bytes, Lesson] | None = {} if keep else None

    @torch.no_grad()
    def lesson(self, ids_BS: torch.Tensor) -> Lesson:
        """What to learn from these rows."""
        key = ids_BS.numpy().tobytes()
        if self._kept is not None and key in self._kept:
            return self._kept[key]
        decoder, last = self._decoder, self._decoder.config.layers - 1
        x_TD, states = run(decoder, ids_BS, keep=self._blocks)
        if last in states:
            states[last] = decoder.finish(x_TD)
        shape_BS = (ids_BS.shape[0], ids_BS.shape[1])
        logits_RV = next_logits(decoder, x_TD, shape_BS) / self.temperature
        top = logits_RV.topk(self._likeliest, -1)
        logp_Rk = top.values - logits_RV.logsumexp(-1, keepdim=True)
        lesson = Lesson(top.indices, logp_Rk, {b: s.to(torch.bfloat16) for b, s in states.items()})
        if self._kept is not None:
            self._kept[key] = lesson
        return lesson


def divergence(lesson: Lesson, logits_RV: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL of a student from the lesson in nats a token, over the likeliest tokens and the rest."""
    student_Rk = F.log_softmax(logits_RV / temperature, -1).gather(-1, lesson.ids_Rk)
    p_Rk = lesson.logp_Rk.exp()
    rest_R = (1 - p_Rk.sum(-1)).clamp_min(_REST)
    student_rest_R = (1 - student_Rk.exp().sum(-1)).clamp_min(_REST)
    known_R = (p_Rk * (lesson.logp_Rk - student_Rk)).sum(-1)
    return (known_R + rest_R * (rest_R.log() - student_rest_R.log())).mean()


def relative_error(found_TD: torch.Tensor, taught_TD: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the squared distance over the squared length of what is taught."""
    taught = taught_TD.float()
    lost_T = (found_TD.float() - taught).square().sum(-1)
    return (lost_T / taught.square().sum(-1).clamp_min(1e-6)).mean()
