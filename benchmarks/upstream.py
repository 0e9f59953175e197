"""The planner in front of engines that people run: the same job with it and without it.

    pip install -e '.[peers]'
    python benchmarks/upstream.py [--rounds 3] [--endpoints openvino,llamacpp] [--out FILE]

The job of benchmarks/peers.py, 12 contexts with 8 questions each, shuffled, 16 greedy tokens out,
over HTTP to an endpoint on loopback that is started afresh for every run. "all at once": plain
requests, as a client sends them that awaits them together. "8 at a time": the same with no more
under way than llama.cpp's server has slots. "planned": ``shoal batch --upstream``, as it is
started by default; its time is what its report says, the start of the command is beside it. The
arms alternate within each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from peers import NEW, job
from shoal.core.stats import ratio_interval

AT_A_TIME = 8
ENDPOINTS = ("openvino", "llamacpp")
ALL, FEW, PLANNED = ARMS = ("all at once", f"{AT_A_TIME} at a time", "planned")
WORKER = Path(__file__).parent / "workers" / "endpoint.py"


@dataclass(frozen=True)
class Run:
    """One timed job, its answers in order, and what the command took from start to end."""

    wall: float
    texts: list[str]
    command: float | None = None


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


def planned(url: str, prompts: Sequence[str]) -> Run:
    """The same requests through ``shoal batch --upstream``."""
    settings = {"model": "m", "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
    lines = [
        {
            "custom_id": str(index),
            "method": "POST",
            "url": "/v1/completions",
            "body": settings | {"prompt": prompt},
        }
        for index, prompt in enumerate(prompts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        asked.write_text("\n".join(map(json.dumps, lines)))
        command = [sys.executable, "-m", "shoal", "batch", asked, "-o", answered]
        begun = time.perf_counter()
        done = subprocess.run(
            [*command, "--upstream", url, "--any-model", "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        took = time.perf_counter() - begun
        if done.returncode:
            raise SystemExit(f"shoal batch failed:\n{(done.stderr + done.stdout)[-2000:]}")
        found = {}
        for line in answered.read_text().splitlines():
            answer = json.loads(line)
            found[answer["custom_id"]] = answer["response"]["body"]["choices"][0]["text"]
        seconds = float(json.loads(done.stdout)["seconds"])
        return Run(seconds, [found[str(index)] for index in range(len(prompts))], took)


def run(kind: str, arm: str, prompts: Sequence[str]) -> Run:
    """Time one arm on a fresh endpoint that has answered two short prompts."""
    with endpoint(kind) as url:
        asyncio.run(plain(url, ["Two short prompts wake", "every part of it."], 2))
        if arm == PLANNED:
            return planned(url, prompts)
        begun = time.perf_counter()
        at_a_time = len(prompts) if arm == ALL else AT_A_TIME
        texts = asyncio.run(plain(url, prompts, at_a_time))
        return Run(time.perf_counter() - begun, texts)


def table(kind: str, runs: dict[str, list[Run]]) -> Iterator[str]:
    """Lines of a Markdown table."""
    ours = [each.wall for each in runs[PLANNED]]
    answers = runs[PLANNED][0].texts
    whole = statistics.median(each.command or 0.0 for each in runs[PLANNED])
    yield f"\n{kind} (the whole command took {whole:.1f} s)\n"
    yield "| arm | wall s | times the planner's time | answers as with the planner |"
    yield "|---|---|---|---|"
    for arm, each in runs.items():
        walls = [one.wall for one in each]
        ratio = f"{statistics.median(walls) / statistics.median(ours):.2f}"
        if arm != PLANNED and len(walls) > 1:
            found = ratio_interval(walls, ours)
            ratio = f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"
        alike = sum(a == b for a, b in zip(each[0].texts, answers, strict=True))
        yield f"| {arm} | {statistics.median(walls):.1f} | {ratio} | {alike} of {len(answers)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--out", type=Path, help="file to add the tables to")
    parser.add_argument("--endpoints", default=",".join(ENDPOINTS))
    parser.add_argument("--degree", type=int, default=8, help="prompts that share a context")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    prompts = job(options.degree)
    results: dict[str, dict[str, list[Run]]] = {}
    for kind in options.endpoints.split(","):
        arms = [arm for arm in options.arms.split(",") if arm != PLANNED]
        runs = results[kind] = {arm: [] for arm in (*arms, PLANNED)}
        for _ in range(options.rounds):
            for arm in runs:
                runs[arm].append(run(kind, arm, prompts))
                print(f"  {kind:<10}{arm:<20}{runs[arm][-1].wall:>8.2f} s", file=sys.stderr)
    if options.json:
        found = {
            kind: {arm: [asdict(one) for one in each] for arm, each in runs.items()}
            for kind, runs in results.items()
        }
        print(json.dumps(found))
        return
    lines = "\n".join(line for kind, runs in results.items() for line in table(kind, runs))
    print(lines)
    if options.out:
        with options.out.open("a") as file:
            file.write(lines + "\n")


if __name__ == "__main__":
    main()
