"""The planner in front of engines that people run: the same job with it and without it.

    pip install -e '.[peers]'
    python benchmarks/upstream.py [--rounds 2] [--endpoints openvino,llamacpp] [--json]

The job of benchmarks/peers.py, 12 contexts with 8 questions each, shuffled, 16 greedy tokens out,
over HTTP to an endpoint on loopback that is started afresh for every run. "all at once": plain
requests, as a client sends them that awaits them together. "N at a time": the same with as many
under way as the planner allows. "planned": ``--upstream``. The arms alternate within each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from peers import NEW, job
from shoal.core.protocols import Request, Sampling, Segment
from shoal.core.stats import ratio_interval
from shoal.engine.upstream import UpstreamEngine

AT_A_TIME = 16
ENDPOINTS = ("openvino", "llamacpp")
ARMS = ("all at once", f"{AT_A_TIME} at a time", "planned")
WORKER = Path(__file__).parent / "workers" / "endpoint.py"


@dataclass(frozen=True)
class Run:
    """One timed job, and its answers in order."""

    wall: float
    texts: list[str]


@contextmanager
def endpoint(kind: str) -> Iterator[str]:
    """A fresh endpoint's address; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, str(WORKER), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin and process.stdout
    try:
        yield next(line for line in process.stdout if line.startswith("http")).strip()
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def plain(url: str, prompts: Sequence[str], at_a_time: int) -> list[str]:
    """What a client does that knows nothing of prefixes."""
    free = asyncio.Semaphore(at_a_time)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(trust_env=False, timeout=600, limits=limits) as client:

        async def ask(prompt: str) -> str:
            body = {"model": "m", "prompt": prompt, "max_tokens": NEW, "temperature": 0}
            async with free:
                reply = await client.post(f"{url}/completions", json=body | {"ignore_eos": True})
            return str(reply.raise_for_status().json()["choices"][0]["text"])

        return list(await asyncio.gather(*map(ask, prompts)))


async def planned(url: str, prompts: Sequence[str]) -> list[str]:
    """The same requests through the planner."""
    engine = UpstreamEngine.open(url, "m", concurrency=AT_A_TIME)
    sampling = Sampling(max_tokens=NEW, ignore_eos=True)
    answers = await engine.generate([Request((Segment(p),), sampling) for p in prompts])
    await engine.close()
    errors = [answer.error for answer in answers if answer.error]
    assert not errors, errors
    return [answer.text for answer in answers]


def run(kind: str, arm: str, prompts: Sequence[str]) -> Run:
    """Time one arm on a fresh endpoint that has answered two short prompts."""
    with endpoint(kind) as url:
        asyncio.run(plain(url, ["Two short prompts wake", "every part of it."], 2))
        begun = time.perf_counter()
        if arm == "planned":
            texts = asyncio.run(planned(url, prompts))
        else:
            at_a_time = len(prompts) if arm == "all at once" else AT_A_TIME
            texts = asyncio.run(plain(url, prompts, at_a_time))
        return Run(time.perf_counter() - begun, texts)


def table(kind: str, runs: dict[str, list[Run]]) -> Iterator[str]:
    """Lines of a Markdown table."""
    ours = [each.wall for each in runs["planned"]]
    answers = runs["planned"][0].texts
    yield f"\n{kind}\n"
    yield "| arm | wall s | times the planner's time | answers as with the planner |"
    yield "|---|---|---|---|"
    for arm, each in runs.items():
        walls = [one.wall for one in each]
        ratio = "1"
        if arm != "planned":
            found = ratio_interval(walls, ours)
            ratio = f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"
        alike = sum(a == b for a, b in zip(each[0].texts, answers, strict=True))
        yield f"| {arm} | {statistics.median(walls):.1f} | {ratio} | {alike} of {len(answers)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--endpoints", default=",".join(ENDPOINTS))
    parser.add_argument("--degree", type=int, default=8, help="prompts that share a context")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    prompts = job(options.degree)
    results: dict[str, dict[str, list[Run]]] = {}
    for kind in options.endpoints.split(","):
        runs = results[kind] = {arm: [] for arm in ARMS}
        for _ in range(options.rounds):
            for arm in ARMS:
                runs[arm].append(run(kind, arm, prompts))
                print(f"  {kind:<10}{arm:<20}{runs[arm][-1].wall:>8.2f} s", file=sys.stderr)
    if options.json:
        found = {
            kind: {arm: [asdict(one) for one in each] for arm, each in runs.items()}
            for kind, runs in results.items()
        }
        print(json.dumps(found))
    else:
        print("\n".join(line for kind, runs in results.items() for line in table(kind, runs)))


if __name__ == "__main__":
    main()
