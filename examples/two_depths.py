"""One set of weights, three depths: the whole model, a shorter one, and one that folds.

    python examples/two_depths.py

The plans are chosen by hand here, from what `shoal compress` finds; no cure makes them better.
"""

from __future__ import annotations

import asyncio

from shoal.core.protocols import Request, Sampling
from shoal.core.records import Message
from shoal.engine.local import LocalEngine
from shoal.models.depth.footprint import distinct_bytes
from shoal.models.depth.plan import DepthPlan

QUESTION = (Message("user", "Name three things that a fishing boat carries."),)


async def main() -> None:
    base = LocalEngine.open(kv_bytes=64 << 20)
    layers = base.model.config.layers
    whole = DepthPlan.whole(layers)
    engines = {
        "whole": base,
        "14 and 25 removed": base.planned(whole.without([14, 25])),
        "13 runs with the weights of 12": base.planned(whole.merged(12, 12)),
    }
    request = Request(QUESTION, Sampling(max_tokens=24))
    answers = await asyncio.gather(*(engine.generate([request]) for engine in engines.values()))
    for (name, engine), (answer,) in zip(engines.items(), answers, strict=True):
        print(f"{name}, {engine.token_bytes / 1024:.0f} KiB of cache a token:")
        print(f"    {answer.text.strip()!r}")
    decoders = [engine.model.decoder for engine in engines.values()]
    apart = sum(distinct_bytes(decoder.weights.values()) for decoder in decoders)
    together = distinct_bytes(t for decoder in decoders for t in decoder.weights.values())
    print(f"{len(engines)} models in {together / 1e6:.0f} MB of weights, {apart / 1e6:.0f} apart.")
    for engine in engines.values():
        await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
