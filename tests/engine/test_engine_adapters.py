"""Adapters in the engine: one batch for all, nobody's cache for anybody else."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from shoal.core.errors import EngineError, InputError, ModelError
from shoal.core.protocols import Completion, Request, Sampling, Segment
from shoal.engine.adapters import EngineAdapters
from shoal.engine.generation import Composition, Piece
from shoal.engine.kvcomm.engine import KVComm
from shoal.engine.kvshare.sharing import attach
from shoal.engine.local import LocalEngine
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.files import save
from shoal.models.adapters.peft import export_peft
from shoal.models.adapters.registry import new
from shoal.models.loading import Model, load

PROMPT = tuple(range(20, 60))


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load(str(tiny_model), dtype="fp32")


def adapter(model: Model, seed: int, kind: str = "mos") -> Adapter:
    sizes = {"e": 2, "r": 3, "p": 1, "l": 4} if kind == "mos" else {"rank": 3}
    made = new(kind, model.decoder, seed=seed, **sizes)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in made.tensors.values():
            tensor.add_(torch.randn(tensor.shape, generator=random) * 0.2)
    return made


@pytest.fixture
def adapters(model: Model) -> EngineAdapters:
    made = EngineAdapters(model.decoder)
    for seed in range(3):
        made.add(f"a{seed}", adapter(model, seed))
    made.add("plain", adapter(model, 7, "lora"))
    return made


def asked(name: str | None, tokens: Sequence[int] = PROMPT, **more: object) -> Request:
    sampling = Sampling(max_tokens=6, logprobs=0, ignore_eos=True)
    return Request((Segment(tokens=tuple(tokens)),), sampling, adapter=name, **more)  # type: ignore[arg-type]


def answer(engine: LocalEngine, requests: Sequence[Request]) -> list[Completion]:
    async def go() -> list[Completion]:
        try:
            return await engine.generate(requests)
        finally:
            await engine.close()

    return asyncio.run(go())


def logprobs(done: Completion) -> list[float]:
    assert done.error is None
    return [one.logprob for one in done.logprobs]


NAMES = ["a0", None, "a1", "a2", "plain", "a1"]


@pytest.mark.parametrize("sharing", [True, False])
def test_a_mixed_batch_answers_as_merged_models_do(
    model: Model, adapters: EngineAdapters, sharing: bool
) -> None:
    requests = [asked(name, (*PROMPT, 60 + place)) for place, name in enumerate(NAMES)]
    found = answer(LocalEngine(model, sharing=sharing, adapters=adapters), requests)
    for name, request, done in zip(NAMES, requests, found, strict=True):
        decoder = model.decoder
        if name is not None:
            weights = adapters.find(name).adapter.merged_weights(decoder)
            decoder = type(decoder)(model.config, weights)
        alone = LocalEngine(dataclasses.replace(model, decoder=decoder))
        (expected,) = answer(alone, [dataclasses.replace(request, adapter=None)])
        assert done.tokens == expected.tokens
        assert logprobs(done) == pytest.approx(logprobs(expected), abs=1e-4)


def test_cache_never_crosses_adapters(model: Model, adapters: EngineAdapters) -> None:
    engine = LocalEngine(model, adapters=adapters)

    async def go() -> list[int]:
        shared = []
        for name in ("a0", "a0", "a1", None, None, "a0"):
            (done,) = await engine.generate([asked(name)])
            shared.append(done.usage.shared_tokens)
        adapters.add("a0", adapters.find("a1").adapter)  # another under the same name
        (done,) = await engine.generate([asked("a0")])
        await engine.close()
        return [*shared, done.usage.shared_tokens]

    assert asyncio.run(go()) == [0, 40, 0, 0, 40, 40, 0]


def test_requests_of_one_adapter_share_within_a_batch(
    model: Model, adapters: EngineAdapters
) -> None:
    engine = LocalEngine(model, adapters=adapters)
    answer(engine, [asked(name, (*PROMPT, 99 + n)) for n in range(3) for name in ("a0", "a1")])
    decoded = engine.counters.tokens_generated - 6  # the last one is never computed
    assert engine.counters.tokens_computed == 2 * (40 + 3) + decoded


def test_a_client_cannot_spell_an_adapters_scope(model: Model, adapters: EngineAdapters) -> None:
    one, other = adapters.find("a0"), EngineAdapters(model.decoder)
    other.add("a0", one.adapter)
    assert one.scope("tenant").startswith("tenant/")
    assert other.find("a0").scope("tenant") != one.scope("tenant")


def test_scores_go_through_the_adapter(model: Model, adapters: EngineAdapters) -> None:
    engine = LocalEngine(model, adapters=adapters)
    prefix = (Segment(tokens=PROMPT),)

    async def go() -> tuple[float, float, float]:
        bare = (await engine.score(prefix, ["abc"]))[0].logprob
        through = (await engine.score(prefix, ["abc"], adapter="a2"))[0].logprob
        again = (await engine.score(prefix, ["abc"]))[0].logprob
        await engine.close()
        return bare, through, again

    bare, through, again = asyncio.run(go())
    assert bare == pytest.approx(again, abs=1e-4)
    assert abs(bare - through) > 0.01
    weights = adapters.find("a2").adapter.merged_weights(model.decoder)
    merged = dataclasses.replace(model, decoder=type(model.decoder)(model.config, weights))
    other = LocalEngine(merged)

    async def alone() -> float:
        found = (await other.score(prefix, ["abc"]))[0].logprob
        await other.close()
        return found

    assert through == pytest.approx(asyncio.run(alone()), abs=1e-4)


def test_an_adapter_that_is_not_there_fails_alone(model: Model, adapters: EngineAdapters) -> None:
    good, bad = answer(LocalEngine(model, adapters=adapters), [asked("a0"), asked("a9")])
    assert good.error is None
    assert bad.error is not None
    assert "There is no adapter 'a9'. Did you mean" in bad.error
    assert "Loaded are a0, a1, a2, plain." in bad.error
    (none,) = answer(LocalEngine(model), [asked("a0")])
    assert none.error == "There is no adapter 'a0': none are loaded here."


def test_moved_cache_is_refused_or_left_alone(model: Model, adapters: EngineAdapters) -> None:
    engine = LocalEngine(model, adapters=adapters)
    attach(engine)

    async def go() -> tuple[Completion, Completion, Completion]:
        segment = await engine.capture(PROMPT)
        pieces = (Piece(PROMPT, segment), Piece((7, 8)))
        (moved,) = await engine.compose([Composition(asked("a0"), pieces)])
        (approx,) = await engine.generate([asked("a0", reuse="approx")])
        comm = KVComm(engine)
        (exact,) = await comm.generate([asked("a0")])
        await engine.close()
        return moved, approx, exact

    moved, approx, exact = asyncio.run(go())
    assert moved.error is not None and "not the adapter's" in moved.error
    assert approx.how == exact.how == "exact"
    assert approx.tokens == exact.tokens
    assert exact.usage.approx_tokens == 0


def test_a_folder_of_adapters_is_served(model: Model, tmp_path: Path) -> None:
    save(adapter(model, 1), tmp_path / "ours.safetensors")
    export_peft(adapter(model, 1), tmp_path / "theirs")
    (tmp_path / "notes.txt").write_text("not an adapter")
    served = EngineAdapters(model.decoder)
    served.load_folder(tmp_path)
    assert served.names == ("ours", "theirs")
    ours, theirs = answer(LocalEngine(model, adapters=served), [asked("ours"), asked("theirs")])
    assert ours.tokens == theirs.tokens
    assert logprobs(ours) == pytest.approx(logprobs(theirs), abs=1e-4)


def test_folders_that_cannot_be_served_are_refused(model: Model, tmp_path: Path) -> None:
    served = EngineAdapters(model.decoder)
    with pytest.raises(InputError, match="no folder of adapters"):
        served.load_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no adapters"):
        served.load_folder(tmp_path)
    (tmp_path / "a b.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is called 'a b': name it by letters"):
        served.load_folder(tmp_path)
    (tmp_path / "a b.safetensors").rename(tmp_path / "torn.safetensors")
    with pytest.raises(ModelError, match="no adapter that can be read"):
        served.load_folder(tmp_path)


def test_what_is_resident_is_counted(model: Model, adapters: EngineAdapters) -> None:
    stored = sum(adapters.find(name).adapter.nbytes for name in adapters.names)
    assert adapters.resident_bytes == stored
    answer(LocalEngine(model, adapters=adapters), [asked("a0"), asked("a1")])
    counters = adapters.bank.counters
    assert counters.assembled == 2
    assert counters.hits > 0
    assert adapters.switches >= 1
    with pytest.raises(EngineError, match="no adapter 'gone'"):
        adapters.remove("gone")
    adapters.remove("a0")
    assert adapters.names == ("a1", "a2", "plain")


def test_a_model_with_an_adapter_attached_takes_no_others(model: Model) -> None:
    one = adapter(model, 1)
    attached = one.over(model.decoder)
    with pytest.raises(EngineError, match="carries an adapter already"):
        EngineAdapters(attached).add("two", one)


def test_serving_in_another_number_format_leaves_the_adapter_as_it_is(
    model: Model, tiny_model: Path
) -> None:
    one = adapter(model, 1)
    half = load(str(tiny_model), dtype="bf16")
    served = EngineAdapters(half.decoder)
    served.add("one", one)
    assert all(tensor.dtype == torch.float32 for tensor in one.tensors.values())
    assert served.resident_bytes == one.nbytes // 2
    (done,) = answer(LocalEngine(half, adapters=served), [asked("one")])
    assert done.error is None


def test_an_adapter_that_learns_is_served_as_it_learns(model: Model) -> None:
    one = adapter(model, 1)
    served = EngineAdapters(model.decoder)
    served.add("one", one)
    engine = LocalEngine(model, adapters=served)

    async def go() -> tuple[list[float], list[float]]:
        (before,) = await engine.generate([asked("one")])
        with torch.no_grad():
            for tensor in one.tensors.values():
                tensor.mul_(1.5)
        (after,) = await engine.generate([asked("one", salt="new weights")])
        await engine.close()
        return logprobs(before), logprobs(after)

    before, after = asyncio.run(go())
    assert abs(before[0] - after[0]) > 1e-3
