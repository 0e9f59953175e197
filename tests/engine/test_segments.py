"""Moving keys and values: rotation is exact, and what is moved unchanged changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import EngineError
from shoal.core.protocols import Request, Sampling
from shoal.engine.generation import Composition, Piece
from shoal.engine.local import LocalEngine
from shoal.engine.repair import KINDS, Kind, Repair
from shoal.engine.segments import KVSegment
from shoal.models.loading import load

TOKENS = tuple(b"A shoal of fish moves as one, and nobody leads.")
DOCUMENT = tuple(b"Sardines travel in numbers; herring keep their distance in the dark.")


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> LocalEngine:
    return LocalEngine(load(str(tiny_model), dtype="fp32"), kv_bytes=32 << 20)


def ask(*pieces: Piece, new: int = 12, repair: Repair | None = None) -> Composition:
    return Composition(Request((), Sampling(max_tokens=new, ignore_eos=True)), pieces, repair)


async def test_a_run_moved_to_where_it_was_computed_changes_nothing(engine: LocalEngine) -> None:
    before, document, after = Piece(TOKENS), Piece(DOCUMENT), Piece(TOKENS[:5])
    moved = Piece(DOCUMENT, await engine.capture(TOKENS + DOCUMENT, len(TOKENS)))
    exact, composed = await engine.compose(
        [ask(before, document, after), ask(before, moved, after)]
    )
    assert composed.tokens == exact.tokens
    assert composed.usage.approx_tokens == len(DOCUMENT)
    assert composed.usage.shared_tokens == len(TOKENS)
    assert composed.usage.computed_prompt_tokens == 5
    assert composed.how == f"moved {len(DOCUMENT)} of {len(TOKENS + DOCUMENT) + 5} prompt tokens"
    assert exact.how == "exact"


async def test_a_run_alone_is_the_same_at_any_position(engine: LocalEngine) -> None:
    """Where nothing stands before it, only the rotation tells positions apart."""
    decoder, pool = engine.model.decoder, engine._pool
    alone = await engine.capture(DOCUMENT)
    far = torch.arange(100, 100 + len(DOCUMENT))
    from shoal.models.rope import rotate

    cos, sin = decoder.rotation(far)
    rotated = rotate(alone.keys_LTKd, cos, sin)
    seen = {}

    def attend(layer: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        from shoal.models.decoder import causal_attend

        seen[layer] = kv.clone()
        return causal_attend(layer, q, kv)

    with torch.inference_mode():
        decoder.forward(torch.tensor(DOCUMENT), far, attend)
    assert pool.slab.dtype == torch.float32
    for layer, kv in seen.items():
        torch.testing.assert_close(kv[:, 0], rotated[layer], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(kv[:, 1], alone.values_LTKd[layer], atol=1e-4, rtol=1e-4)


async def test_nothing_approximate_is_found_by_others(engine: LocalEngine) -> None:
    document = Piece(DOCUMENT, await engine.capture(DOCUMENT))
    start, end = Piece(tuple(b"An opening nobody used. ")), Piece(tuple(b" And then?"))
    (approximate,) = await engine.compose([ask(start, document, end)])
    whole = start.tokens + DOCUMENT + end.tokens
    (exact,) = await engine.compose([ask(Piece(whole))])
    assert exact.usage.shared_tokens == len(start.tokens)
    (again,) = await engine.compose([ask(Piece(whole))])
    assert again.tokens == exact.tokens
    assert again.usage.shared_tokens >= len(whole) - 1
    assert approximate.usage.approx_tokens == len(DOCUMENT)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
async def test_repairing_everything_is_exact(engine: LocalEngine, kind: Kind) -> None:
    document = Piece(DOCUMENT, await engine.capture(DOCUMENT))
    end = Piece(tuple(b" What follows?"))
    whole = ask(Piece(TOKENS), document, end, repair=Repair(kind, share=1))
    exact, repaired = await engine.compose([ask(Piece(TOKENS + DOCUMENT + end.tokens)), whole])
    assert repaired.tokens == exact.tokens
    assert repaired.usage.repaired_tokens == len(DOCUMENT)
    assert repaired.usage.approx_tokens == 0


async def test_a_repair_computes_no_more_than_its_share(engine: LocalEngine) -> None:
    document = Piece(DOCUMENT, await engine.capture(DOCUMENT))
    group = [
        ask(Piece(TOKENS), document, Piece(TOKENS[:3]), repair=Repair(kind, share=0.25))
        for kind in ("dhd", "deviation", "random")
    ]
    for done in await engine.compose(group):
        assert done.usage.repaired_tokens == -(-len(DOCUMENT) // 4)
        assert len(done.tokens) == 12


async def test_the_first_tokens_of_a_run_are_repaired_first(engine: LocalEngine) -> None:
    document = Piece(DOCUMENT, await engine.capture(DOCUMENT))
    seen: list[torch.Tensor] = []

    class Look:
        def prefilled(self, job) -> None:  # type: ignore[no-untyped-def]
            seen.append(job.repaired.selected)

        def ending(self, job) -> None: ...  # type: ignore[no-untyped-def]

    one = ask(Piece(TOKENS), document, Piece(TOKENS[:3]), repair=Repair("first", share=0.1))
    await engine.compose([Composition(one.request, one.pieces, one.repair, Look())])
    assert seen[0].tolist() == list(range(7))


async def test_pieces_of_another_model_are_refused(engine: LocalEngine) -> None:
    segment = await engine.capture(DOCUMENT)
    other = KVSegment(segment.tokens, segment.keys_LTKd, segment.values_LTKd, "another")
    (refused,) = await engine.compose([ask(Piece(DOCUMENT, other), Piece(TOKENS))])
    assert refused.finish == "error" and "another model" in (refused.error or "")
    (refused,) = await engine.compose([ask(Piece(DOCUMENT, segment))])
    assert "must be computed" in (refused.error or "")
    (refused,) = await engine.unshared().compose([ask(Piece(DOCUMENT, segment), Piece(TOKENS))])
    assert "shares nothing" in (refused.error or "")


async def test_a_segment_survives_the_disk_and_a_damaged_one_is_refused(
    engine: LocalEngine, tmp_path: Path
) -> None:
    segment = await engine.capture(DOCUMENT)
    path = tmp_path / "document.safetensors"
    segment.save(path)
    again = KVSegment.load(path)
    assert again.tokens == segment.tokens and again.fingerprint == segment.fingerprint
    assert torch.equal(again.keys_LTKd, segment.keys_LTKd)
    damaged = bytearray(path.read_bytes())
    damaged[-40] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(EngineError, match="damaged"):
        KVSegment.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EngineError, match="cannot be read"):
        KVSegment.load(path)


@settings(max_examples=20)
@given(at=st.integers(0, 20))
def test_slices_join_to_the_whole(at: int) -> None:
    torch.manual_seed(0)
    whole = KVSegment(tuple(range(20)), torch.randn(2, 20, 3, 4), torch.randn(2, 20, 3, 4), "m")
    joined = whole.slice(0, at).concat(whole.slice(at, 20))
    assert joined.tokens == whole.tokens
    assert torch.equal(joined.keys_LTKd, whole.keys_LTKd)
    with pytest.raises(ValueError, match="different models"):
        joined.concat(KVSegment((), whole.keys_LTKd[:, :0], whole.values_LTKd[:, :0], "n"))


async def test_all_blocks_come_back(engine: LocalEngine) -> None:
    document = Piece(DOCUMENT, await engine.capture(DOCUMENT))
    group = [ask(Piece(TOKENS), document, Piece(TOKENS[:n]), repair=Repair()) for n in (1, 2, 3)]
    await engine.compose(group)
    assert engine.load.running == engine.load.waiting == engine.load.pinned_bytes == 0
