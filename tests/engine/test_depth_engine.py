"""Depth plans in the engine: right with a cache, several at once, caches never mixed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shoal.core.errors import ConfigError
from shoal.core.protocols import Request, Sampling, Segment
from shoal.engine.generation import Composition, Piece
from shoal.engine.local import LocalEngine
from shoal.models.adapters.registry import new
from shoal.models.decoder import Decoder, causal_attend
from shoal.models.depth.arrange import planned
from shoal.models.depth.plan import DepthPlan, Step
from shoal.models.export import write_folder
from shoal.models.loading import Model, load

FOLDED = DepthPlan(5, (Step(0, 0), Step(1, 1), Step(1, 2), Step(3, 3), Step(4, 4)))
THREE = DepthPlan(5, (Step(0, 0), Step(2, 1), Step(2, 2), Step(2, 3), Step(4, 4)))
SHORT = DepthPlan.whole(5).without([2])
PROMPT = "Nets and knots: who mends the net before the tide? "


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Five random blocks, large enough to matter, over bytes."""
    tiny = load(str(tiny_model), dtype="fp32")
    random = torch.Generator().manual_seed(5)
    weights = {k: v for k, v in tiny.decoder.weights.items() if not k.startswith("layers.")}
    for index in range(5):
        for name, tensor in tiny.decoder.weights.items():
            if name.startswith("layers.0."):
                own = torch.randn(tensor.shape, generator=random)
                own = 1 + 0.3 * own if "norm" in name else 0.3 * own
                weights[f"layers.{index}.{name.removeprefix('layers.0.')}"] = own
    folder = tmp_path_factory.mktemp("five") / "five"
    write_folder(
        folder,
        replace(tiny.config, layers=5),
        weights,
        tokenizer=tiny.tokenizer.backend.to_str(),
        chat_template=tiny.chat.template,
    )
    (folder / "tokenizer_config.json").write_text(
        (tiny_model / "tokenizer_config.json").read_text()
    )
    return load(str(folder), dtype="fp32")


def generate(engine: LocalEngine, prompt: str = PROMPT, tokens: int = 24) -> str:
    request = Request((Segment(prompt),), Sampling(max_tokens=tokens, ignore_eos=True))
    (answer,) = asyncio.run(engine.generate([request]))
    assert answer.error is None
    return answer.text


def greedy(decoder: Decoder, ids: list[int], tokens: int) -> list[int]:
    """Without any cache: the whole text through all steps for every token."""
    with torch.inference_mode():
        for _ in range(tokens):
            all_ids = torch.tensor(ids)
            hidden = decoder.forward(all_ids, torch.arange(len(ids)), causal_attend)
            scores = decoder.logits(hidden[-1:])[0]
            scores[257] = float("-inf")
            ids = [*ids, int(scores.argmax())]
    return ids[-tokens:]


@pytest.mark.parametrize("plan", [FOLDED, THREE, SHORT], ids=str)
def test_a_plan_answers_with_a_cache_what_it_answers_without(model: Model, plan: DepthPlan) -> None:
    engine = LocalEngine(model).planned(plan)
    expected = greedy(engine.model.decoder, engine.encode((Segment(PROMPT),)), 24)
    assert generate(engine) == model.tokenizer.decode(expected)
    assert generate(engine) == model.tokenizer.decode(expected)  # from the prefix tree


def test_several_plans_run_at_once_and_each_answers_as_it_does_alone(model: Model) -> None:
    base = LocalEngine(model)
    engines = [base, *(base.planned(plan) for plan in (FOLDED, THREE, SHORT))]
    alone = [generate(LocalEngine(engine.model)) for engine in engines]
    assert len(set(alone)) == 4  # the plans differ

    async def together() -> list[str]:
        request = Request((Segment(PROMPT),), Sampling(max_tokens=24, ignore_eos=True))
        jobs = [engine.generate([request, request]) for engine in engines for _ in range(2)]
        answers = await asyncio.gather(*jobs)
        return [answer.text for group in answers for answer in group]

    assert asyncio.run(together()) == [text for text in alone for _ in range(4)]


def test_every_executed_block_has_a_place_in_the_cache(model: Model) -> None:
    base = LocalEngine(model)
    assert base.planned(THREE).token_bytes == base.token_bytes  # five steps, three blocks
    assert base.planned(SHORT).token_bytes == base.token_bytes * 4 // 5
    slab = base.planned(THREE)._pool.slab
    assert slab.shape[0] == 5


def test_keys_and_values_of_one_plan_are_refused_by_another(model: Model) -> None:
    base = LocalEngine(model)
    folded = base.planned(FOLDED)
    tokens = base.encode((Segment(PROMPT),))
    segment = asyncio.run(base.capture(tokens))
    pieces = (Piece(tuple(tokens), segment), Piece((5, 6)))
    request = Request((), Sampling(max_tokens=2))
    (done,) = asyncio.run(folded.compose([Composition(request, pieces)]))
    assert done.error is not None and "computed by another model" in done.error


def test_a_plan_of_another_base_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="for a base of 6 blocks"):
        LocalEngine(model).planned(DepthPlan.whole(6))


def test_a_cured_plan_answers_with_a_cache_what_it_answers_without(model: Model) -> None:
    folded = planned(model, FOLDED)
    adapter = new("lora", folded.decoder, rank=4)
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, tensor in adapter.trainable().items():
            if name.endswith(".B"):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=random))
    cured = replace(folded, decoder=adapter.over(folded.decoder), fingerprint="cured")
    engine = LocalEngine(cured)
    expected = greedy(cured.decoder, engine.encode((Segment(PROMPT),)), 24)
    assert generate(engine) == model.tokenizer.decode(expected)
    assert generate(LocalEngine(folded)) != generate(engine)
