"""What is compressed: SmolLM2-135M, and a small Llama over bytes that is trained on the spot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.core.claims import Bench
from shoal.models.decoder import Decoder
from shoal.models.depth.arrange import arrange
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.stack import plain, row_losses
from shoal.models.depth.text import python_reference, rows_of, split
from shoal.models.loading import Model, load
from shoal.training.byte_llama import ByteLlama, tiny_config

DOCUMENTS = Path(__file__).parents[2] / "examples" / "documents"
Losses = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Bed:
    """A model, text to fit to, and text of two domains that nothing is fitted to.

    fitted    rows [n, S] of the first domain and of Python's reference, in turn
    held_out  rows by domain
    """

    name: str
    decoder: Decoder
    fitted_NS: torch.Tensor
    held_out: Mapping[str, torch.Tensor]
    batch: int
    model: Model | None = None

    def losses(self, decoder: Decoder) -> dict[str, Losses]:
        """Nats a token of every held-out row, by domain."""
        return {
            domain: row_losses(decoder, ids_NS, batch=self.batch).double().numpy()
            for domain, ids_NS in self.held_out.items()
        }

    def plan_losses(self, plan: DepthPlan) -> dict[str, Losses]:
        return self.losses(arrange(self.decoder, plan))

    @property
    def layers(self) -> int:
        return self.decoder.config.layers

    @property
    def edges(self) -> tuple[int, int]:
        return 0, self.layers - 1


def both(losses: Mapping[str, Losses]) -> Losses:
    """The rows of all domains, one after the other."""
    return np.concatenate([losses[domain] for domain in sorted(losses)])


def perplexity(losses: Losses) -> float:
    return math.exp(min(float(losses.mean()), 50.0))


def texts() -> dict[str, str]:
    """The documents that lie beside the examples, by domain, and Python's language reference."""
    found = {
        domain: "\n\n".join(
            path.read_text(encoding="utf-8") for path in sorted((DOCUMENTS / domain).glob("*.md"))
        )
        for domain in ("jargon", "constitution")
    }
    return {**found, "python": "\n\n".join(python_reference())}


def smollm(bench: Bench) -> Bed:
    """SmolLM2-135M in bf16; rows of 256 tokens."""
    model = load(dtype="bf16")
    rows = {name: rows_of(model.tokenizer, [text], 256) for name, text in texts().items()}
    jargon = split(rows["jargon"], "jargon")
    python = split(rows["python"], "python")
    fitted = torch.cat([python.fitted_NS[: len(jargon.fitted_NS)], jargon.fitted_NS])
    order = [i for pair in zip(*torch.arange(len(fitted)).chunk(2), strict=False) for i in pair]
    count = bench.pick(full=5, smoke=1)
    return Bed(
        "SmolLM2-135M",
        plain(model.decoder),
        fitted[torch.stack(order)],
        {"jargon": jargon.held_out_NS[:count], "constitution": rows["constitution"][:count]},
        batch=1,
        model=model,
    )


def small(bench: Bench, *, seed: int = 0) -> Bed:
    """A byte-level Llama of 12 blocks (6 in a smoke), trained for about a minute."""
    layers = bench.pick(full=12, smoke=6)
    steps = bench.pick(full=450, smoke=40)
    config = tiny_config(hidden=bench.pick(full=72, smoke=48), layers=layers, context=256)
    rows = {
        name: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
        for name, text in texts().items()
    }
    cut = {name: ids[: len(ids) // 65 * 65].view(-1, 65) for name, ids in rows.items()}
    jargon, python = (split(cut[name], name) for name in ("jargon", "python"))
    fitted = torch.cat([jargon.fitted_NS, python.fitted_NS])
    fitted = fitted[torch.from_numpy(bench.generator("small", seed).permutation(len(fitted)))]
    model = ByteLlama(config, seed=bench.seed_of("small", seed) % 2**31)
    adam = torch.optim.AdamW(model.parameters.values(), lr=3e-3, betas=(0.9, 0.99))
    for step in bench.track(range(steps), "Training the small model"):
        for group in adam.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 40) * (1 - step / steps) + 1e-5
        start = step * 16 % (len(fitted) - 16)
        loss = model.loss(fitted[start : start + 16])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters.values(), 1.0)
        adam.step()
        adam.zero_grad()
    weights = {name: tensor.detach() for name, tensor in model.parameters.items()}
    held = bench.pick(full=96, smoke=8)
    return Bed(
        f"byte-level Llama, {layers} blocks",
        Decoder(config, weights),
        fitted,
        {"jargon": jargon.held_out_NS[:held], "constitution": cut["constitution"][:held]},
        batch=16,
    )
