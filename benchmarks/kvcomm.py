"""Caches moved between agents' contexts: how far from exact, and how much sooner.

    shoal reproduce kvcomm [--smoke]

KVCOMM's offsets beside rotation alone, CacheBlend's repair and exact answers, on questions no
anchor has seen; choices beside exact ones, with the gate on; then three agents that read one
document behind their own words.
"KVCOMM: Online Cross-context KV-cache Communication for Efficient LLM-based Multi-agent Systems"
(arXiv 2510.12872).
"""

from __future__ import annotations

import asyncio

import torch

from passing.choosing import AGREE, choosing
from passing.fidelity import FORCED, fidelity
from passing.prompts import roles
from passing.reading import times
from shoal.core.claims import Bench
from shoal.core.claims.items import items
from shoal.engine.compute import compute
from shoal.engine.local import LocalEngine
from shoal.models.loading import load


def run(bench: Bench) -> None:
    """Fidelity on unseen questions, choices with the gate on, and time to first token."""
    asked = bench.pick(full=30, smoke=2)
    learned = bench.pick(full=22, smoke=3)
    bench.workload = (
        f"SmolLM2-135M in fp32. Fidelity: {asked} GSM8K questions in the prompts of "
        f"{len(roles(bench))} agents, {learned} other questions as anchors; divergence from the "
        f"exact distribution over {FORCED} tokens of the exact greedy answer, averaged over "
        "agents, so that questions are the independent cases. All arms read the same tokens, "
        "encoded part by part. Choices: one of four numbers, on one half of the questions, with "
        "anchors learned on the way. A choice is made exactly where two of its tokens are nearer "
        f"than a margin: the smallest from which {AGREE:.0%} of the choices on the other half "
        "agreed. Beside it the same choices made exactly in bf16. Time: in bf16, three agents that "
        "read one document of about 900 tokens and what the others said, by the paper's rule alone "
        "and with the gate on; base caches, decisions and the last token are in the times."
    )
    torch.manual_seed(bench.seed)
    runner = asyncio.Runner()
    model = compute.call(lambda: load(dtype="fp32"))
    quick = compute.call(lambda: load(dtype="bf16"))
    cases = sorted(items("gsm8k"), key=lambda item: bench.seed_of(item.id))
    runner.run(fidelity(bench, LocalEngine(model), cases, asked, learned))
    runner.run(choosing(bench, LocalEngine(model), LocalEngine(quick), cases))
    runner.run(times(bench, [LocalEngine(quick) for _ in range(4)]))
