"""A plan in the engine beside its parent: memory of a process of its own, and speed."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping

from shoal.core.claims import alternate
from shoal.core.claims.timing import Timing
from shoal.core.protocols import Request, Sampling, Segment
from shoal.engine.local import LocalEngine

PREFILL, DECODE = 384, 24

_PROCESS = """
import asyncio, json, sys
from shoal.core.protocols import Request, Sampling, Segment
from shoal.engine.local import LocalEngine
engines = [LocalEngine.open(name, kv_bytes=64 << 20) for name in sys.argv[1:]]
request = Request((Segment("The tide " * 100),), Sampling(max_tokens=16, ignore_eos=True))
for engine in engines:
    (answer,) = asyncio.run(engine.generate([request]))
    assert answer.error is None, answer.error
status = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Rss"))
print(json.dumps({name: int(value.split()[0]) * 1024 for name, value in status.items()}))
"""


def resident(*models: str) -> int:
    """Bytes that a process holds of memory and mapped files after it answered with these models."""
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS, *models], capture_output=True, text=True, check=True
    )
    told: dict[str, int] = json.loads(done.stdout)
    return sum(told.values())


def speeds(engines: Mapping[str, LocalEngine], rounds: int) -> dict[str, dict[str, Timing]]:
    """Seconds to read a new prompt, and to answer it, by engine; arms take turns."""
    fresh = itertools.count()

    def ask(engine: LocalEngine, prompt: int, answer: int) -> None:
        ids = [(next(fresh) * 31 + place * 7) % 40_000 + 100 for place in range(prompt)]
        request = Request(
            (Segment("", tokens=tuple(ids)),), Sampling(max_tokens=answer, ignore_eos=True)
        )
        (done,) = asyncio.run(engine.generate([request]))
        assert done.error is None, done.error

    return {
        what: alternate(
            {
                name: (lambda engine=engine, p=prompt, a=answer: ask(engine, p, a))
                for name, engine in engines.items()
            },
            rounds=rounds,
        )
        for what, prompt, answer in (("prefill", PREFILL, 1), ("decode", 8, DECODE))
    }
