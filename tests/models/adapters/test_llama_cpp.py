"""llama.cpp loads what export_gguf writes and answers as our decoder does through the adapter."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.core.protocols import Request, Sampling, Segment
from shoal.engine.local import LocalEngine
from shoal.models.adapters.gguf import export_gguf
from shoal.models.adapters.registry import new
from shoal.models.catalog import DEFAULT, find
from shoal.models.loading import load

PROMPT = "The quick brown fox jumps over"


def llama_cpp(weights: Path, adapter: Path) -> str:
    """Twelve greedy tokens."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.n_ctx, params.n_parallel, params.kv_unified = 256, 1, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = -1
    info = xllamacpp.CommonAdapterLoraInfo()
    info.path, info.scale = str(adapter), 1.0
    params.lora_adapters = [info]
    server = xllamacpp.Server(params)
    body = {"prompt": PROMPT, "n_predict": 12, "temperature": 0, "ignore_eos": True}
    reply: Any = server.handle_completions(body)
    reply = json.loads(reply) if isinstance(reply, str) else reply
    reply = reply[0] if isinstance(reply, list) else reply
    return str(reply.get("content") or reply["choices"][0]["text"])


@pytest.mark.slow
@pytest.mark.model
def test_llama_cpp_answers_through_an_exported_adapter(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = load(dtype="fp32")
    adapter = new("mos", model.decoder, e=2, r=4, p=1, l=4, alpha=4)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in adapter.tensors.items():
            if name.endswith("B"):
                tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.1)
    export_gguf(adapter, tmp_path / "one.gguf", model.config)
    weights = find(DEFAULT).path
    engine = LocalEngine(model)
    engine.adapters.add("one", adapter)

    async def ours(name: str | None) -> str:
        sampling = Sampling(max_tokens=12, ignore_eos=True)
        (done,) = await engine.generate([Request((Segment(PROMPT),), sampling, adapter=name)])
        return done.text

    async def both() -> tuple[str, str]:
        found = await ours(None), await ours("one")
        await engine.close()
        return found

    bare, through = asyncio.run(both())
    assert bare != through
    assert llama_cpp(weights, tmp_path / "one.gguf") == through
