"""Compiling what steps are made of, so that no request waits for it.

The compiled loops are kept on disk: it takes a quarter of a minute once, and some tenths of a
second from then on.
"""

from __future__ import annotations

import torch

from shoal.engine.attention import STACKED, StepAttention, Work
from shoal.engine.pool import Extent, KVPool
from shoal.engine.tree import Node
from shoal.models.decoder import Decoder
from shoal.models.fetching import Progress

_LONG, _SHORT = 64, 6  # tokens: enough for several threads, and too few


_warm: set[tuple[torch.dtype, str]] = set()  # number formats and kernels of this process


@torch.inference_mode()
def warm(decoder: Decoder, progress: Progress | None = None) -> None:
    """Run steps of every kind through the first layer, over a cache that is thrown away.

    Once a process for each number format.
    """
    if (decoder.dtype, decoder.kernels) in _warm:
        return
    _warm.add((decoder.dtype, decoder.kernels))
    config = decoder.config
    tokens = _LONG + _SHORT + STACKED
    token_bytes = 2 * config.kv_heads * config.head_dim * decoder.dtype.itemsize
    pool = KVPool(
        layers=1,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype=decoder.dtype,
        max_bytes=tokens * token_bytes,
    )
    long = Node([0] * _LONG, Extent(0, _LONG), None)
    short = Node([0] * _SHORT, Extent(_LONG, _SHORT), None)
    answers = [Node([0], Extent(_LONG + _SHORT + i, 1), long) for i in range(STACKED)]
    steps = (
        [Work(long, 0, _LONG)],
        [Work(short, 0, _SHORT)],
        [Work(answer, 0, 1) for answer in answers],
        [Work(answers[0], 0, 1)],
    )
    for done, works in enumerate(steps):
        if progress is not None:
            progress("compiling for this processor", done, len(steps))
        rows = sum(work.count for work in works)
        x_TD = decoder.embed(torch.zeros(rows, dtype=torch.long))
        attend = StepAttention(works, pool)
        decoder.finish(decoder.through(x_TD, torch.arange(rows), attend, 0, 1))
    if progress is not None:
        progress("compiling for this processor", len(steps), len(steps))
