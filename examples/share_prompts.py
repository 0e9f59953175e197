"""Learn from several answers to one long prompt, and read the prompt once.

    python examples/share_prompts.py [--model NAME] [--answers 4]

An adapter of a small model gets a gradient from answers to one text: once with the text computed
for every answer, once with it computed for all. The gradients are the same.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from shoal.training.forward import Forward, distinct
from shoal.training.policies import Policy, adapted, hub_policy
from shoal.training.shared_prefix import SharedPrefix

TEXT = Path(__file__).parent / "documents" / "constitution" / "2-bill-of-rights.md"
ANSWERS = (
    " It protects free speech.",
    " It protects the press and assembly.",
    " It is about quartering soldiers.",
    " It grants a speedy trial.",
    " It limits searches and seizures.",
    " It keeps powers with the states.",
)


def gradient(policy: Policy, forward: Forward, prompt: list[int], answers: list[list[int]]) -> str:
    """Take a step's gradient and say what it took."""
    began = time.process_time()
    found = forward(policy, [prompt] * len(answers), answers)
    credit_A = torch.linspace(-1, 1, len(found.logp_A))
    (-credit_A * found.logp_A).mean().backward()
    saved = int(found.told.get("shared_prefix.tokens_saved", 0))
    return f"{time.process_time() - began:.1f} CPU s, {saved:,} tokens not computed again"


def main(model: str, count: int) -> None:
    policy = adapted(hub_policy(model, learns=False), "lora", {"rank": 8})
    prompt = policy.tokenizer.encode(TEXT.read_text(encoding="utf-8")[:700])
    answers = [policy.tokenizer.encode(answer) for answer in ANSWERS[:count]]
    kept = []
    sharing = SharedPrefix()
    for name, forward in (
        ("each by itself", distinct),
        ("shared, and held against that on some rows", sharing),
        ("shared", sharing),
    ):
        for tensor in policy.trained.values():
            tensor.grad = None
        print(f"{name}: {gradient(policy, forward, prompt, answers)}")
        kept.append([tensor.grad for tensor in policy.trained.values()])
    pairs = [
        (ours, theirs)
        for theirs, ours in zip(kept[0], kept[-1], strict=True)
        if theirs is not None and ours is not None
    ]
    apart = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)
    print(f"The gradients differ by {apart:.0e} of their largest element.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Gradients of answers to one prompt.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--answers", type=int, default=4, choices=range(2, 7))
    options = parser.parse_args()
    main(options.model, options.answers)
