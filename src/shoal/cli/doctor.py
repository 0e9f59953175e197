"""``shoal doctor``: what is here, what is missing, and whether the engine works."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from shoal.cli.console import console, print_json
from shoal.core.doctor import Fact, facts

if TYPE_CHECKING:
    from shoal.engine.local import LocalEngine

PROSE = (
    "A school of fish has no leader. Each animal keeps a little distance from its neighbours and "
    "turns when they turn, and out of these two habits comes a body that divides before a shark "
    "and closes behind it. Nobody in the school knows the shape of the school. When food is near, "
    "the ones that see it slow down, the others swim into them, and soon all of them are there."
)


def doctor(
    model: str = typer.Option("smollm2-135m", help="The model to test."),
    json: bool = typer.Option(False, "--json", help="Print the same facts as JSON."),
) -> None:
    """Check Python, torch, memory, caches and optional parts, then test the engine."""
    report = [*facts(), *_self_test(model)]
    if json:
        print_json([asdict(fact) for fact in report])
    else:
        for fact in report:
            mark = "[green]ok[/]" if fact.ok else "[yellow]--[/]"
            console.print(f" {mark}  {fact.name:<34}", end="")
            console.print(fact.value if fact.ok else f"{fact.value}  {fact.fix}", markup=False)
    if any(not fact.ok and fact.name.startswith("engine") for fact in report):
        raise typer.Exit(1)


def _self_test(name: str) -> list[Fact]:
    from shoal.engine.local import LocalEngine

    started = time.perf_counter()
    engine = LocalEngine.open(name)
    seconds = time.perf_counter() - started
    report = [Fact("engine: model loaded", f"{name} in {seconds:.1f} s, {engine.info.dtype}")]
    return [*report, *asyncio.run(_ask(engine))]


async def _ask(engine: LocalEngine) -> list[Fact]:
    """A greedy answer twice, the second time from the cache, and what number formats cost."""
    from shoal.core.protocols import Request, Sampling
    from shoal.core.records import Message
    from shoal.engine.compute import compute

    prompt = (Message("user", "What is the capital of France?" + " Answer shortly." * 40),)
    request = Request(prompt, Sampling(max_tokens=16))
    (first,) = await engine.generate([request])
    (again,) = await engine.generate([request])
    await engine.close()
    usage = first.usage
    prefill = usage.prompt_tokens / usage.first_token_ms * 1e3
    decode = (usage.decoded_tokens - 1) / (usage.total_ms - usage.first_token_ms) * 1e3
    prices = await asyncio.to_thread(compute.call, lambda: _divergences(engine))
    return [
        Fact("engine: answer", first.text.strip().splitlines()[0]),
        Fact("engine: speed", f"prefill {prefill:.0f} tok/s, decode {decode:.0f} tok/s"),
        Fact(
            "engine: asked again",
            f"{again.usage.shared_tokens} of {again.usage.prompt_tokens} prompt tokens shared",
            again.text == first.text,
            "The second answer differs from the first: please report this.",
        ),
        *(
            Fact(f"engine: {dtype} against fp32", f"KL {kl:.4f}, same top token {top1:.0%}")
            for dtype, (kl, top1) in prices.items()
        ),
    ]


def _divergences(engine: LocalEngine) -> dict[str, tuple[float, float]]:
    """What the faster number formats cost beside fp32: divergence, share of same top tokens."""
    from shoal.models.loading import load
    from shoal.models.quality import divergence

    path = str(engine.model.path)
    reference = load(path, dtype="fp32")
    packed = load(path, dtype="packed")
    found = {
        "bf16": divergence(engine.model, reference, (PROSE,)),
        "packed": divergence(packed, reference, (PROSE,)),
        "packed prompts": divergence(packed, reference, (PROSE,), reading=True),
    }
    return {dtype: (each.kl, each.top1) for dtype, each in found.items()}
