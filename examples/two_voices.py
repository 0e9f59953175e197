"""Two agents over one model: an adapter each, trained in one step, answering in one batch.

    python examples/two_voices.py [FOLDER]

Each agent's MoS adapter learns a document of the examples for a few steps, with the model's weights
frozen and both agents' rows in every step. The adapters are written to FOLDER, from where
``shoal serve --adapters FOLDER`` takes them, and answer next to the bare model. Takes about 15 s.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import torch

from shoal.core.protocols import Request, Sampling, Segment
from shoal.engine.local import LocalEngine
from shoal.models.adapters.files import save
from shoal.models.adapters.mixed import mixed
from shoal.models.adapters.registry import new
from shoal.models.decoder import Decoder
from shoal.models.loading import load
from shoal.training.byte_llama import row_losses
from shoal.training.optimiser import Optimiser, OptimiserOptions

DOCUMENTS = Path(__file__).parent / "documents"
VOICES = {
    "framer": DOCUMENTS / "constitution" / "1-articles.md",
    "hacker": DOCUMENTS / "jargon" / "10-hacker-folklore.md",
}
LENGTH, STEPS = 49, 4


def learn(folder: Path) -> None:
    """Train both adapters in one step after the other, and write them."""
    model = load(dtype="fp32")
    decoder = Decoder(model.config, model.decoder.weights)
    adapters = {name: new("mos", decoder, e=2, r=8, p=1, l=4) for name in VOICES}
    optimisers = [Optimiser(a.trainable(), OptimiserOptions(lr=3e-3)) for a in adapters.values()]
    texts = [
        model.tokenizer.encode(path.read_text(encoding="utf-8"), special=False)
        for path in VOICES.values()
    ]
    together = mixed(decoder, [(adapter, LENGTH - 1) for adapter in adapters.values()])
    for step in range(STEPS):
        first = 400 + step * LENGTH
        rows = torch.tensor([tokens[first : first + LENGTH] for tokens in texts])
        losses = row_losses(together, rows)
        losses.sum().backward()
        for optimiser in optimisers:
            optimiser.step()
        told = ", ".join(f"{n} {x:.2f}" for n, x in zip(VOICES, losses.tolist(), strict=True))
        print(f"step {step + 1}: {told} nats a token")
    for name, adapter in adapters.items():
        save(adapter, folder / f"{name}.safetensors")


async def answer(folder: Path) -> None:
    """One prompt for each adapter and for the model itself, in one batch."""
    engine = LocalEngine.open()
    engine.adapters.load_folder(folder)
    names = [None, *engine.adapters.names]
    sampling = Sampling(max_tokens=16)
    prompt = (Segment("The power of"),)
    found = await engine.generate([Request(prompt, sampling, adapter=name) for name in names])
    for name, one in zip(names, found, strict=True):
        print(f"{name or 'the model'}: The power of{one.text!r}")
    each = engine.adapters.resident_bytes / len(VOICES)
    whole = sum(tensor.nbytes for tensor in engine.model.decoder.weights.values())
    print(f"{len(VOICES)} adapters over one model, {each / whole:.2%} of its bytes each.")
    await engine.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        learn(target)
        asyncio.run(answer(target))
