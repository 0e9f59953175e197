"""How far a model's answers are from a reference: what another number format or a cut costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from shoal.core.errors import InputError
from shoal.models.decoder import Decoder, causal_attend
from shoal.models.loading import Model

_ROWS = 128  # rows whose logits are held at once


@dataclass(frozen=True, slots=True)
class Divergence:
    """Averages over all positions of some texts.

    kl      Kullback-Leibler divergence of the model from the reference, in nats a token
    top1    share of positions where both find the same token likeliest
    tokens  positions compared
    """

    kl: float
    top1: float
    tokens: int


@torch.inference_mode()
def divergence(
    model: Model, reference: Model, texts: Iterable[str], *, reading: bool = False
) -> Divergence:
    """Compare next-token distributions, given the same texts.

    A model with packed matrices is measured as it decodes a single answer, with them at every
    row, or with ``reading`` as it computes prompts and many answers at once.
    Raises :class:`InputError` where the texts hold no token.
    """
    decoders = [
        each.decoder if reading or each.decoder.kernels != "packed" else each.decoder.narrow()
        for each in (model, reference)
    ]
    kl, same, tokens = 0.0, 0, 0
    for text in texts:
        ids = torch.tensor(reference.tokenizer.encode(text, special=False), dtype=torch.long)
        hidden_TD, expected_TD = (
            each.forward(ids, torch.arange(len(ids)), causal_attend) for each in decoders
        )
        for first in range(0, len(ids), _ROWS):
            found_RV = _logprobs(decoders[0], hidden_TD[first : first + _ROWS])
            true_RV = _logprobs(decoders[1], expected_TD[first : first + _ROWS])
            kl += float((true_RV.exp() * (true_RV - found_RV)).sum())
            same += int((true_RV.argmax(-1) == found_RV.argmax(-1)).sum())
        tokens += len(ids)
    if not tokens:
        raise InputError("There is nothing to compare: the texts hold no token.")
    return Divergence(kl / tokens, same / tokens, tokens)


def _logprobs(decoder: Decoder, hidden_RD: torch.Tensor) -> torch.Tensor:
    logits_RV = decoder.logits(hidden_RD, precise=decoder.kernels != "packed")
    return torch.log_softmax(logits_RV, -1)
