"""Many adapters on one model: bytes that are resident, and answers a second in a mixed batch."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shoal.core.protocols import Request, Sampling, Segment
from shoal.core.rng import generator
from shoal.engine.adapters import EngineAdapters
from shoal.engine.compute import compute
from shoal.engine.local import LocalEngine
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.peft import export_peft
from shoal.models.adapters.registry import new
from shoal.models.export import unfuse
from shoal.models.loading import Model

BANK = 1 << 30


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of a round: one for each adapter, all different, so that none share a prefix."""

    adapters: int
    prompt: int
    answer: int

    def requests(self, model: Model, names: Sequence[str | None]) -> list[Request]:
        """One request a name; prompts of random tokens."""
        random = generator("prompts", self.prompt)
        ids = random.integers(100, model.config.vocab - 100, (len(names), self.prompt))
        sampling = Sampling(max_tokens=self.answer, ignore_eos=True)
        return [
            Request((Segment(tokens=tuple(map(int, row))),), sampling, adapter=name)
            for row, name in zip(ids, names, strict=True)
        ]


def learned(kind: str, model: Model, seed: int, **options: Any) -> Adapter:
    """An adapter whose B is not zero, as if it had learned something small."""
    adapter = new(kind, model.decoder, seed=seed, **options)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in adapter.tensors.items():
            if name.endswith("B"):
                tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.002)
    return adapter


def resident(model: Model, load: Load, kind: str, **options: Any) -> EngineAdapters:
    """An engine's adapters: as many of this kind as the load has."""
    found = EngineAdapters(model.decoder, limit_bytes=BANK)
    for number in range(load.adapters):
        found.add(f"agent-{number}", learned(kind, model, number, **options))
    return found


class Served:
    """An engine with these adapters, asked round by round; no round finds another's cache."""

    def __init__(self, model: Model, load: Load, adapters: EngineAdapters | None) -> None:
        self.engine = compute.call(lambda: LocalEngine(model, adapters=adapters))
        names = adapters.names if adapters else (None,) * load.adapters
        self._requests, self._round = load.requests(model, names), 0

    def round(self) -> None:
        """Answer everybody once."""
        self._round += 1
        requests = [replace(one, salt=f"round {self._round}") for one in self._requests]
        found = asyncio.run(self.engine.generate(requests))
        failed = [one.error for one in found if one.error]
        assert not failed, failed[0]


class Peft:
    """The same load in PEFT: transformers' model in the same numbers, adapters named by row."""

    def __init__(self, model: Model, load: Load, **options: Any) -> None:
        from peft import PeftModel
        from transformers import AutoConfig, AutoModelForCausalLM

        from shoal.models.export import hub_config

        settings = hub_config(model.config)
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        auto: Any = AutoModelForCausalLM
        base = auto.from_config(config).to(model.dtype).eval()
        own = dict(base.named_parameters())
        with torch.no_grad():
            for name, tensor in unfuse(model.config, model.decoder.weights):
                own[name].copy_(tensor)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            export_peft(learned("lora", model, 0, **options), path)
            self._model: Any = PeftModel.from_pretrained(base, str(path), adapter_name="agent-0")
            for number in range(1, load.adapters):
                self._model.load_adapter(str(path), adapter_name=f"agent-{number}")
        self._model.to(model.dtype)
        names = [f"agent-{number}" for number in range(load.adapters)]
        asked = load.requests(model, names)
        self._ids = torch.tensor([one.prompt[0].tokens for one in asked])  # type: ignore[union-attr]
        self._names, self._answer = names, load.answer

    @property
    def nbytes(self) -> int:
        """Bytes of all adapters."""
        return sum(t.nbytes for name, t in self._model.named_parameters() if "lora_" in name)

    @torch.inference_mode()
    def round(self) -> None:
        """Answer everybody once."""
        self._model.generate(
            input_ids=self._ids,
            attention_mask=torch.ones_like(self._ids),
            adapter_names=self._names,
            max_new_tokens=self._answer,
            min_new_tokens=self._answer,
            do_sample=False,
        )
