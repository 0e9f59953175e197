"""Peers in processes: sums that are right, errors that leave everything as it was."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest
from puppet import Puppet, Refusal, all_end, pattern, together

from patience import wait_until
from shoal.collectives import Communicator, TagInUse
from shoal.collectives.packets import Strategy
from shoal.collectives.state import content_hash

REDUCED = {
    "sum": lambda xs: sum(xs[1:], xs[0]),
    "avg": lambda xs: sum(xs[1:], xs[0]) / len(xs),
    "prod": lambda xs: np.prod(xs, axis=0, dtype=xs[0].dtype),
    "max": lambda xs: np.max(xs, axis=0),
    "min": lambda xs: np.min(xs, axis=0),
}


def made(puppets: list[Puppet], size: int, dtype: str = "float32") -> list[np.ndarray]:
    for seed, puppet in enumerate(puppets):
        puppet.make("x", seed, size, dtype)
    return [pattern(seed, size, dtype) for seed in range(len(puppets))]


@pytest.mark.parametrize("op", REDUCED)
def test_three_peers_reduce_whole_numbers_as_numpy_does(peers, op):
    puppets = peers(3, pool=2)
    for dtype in ("int32", "uint8", "int64"):
        inputs = made(puppets, 100_003, dtype)
        if op == "avg":
            expected = (inputs[0] + inputs[1] + inputs[2]) // np.dtype(dtype).type(3)
        else:
            expected = REDUCED[op](inputs).astype(dtype)
        found = together("reduce", *puppets, args=("x",), op=op)
        assert {info["hash"] for info in found} == {content_hash(expected)}
        assert {info["world"] for info in found} == {3}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1_000, 300_001])
def test_all_peers_end_with_the_same_bits_however_few_elements_there_are(peers, size):
    puppets = peers(4)
    inputs = made(puppets, size)
    found = together("reduce", *puppets, args=("x",), op="avg")
    assert len({info["hash"] for info in found}) == 1
    total = float(sum(x.sum(dtype=float) for x in inputs)) / 4
    assert puppets[0].sum("x") == pytest.approx(total, abs=1e-2)
    assert sum(info["tx"] for info in found) == 2 * 3 * size * 4  # 2 (w-1)/w of the data each


@pytest.mark.parametrize("quantization", ["min_max", "zero_point_scale"])
def test_quantised_sums_are_the_same_bits_for_all_and_a_quarter_of_the_bytes(peers, quantization):
    puppets = peers(3, pool=3)
    inputs = made(puppets, 1_000_000)
    found = together("reduce", *puppets, args=("x",), op="avg", quantization=quantization)
    assert len({info["hash"] for info in found}) == 1
    assert sum(info["tx"] for info in found) < 0.26 * 2 * 2 * 4_000_000
    mean = sum(x.sum(dtype=float) for x in inputs) / 3
    assert puppets[0].sum("x") == pytest.approx(mean, abs=1e6 * 1e-3)


def test_many_tags_at_once_take_their_turns_on_the_same_connections(peers):
    puppets = peers(3, pool=2)
    names = [f"x{i}" for i in range(20)]
    for seed, puppet in enumerate(puppets):
        for i, name in enumerate(names):
            puppet.make(name, 100 * seed + i, 1_000 * i + 1)
    assert together("reduce_many", *puppets, args=(names,), max_in_flight=7) == [[3] * 20] * 3
    for i, name in enumerate(names):
        hashes = {puppet.hash(name) for puppet in puppets}
        total = sum(pattern(100 * seed + i, 1_000 * i + 1, "float32").sum() for seed in range(3))
        assert len(hashes) == 1 and puppets[0].sum(name) == pytest.approx(total, abs=0.05)


def test_an_empty_array_is_reduced_at_once(peers):
    (puppet, _) = peers(2)
    puppet.make("x", 0, 0)
    assert puppet.reduce("x") == {"world": 2, "tx": 0, "rx": 0, "hash": content_hash(np.empty(0))}


def test_differing_calls_are_refused_to_all_with_both_signatures(peers):
    one, two = peers(2)
    before = [one.make("x", 0, 100), two.make("x", 1, 101)]
    one.begin("reduce", "x", tag=7)
    two.begin("reduce", "x", tag=7)
    for puppet in (one, two):
        with pytest.raises(Refusal, match=r"sum of 100 float32.*sum of 101 float32|101.*100") as e:
            puppet.end()
        assert e.value.kind == "SignatureMismatch" and "Tag 7" in e.value.text
    assert [one.hash("x"), two.hash("x")] == before
    two.make("x", 1, 100)
    assert len({info["hash"] for info in together("reduce", one, two, args=("x",))}) == 1


def test_a_peer_alone_is_told_so_and_keeps_its_input(peers):
    (alone,) = peers(1)
    before = alone.make("x", 0, 10)
    with pytest.raises(Refusal, match="TooFewPeers: Tag 0 needs a second peer"):
        alone.reduce("x")
    assert alone.hash("x") == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_peer_that_vanishes_aborts_the_others_which_keep_their_inputs(peers, master, how):
    a, b, c = puppets = peers(3, pool=2, pacing=500_000)
    inputs = made(puppets, 1_000_000)  # 4 MB: ten seconds at that pace
    for puppet in puppets:
        puppet.begin("reduce", "x", op="avg")
    assert wait_until(lambda: master.state.seq == 1)
    time.sleep(0.2)  # and parts of it have arrived
    c.signal(how)
    for puppet, x in zip((a, b), inputs, strict=False):
        with pytest.raises(Refusal, match=r"Aborted: Peer .* (is gone|gave tag 0 up)"):
            puppet.end()
        assert puppet.hash("x") == content_hash(x)
    made([a, b], 10_000)
    found = together("reduce", a, b, args=("x",), op="avg")
    expected = REDUCED["avg"]([pattern(seed, 10_000, "float32") for seed in range(2)])
    assert {info["hash"] for info in found} == {content_hash(expected.astype(np.float32))}
    if how is signal.SIGSTOP:
        c.signal(signal.SIGCONT)
        with pytest.raises(Refusal, match=r"Kicked|MasterLost|Aborted"):
            c.end()


def test_what_was_committed_before_a_crash_is_not_reduced_again(peers, master):
    a, b, c = puppets = peers(3, pacing=2_000_000)
    names = [f"x{i}" for i in range(6)]
    for seed, puppet in enumerate(puppets):
        for name in names:
            puppet.make(name, seed, 500_000)
    for puppet in puppets:
        puppet.begin("reduce_many", names, op="avg", max_in_flight=2)
    assert wait_until(lambda: master.state.seq == 4)  # one and two are done, three and four begun
    c.signal(signal.SIGKILL)
    worlds = all_end(a, b)
    assert worlds[0] == worlds[1] and set(worlds[0]) == {2, 3}
    x = [pattern(seed, 500_000, "float32") for seed in range(3)]
    for world, name in zip(worlds[0], names, strict=True):
        assert a.hash(name) == b.hash(name)
        expected = sum(y.sum(dtype=float) for y in x[:world]) / world
        assert a.sum(name) == pytest.approx(expected, abs=1)


def test_a_joiner_gets_the_current_state_and_then_nothing_more(peers):
    a, b = peers(2)
    for puppet in (a, b):
        puppet.share({"w": 5.0, "m": 1.0}, revision=40)
    assert {found["revision"] for found in together("sync", a, b)} == {40}
    (c,) = peers(1, join=False)
    c.begin("connect")
    while not all(together("pending", a, b)):
        time.sleep(0.01)
    ring = together("update_topology", a, b)[0]
    assert c.end() == ring[-1] and len(ring) == 3
    c.share({"w": 0.0, "m": 0.0})
    for puppet in (a, b):
        puppet.share({"w": 6.0, "m": 2.0}, revision=41)
    found = together("sync", a, b, c)
    assert [info["rx"] for info in found] == [0, 0, 48]
    assert sum(info["tx"] for info in found) == 48
    assert found[2]["values"] == {"w": 6.0, "m": 2.0} and found[2]["revision"] == 41
    for puppet in (a, b, c):
        puppet.share({"w": 7.0, "m": 3.0}, revision=42)
    assert [info["rx"] for info in together("sync", a, b, c)] == [0, 0, 0]


def test_those_behind_fetch_from_several_holders(peers):
    puppets = peers(4)
    for i, puppet in enumerate(puppets):
        puppet.share({"w": 1.0 if i < 2 else 2.0 + i, "v": float(i > 1)}, revision=3)
    found = together("sync", *puppets)
    assert [info["rx"] > 0 for info in found] == [False, False, True, True]
    assert all(info["tx"] > 0 for info in found[:2])


def test_the_wrong_keys_or_a_revision_ahead_are_removed_with_the_reason(peers):
    a, b, c = peers(3)
    for puppet in (a, b):
        puppet.share({"w": 1.0})
    c.share({"other": 1.0})
    for puppet in (a, b, c):
        puppet.begin("sync")
    with pytest.raises(Refusal, match="Kicked: The shared state has 'other'"):
        c.end()
    assert [found["rx"] for found in all_end(a, b)] == [0, 0]
    a.share({"w": 2.0}, revision=1)
    b.share({"w": 2.0}, revision=9)
    a.begin("sync")
    b.begin("sync")
    with pytest.raises(Refusal, match="revision 9, but 1 is next"):
        b.end()
    assert a.end()["revision"] == 1


def test_send_only_gives_and_receive_only_takes(peers):
    a, b = peers(2)
    a.share({"w": 1.0}, revision=5)
    b.share({"w": 9.0}, revision=5)
    a.begin("sync", str(Strategy.SEND_ONLY))
    b.begin("sync", str(Strategy.RECEIVE_ONLY))
    assert [found["values"] for found in all_end(a, b)] == [{"w": 1.0}] * 2


def test_a_stranger_without_the_token_is_refused_and_the_others_do_not_notice(peers, master):
    a, b = peers(2)
    (stranger,) = peers(1, join=False, token="guessed")
    with pytest.raises(Refusal, match="Refused"):
        stranger.connect()
    made([a, b], 1_000)
    assert len({info["hash"] for info in together("reduce", a, b, args=("x",))}) == 1


def test_bad_arrays_are_refused_before_any_vote(master):
    peer = Communicator(master.address, token="a token that only tests know")
    peer.connect()
    try:
        x = np.ones((4, 4), np.float32)
        frozen = np.ones(4, np.float32)
        frozen.flags.writeable = False
        for bad, sentence in (
            (x.T[:, 1:], "not contiguous"),
            (frozen, "read-only"),
            (np.ones(2, np.complex64), "Elements are complex64"),
            ([1.0, 2.0], "neither a numpy array nor a tensor"),
        ):
            with pytest.raises(ValueError, match=sentence):
                peer.all_reduce(bad)
        with pytest.raises(ValueError, match="15 elements"):
            peer.all_reduce(x, np.empty(15, np.float32))
        with pytest.raises(ValueError, match="overlap"):
            peer.all_reduce(x[:2], x[:2])
        with pytest.raises(ValueError, match="cannot be quantised"):
            peer.all_reduce(np.ones(2, np.int32), quantization="min_max")
        assert master.state.seq == 0
    finally:
        peer.close()


def test_a_tag_in_flight_cannot_be_taken_twice_and_is_free_afterwards(master):
    one, two = (Communicator(master.address, token="a token that only tests know") for _ in "ab")
    one.connect()
    with pytest.raises(TimeoutError):
        two.connect(timeout=0.1)  # waits to be admitted
    one.gather(2)
    assert one.group_sizes == {0: 2} and one.world_size == 2
    try:
        x, y = np.ones(10, np.float32), np.full(10, 2, np.float32)
        first = one.all_reduce_async(x, tag=7)
        with pytest.raises(TagInUse, match="Tag 7"):
            one.all_reduce_async(np.ones(10, np.float32), tag=7)
        assert not first.done() and x.sum() == 10
        assert two.all_reduce_async(y, tag=7).wait().world == first.wait().world == 2
        assert x.tolist() == y.tolist() == [3.0] * 10
        again = [peer.all_reduce_async(z, tag=7) for peer, z in ((one, x), (two, y))]
        assert [handle.wait().world for handle in again] == [2, 2]
    finally:
        one.close()
        two.close()


def test_after_measuring_all_peers_have_one_ring_and_reduce_on_it(peers):
    puppets = peers(4)
    rings = together("optimize", *puppets, args=(0.05,))
    assert len({tuple(ring) for ring in rings}) == 1
    made(puppets, 1_000)
    assert len({info["hash"] for info in together("reduce", *puppets, args=("x",))}) == 1
