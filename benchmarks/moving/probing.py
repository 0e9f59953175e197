"""What a prompt in pieces predicts, whatever its cache is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from moving.timed import Timed
from shoal.core.protocols import Request, Sampling
from shoal.engine.generation import Composition, Generation, Piece
from shoal.engine.repair import Repair


@dataclass(eq=False)
class Probe:
    """Log-probabilities of forced tokens at the end of a prompt, whatever its cache is made of."""

    engine: Timed
    forced: tuple[int, ...]
    logprobs_FV: torch.Tensor = field(init=False)

    def prefilled(self, job: Generation) -> None:
        assert job.end is not None and job.end.last_hidden is not None
        decoder, slab = self.engine.model.decoder, self.engine.pool.slab
        slots = [s for node in job.end.path() for s in range(node.start, node.start + node.filled)]

        def attend(layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
            kv_P2Kd = torch.cat((slab[layer][torch.tensor(slots)], kv_T2Kd))
            T, P = len(q_THd), len(kv_P2Kd)
            seen_TP = torch.arange(P) <= torch.arange(P - T, P)[:, None]
            q, k, v = (x.transpose(0, 1)[None] for x in (q_THd, *kv_P2Kd.unbind(1)))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_TP, enable_gqa=True)
            return out[0].transpose(0, 1)

        ids_T = torch.tensor(self.forced[:-1])
        hidden_TD = decoder.forward(ids_T, torch.arange(len(ids_T)) + job.prompt_tokens, attend)
        hidden_FD = torch.cat((job.end.last_hidden[None], hidden_TD))
        self.logprobs_FV = decoder.logits(hidden_FD, precise=True).log_softmax(-1)

    def ending(self, job: Generation) -> None:
        """Everything was seen when the prompt was complete."""


async def probe(
    engine: Timed, pieces: tuple[Piece, ...], repair: Repair | None, forced: tuple[int, ...]
) -> torch.Tensor:
    """Log-probabilities of the forced answer behind these pieces."""
    watch = Probe(engine, forced)
    request = Request((), Sampling(max_tokens=0))
    (done,) = await engine.compose([Composition(request, pieces, repair, watch)])
    assert done.error is None, done.error
    return watch.logprobs_FV
