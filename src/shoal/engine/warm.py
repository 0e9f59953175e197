"""Compiling what steps are made of, so that no request waits for it.

The compiled loops are kept on disk: it takes a quarter of a minute once, and some tenths of a
second from then on.
"""

from __future__ import annotations

import torch

from shoal.engine.attention import STACKED, StepAttention, Work
from shoal.engine.division import LEAST
from shoal.engine.pool import Extent, KVPool
from shoal.engine.tree import Node
from shoal.models.decoder import Decoder
from shoal.models.fetching import Progress

_MANY, _FEW = 64, 6  # rows: enough for several threads, and too few


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
    length = 2 * torch.get_num_threads() * LEAST  # enough to be read in pieces, if that ever pays
    tokens = length + _FEW + STACKED
    token_bytes = 2 * config.kv_heads * config.head_dim * decoder.dtype.itemsize
    pool = KVPool(
        layers=1,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype=decoder.dtype,
        max_bytes=tokens * token_bytes,
    )
    pool.slab.zero_()
    long = Node([0] * length, Extent(0, length), None)
    short = Node([0] * _FEW, Extent(length, _FEW), None)
    answers = [Node([0], Extent(length + _FEW + i, 1), long) for i in range(STACKED)]
    steps = (
        [Work(long, 0, _MANY)],
        [Work(short, 0, _FEW)],
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
