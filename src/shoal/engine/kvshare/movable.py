"""Whether a model's cache can be moved at all: tried, not assumed."""

from __future__ import annotations

import torch

from shoal.models.decoder import Decoder, causal_attend
from shoal.models.rope import rotate

ROTATED = 2.0**-6
"""Relative error up to which rotated keys count as equal: bf16 rounds each to 2^-8."""
_FAR = 1000  # tokens by which keys are moved for the trial


@torch.inference_mode()
def immovable(decoder: Decoder) -> str | None:
    """Why keys cannot be moved; None where they can.

    Keys of the same tokens at two places must be equal once they are rotated back.
    """
    ids_T = torch.arange(1, 9) % decoder.config.vocab
    keys: list[torch.Tensor] = []

    def attend(layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
        keys.append(kv_T2Kd[:, 0].float())
        return causal_attend(layer, q_THd, kv_T2Kd)

    for start in (0, min(_FAR, decoder.config.context - len(ids_T))):
        positions_T = torch.arange(start, start + len(ids_T))
        decoder.through(decoder.embed(ids_T), positions_T, attend, 0, 1)
        cos_T1d, sin_T1d = decoder.rotation(positions_T)
        keys[-1] = rotate(keys[-1], cos_T1d, -sin_T1d)
    near, far = keys
    if (near - far).abs().max() > ROTATED * near.abs().max():
        return "This model's keys depend on positions by more than a rotation: none can be moved."
    return None
