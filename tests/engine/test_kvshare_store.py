"""The store: scopes, quotas, what is evicted, and what survives a damaged disk."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import ConfigError, EngineError
from shoal.engine.kvshare.chunks import digest
from shoal.engine.kvshare.store import Behind, Entry, SegmentStore
from shoal.engine.kvshare.tenants import PUBLIC, Access, AccessDenied, Scope, Tenants, tenant_of
from shoal.engine.segments import KVSegment

MODEL = "a-model"
TOKEN_BYTES = 2 * 2 * 1 * 4 * 4  # keys and values, layers, heads, head size, fp32
A, B = Scope("private", "a"), Scope("private", "b")


def segment(tokens: tuple[int, ...], model: str = MODEL) -> KVSegment:
    draw = torch.Generator().manual_seed(sum(tokens))
    keys, values = torch.randn(2, 2, len(tokens), 1, 4, generator=draw)
    return KVSegment(tokens, keys, values, model)


def text(seed: int, length: int = 20) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(1000) for _ in range(length))


def put(store: SegmentStore, tokens: tuple[int, ...], scope: Scope = A, **settings: object) -> bool:
    chosen = {"owner": scope.name, "seconds": 0.02, **settings}
    return store.put(segment(tokens), digest(tokens), scope, **chosen)  # type: ignore[arg-type]


def find(store: SegmentStore, tokens: tuple[int, ...], *scopes: Scope) -> Entry | None:
    return store.find(digest(tokens), tokens, 0, len(tokens), scopes)


def test_a_segment_is_found_in_the_scopes_that_are_asked_and_no_other() -> None:
    store = SegmentStore(MODEL)
    assert put(store, text(1), A)
    assert put(store, text(2), PUBLIC, owner="a")
    assert find(store, text(1), A) is not None
    assert find(store, text(1), B, PUBLIC) is None
    assert find(store, text(2), B, PUBLIC) is not None
    assert find(store, text(2), B) is None


def test_only_equal_tokens_lend_their_cache_even_where_digests_collide() -> None:
    store = SegmentStore(MODEL)
    put(store, text(1))
    other = (*text(1)[:-1], 1001)
    assert store.find(digest(text(1)), other, 0, len(other), [A]) is None


def test_a_declared_segment_is_found_behind_its_own_text_only() -> None:
    """Nobody can put words before a well-known text that others then read."""
    store = SegmentStore(MODEL)
    whole = text(1, 60)
    part = whole[20:40]
    put(store, part, PUBLIC, owner="a", behind=Behind(whole, 20))
    other = (9, *whole)
    assert store.find(digest(part), other, 21, 41, [PUBLIC]) is not None
    assert store.find(digest(part), part, 0, 20, [PUBLIC]) is None
    poisoned = (*text(2), *part)
    assert store.find(digest(part), poisoned, 20, 40, [PUBLIC]) is None
    # and somebody else's declaration of the same part does not stand in the way
    assert put(store, part, PUBLIC, owner="b", behind=Behind(poisoned, 20))
    found = store.find(digest(part), poisoned, 20, 40, [PUBLIC])
    assert found is not None
    assert found.owner == "b"


def test_a_segment_gives_way_to_one_that_is_nearer_to_exact() -> None:
    store = SegmentStore(MODEL)
    assert put(store, text(1), depth=1)
    assert not put(store, text(1), depth=1)
    assert put(store, text(1), depth=0)
    assert not put(store, text(1), depth=1)
    assert len(store) == 1
    entry = find(store, text(1), A)
    assert entry is not None
    assert entry.depth == 0


def test_what_saves_least_per_byte_and_request_goes_first() -> None:
    store = SegmentStore(MODEL, max_bytes=3 * 20 * TOKEN_BYTES)
    for seed in (1, 2, 3):
        assert put(store, text(seed), seconds=0.02 if seed != 2 else 0.01)
    one = find(store, text(1), A)
    assert one is not None
    store.count([one], missed=0)
    assert put(store, text(4))
    assert find(store, text(2), A) is None  # saves half of the others
    store.count([one], missed=0)
    assert put(store, text(5))
    assert find(store, text(3), A) is None  # was never hit, and is older than what is left
    assert find(store, text(1), A) is one
    assert store.counts.evicted == 2


def test_what_a_request_holds_is_not_evicted() -> None:
    store = SegmentStore(MODEL, max_bytes=20 * TOKEN_BYTES)
    put(store, text(1))
    entry = find(store, text(1), A)
    assert entry is not None
    store.hold([entry])
    assert not put(store, text(2))
    assert store.counts.refused == 1
    store.release([entry])
    assert put(store, text(2))
    assert find(store, text(1), A) is None


def test_a_quota_costs_its_own_tenant_only() -> None:
    store = SegmentStore(MODEL)
    quota = 2 * 20 * TOKEN_BYTES
    put(store, text(9), B)
    for seed in range(5):
        assert put(store, text(seed), quota=quota)
    assert find(store, text(9), B) is not None
    assert len(store) == 3
    assert not put(store, text(10, 60), quota=quota)
    assert len(store) == 3


def test_a_segment_larger_than_the_store_is_not_stored() -> None:
    store = SegmentStore(MODEL, max_bytes=TOKEN_BYTES)
    assert not put(store, text(1))
    assert store.bytes == 0


def test_segments_of_another_model_are_refused() -> None:
    with pytest.raises(EngineError, match="another model"):
        SegmentStore(MODEL).put(segment(text(1), "b-model"), b"", A, owner="a", seconds=1.0)


def test_private_text_of_others_is_noticed_and_ones_own_is_not() -> None:
    store = SegmentStore(MODEL)
    put(store, text(1), Scope("private", "a/narrow"))
    put(store, text(2), PUBLIC, owner="a")
    assert store.private_to_others([digest(text(1))], "b")
    assert not store.private_to_others([digest(text(1))], "a")
    assert not store.private_to_others([digest(text(2))], "b")


def test_a_tenant_can_be_forgotten() -> None:
    store = SegmentStore(MODEL)
    put(store, text(1), A)
    put(store, text(2), B)
    store.forget("a")
    assert [entry.owner for entry in store] == ["b"]
    assert store.bytes == 20 * TOKEN_BYTES


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 30), st.booleans()), max_size=60))
@settings(max_examples=100)
def test_bytes_are_what_is_stored_and_stay_within_bounds(
    steps: list[tuple[int, int, bool]],
) -> None:
    store = SegmentStore(MODEL, max_bytes=90 * TOKEN_BYTES)
    held: list[Entry] = []
    for seed, length, hold in steps:
        scope = A if seed % 2 else B
        put(store, text(seed, length), scope, quota=60 * TOKEN_BYTES)
        entry = find(store, text(seed, length), scope)
        if entry is not None and hold:
            store.hold([entry])
            held.append(entry)
        assert store.bytes == sum(entry.segment.nbytes for entry in store) <= store.max_bytes
        for owner in "ab":
            own = sum(entry.segment.nbytes for entry in store if entry.owner == owner)
            assert own <= 60 * TOKEN_BYTES
        assert all(entry in list(store) for entry in held)
    store.release(held)


# -- on disk --------------------------------------------------------------------------------


def full(folder: Path) -> SegmentStore:
    store = SegmentStore(MODEL)
    put(store, text(1), A)
    put(store, text(2), PUBLIC, owner="a", behind=Behind(text(3, 40) + text(2), 40))
    store.save(folder)
    return store


def test_a_store_survives_the_disk(tmp_path: Path) -> None:
    full(tmp_path / "kv")
    again = SegmentStore(MODEL)
    again.load(tmp_path / "kv")
    assert len(again) == 2
    entry = find(again, text(1), A)
    assert entry is not None
    assert torch.equal(entry.segment.keys_LTKd, segment(text(1)).keys_LTKd)
    declared = text(3, 40) + text(2)
    assert again.find(digest(text(2)), declared, 40, 60, [PUBLIC]) is not None
    assert (tmp_path / "kv").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_a_corrupt_segment_is_dropped_and_the_others_stay(tmp_path: Path, damage: str) -> None:
    full(tmp_path)
    path = min(tmp_path.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-9] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:50])
    else:
        path.unlink()
    again = SegmentStore(MODEL)
    again.load(tmp_path)
    assert len(again) == 1
    assert again.counts.corrupt == 1
    assert not path.exists()


def test_a_damaged_index_leaves_an_empty_store(tmp_path: Path) -> None:
    full(tmp_path)
    (tmp_path / "index.json").write_text("{")
    again = SegmentStore(MODEL)
    again.load(tmp_path)
    assert len(again) == 0
    assert again.counts.corrupt == 1
    SegmentStore(MODEL).load(tmp_path / "nothing")


def test_after_a_change_of_model_nothing_is_taken_from_disk(tmp_path: Path) -> None:
    full(tmp_path)
    again = SegmentStore("b-model")
    again.load(tmp_path)
    assert len(again) == 0
    assert again.counts.corrupt == 0


# -- tenants --------------------------------------------------------------------------------


def test_unknown_tenants_are_refused_and_a_body_can_only_narrow() -> None:
    tenants = Tenants({"a": Access(groups=frozenset({"club"})), "b": Access(reads_public=False)})
    assert tenants.readable("a/x") == (Scope("private", "a/x"), Scope("group", "club"), PUBLIC)
    assert tenants.readable("b") == (B,)
    with pytest.raises(AccessDenied, match="no such tenant"):
        tenants.readable("c")
    assert tenant_of("a/x/y") == "a"
    assert Tenants().readable("anybody") == (Scope("private", "anybody"), PUBLIC)


@pytest.mark.parametrize(("visibility", "name"), [("group", ""), ("public", "x")])
def test_scopes_that_make_no_sense_are_refused(visibility: str, name: str) -> None:
    with pytest.raises(ConfigError, match="scope is named"):
        Scope(visibility, name)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"weight": float("inf")}, {"quota_bytes": -1}])
def test_access_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Access(**wrong)  # type: ignore[arg-type]
