"""When a server lets the next answer begin, where clients ask for more tokens than they get.

    python benchmarks/admission.py [--requests 40] [--limit 512] [--kv-memory 32] [--json]

Chats arrive 0.02 s apart at an engine with little memory, and end where the model ends them. The
arms differ in what a running answer is expected to need: lengths of those before it
(:mod:`shoal.engine.lengths`), as much as it may get, or nothing, which is how vLLM admits: prompts
that fit begin, and the youngest answer is read again later where memory runs out. They alternate
in one process; every arm gives the same answers, apart from near-ties. All three look at the worst
moment to come (:mod:`shoal.engine.outlook`). Seconds are medians of the rounds, "times as long" is
paired by round, means over means. Nothing is warmed up before the first arm, which is ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import product

import numpy as np

from shoal.core.claims import alternate
from shoal.core.protocols import Request, Sampling
from shoal.core.records import Message
from shoal.engine.compute import compute
from shoal.engine.generation import Generation
from shoal.engine.local import LocalEngine
from shoal.engine.outlook import Growth
from shoal.engine.policies import ArrivalOrder, Policy
from shoal.models.loading import Model, load

ASKED = (
    "Explain {} in two sentences.",
    "Name three facts about {}.",
    "Write a short poem about {}.",
    "What is the history of {}?",
)
TOPICS = ["rivers", "bread", "clouds", "trains", "chess", "honey", "glass", "bees", "tides", "salt"]
EVERY = 0.02  # seconds between two arrivals


class PromptsOnly(ArrivalOrder):
    """Admits whatever prompt fits."""

    def growth(self, job: Generation) -> Growth:
        return Growth(min(1, job.growth), ends=False)


ARMS: Mapping[str, Callable[[], Policy]] = {
    "expected lengths": ArrivalOrder,
    "limits": lambda: ArrivalOrder(expects=False),
    "prompts only": PromptsOnly,
}


@dataclass
class Arm:
    """What one way of admission measured: a number for each round, tokens over all of them.

    latency and first are seconds from a request's arrival, p50 and p95
    """

    name: str
    wall: list[float] = field(default_factory=list)
    latency: list[tuple[float, float]] = field(default_factory=list)
    first: list[tuple[float, float]] = field(default_factory=list)
    preemptions: int = 0
    repeated_tokens: int = 0
    decoded_tokens: int = 0


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """The 50th and the 95th percentile."""
    p50, p95 = np.percentile(seconds, (50, 95))
    return float(p50), float(p95)


async def served(model: Model, arm: Arm, requests: list[Request], kv_bytes: int) -> None:
    """All requests, one after the other in arriving, together in being answered."""
    engine = LocalEngine(model, kv_bytes=kv_bytes)
    engine.scheduler.waiting = ARMS[arm.name]()
    began, latency, first = time.perf_counter(), [], []

    async def one(number: int, request: Request) -> None:
        await asyncio.sleep(number * EVERY)
        asked = time.perf_counter()
        (answer,) = await engine.generate([request])
        latency.append(time.perf_counter() - asked)
        first.append(answer.usage.first_token_ms / 1e3)
        arm.decoded_tokens += answer.usage.decoded_tokens

    await asyncio.gather(*(one(*each) for each in enumerate(requests)))
    arm.wall.append(time.perf_counter() - began)
    arm.latency.append(percentiles(latency))
    arm.first.append(percentiles(first))
    arm.preemptions += engine.scheduler.preemptions
    arm.repeated_tokens += engine.scheduler.meter.repeated_tokens
    await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=40, help="at most 40")
    parser.add_argument("--limit", type=int, default=512, help="tokens that clients ask for")
    parser.add_argument("--kv-memory", type=int, default=32, help="MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = compute.call(lambda: load(dtype="bf16"))
    asked = [text.format(topic) for text, topic in product(ASKED, TOPICS)]
    random.Random(0).shuffle(asked)
    requests = [
        Request((Message("user", text),), Sampling(max_tokens=options.limit))
        for text in asked[: options.requests]
    ]
    arms = {name: Arm(name) for name in ARMS}
    timings = alternate(
        {
            name: lambda arm=arm: asyncio.run(  # type: ignore[misc]
                served(model, arm, requests, options.kv_memory << 20)
            )
            for name, arm in arms.items()
        },
        rounds=options.rounds,
        warmup=0,
    )
    if options.json:
        print(json.dumps([asdict(arm) for arm in arms.values()], indent=2))
        return
    ours = timings["expected lengths"]
    print(f"{options.requests} chats, {options.limit} tokens at most, median seconds, p50 / p95")
    for name, arm in arms.items():
        first, latency = (np.median(pairs, axis=0) for pairs in (arm.first, arm.latency))
        longer = ours.times_faster_than(timings[name])
        beside = f"  {longer.estimate:.2f} [{longer.low:.2f}, {longer.high:.2f}] times as long"
        print(
            f"{name:18} wall {np.median(arm.wall):6.1f}  first token {first[0]:5.1f} / "
            f"{first[1]:5.1f}  whole answer {latency[0]:5.1f} / {latency[1]:5.1f}  "
            f"preempted {arm.preemptions}, {arm.repeated_tokens:,} tokens read again of "
            f"{arm.decoded_tokens:,} written{'' if ours is timings[name] else beside}"
        )


if __name__ == "__main__":
    main()
