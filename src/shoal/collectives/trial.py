"""A peer that only reduces: to see whether a network carries what it should."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from shoal.collectives.errors import Aborted
from shoal.collectives.kernels import Op
from shoal.collectives.peer import Communicator
from shoal.collectives.quantize import Quantization


def reduce_repeatedly(
    peer: Communicator, *, mib: float, steps: int, quantization: Quantization = "none"
) -> dict[str, Any]:
    """Reduce an array of ones that often; what was committed, how fast, over which worlds.

    Ones summed over w peers are w: ``wrong`` counts operations that came out as anything else.
    """
    x = np.ones(max(1, int(mib * (1 << 18))), np.float32)
    out = np.empty_like(x)
    seconds: list[float] = []
    worlds: set[int] = set()
    sent = aborted = wrong = 0
    while len(seconds) < steps:
        start = time.perf_counter()
        try:
            info = peer.all_reduce(x, out, op=Op.SUM, quantization=quantization)
        except Aborted:
            aborted += 1
            continue
        seconds.append(time.perf_counter() - start)
        worlds.add(info.world)
        sent += info.tx
        wrong += not bool((out == info.world).all())
    return {
        "steps": steps,
        "aborted": aborted,
        "wrong": wrong,
        "worlds": sorted(worlds),
        "median_ms": round(1e3 * float(np.median(seconds)), 3),
        "sent_mb_a_second": round(sent / 1e6 / sum(seconds), 1),
    }
