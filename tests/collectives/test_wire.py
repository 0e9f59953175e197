"""Strangers, half packets, frames that are too long, and a master that dies and comes back."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from puppet import TOKEN, Puppet, Refusal, together

from patience import LONG, wait_until
from shoal.collectives import Communicator, Master, MasterLost, MasterThread, Refused, WireError
from shoal.collectives.hello import GREETING, NONCE, PROOF, answer_to, check_answer, greet, greeting
from shoal.collectives.packets import (
    LENGTH,
    MAX_PACKET,
    Complete,
    Entry,
    Frames,
    Initiate,
    Link,
    Register,
    SyncState,
    Vote,
    pack,
    unpack,
)
from shoal.core.errors import InputError
from shoal.core.log import EventLog

PACKETS = [
    Vote(True),
    Initiate(3, "sum"),
    Complete(3, 4, False, "link"),
    SyncState(2, (Entry("w", "float32", (2, 3), "ab"),)),
    Register(0, 1, 2, 3),
]


@given(st.lists(st.sampled_from(PACKETS), max_size=8), st.integers(1, 50))
def test_packets_come_out_of_a_stream_as_they_went_in_however_it_is_cut(packets, size):
    stream = b"".join(map(pack, packets))
    frames, found = Frames(), []
    for at in range(0, len(stream), size):
        found += frames.feed(stream[at : at + size])
    assert found == packets


@given(st.binary(max_size=200))
def test_what_is_no_packet_is_refused_or_waited_for(data):
    frames = Frames()
    try:
        found = frames.feed(data)
    except WireError:
        return
    assert len(found) * LENGTH.size <= len(data)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b'{"kind":"Vote"}', b'{"kind":"Vote","body":{"admit":"perhaps"}}']
)
def test_a_wrong_body_is_refused(text):
    with pytest.raises(WireError):
        unpack(text)


def test_an_oversize_packet_is_refused_before_it_is_read():
    with pytest.raises(WireError, match="4294967295 bytes"):
        Frames().feed(LENGTH.pack(2**32 - 1))


def test_a_handshake_needs_the_token_on_both_sides():
    hello = greeting()
    answer, expected = answer_to(hello, "right")
    assert check_answer(answer, hello, "right") == expected
    with pytest.raises(Refused, match="does not know"):
        check_answer(answer, hello, "wrong")
    with pytest.raises(Refused, match="no master"):
        answer_to(b"HTTP/1.1 400 Bad Request" * 2, "right")
    assert len(answer) == NONCE + PROOF and len(hello) == GREETING


def test_a_link_is_genuine_for_one_receiver_and_one_run_only():
    link = Link("ring", "a", "b", 3, 0).signed("token", "run")
    assert link.genuine("token", "run", "b")
    assert not link.genuine("token", "run", "c")
    assert not link.genuine("token", "another", "b")
    assert not link.genuine("guess", "run", "b")
    assert not Link("ring", "a", "b", 4, 0, "", link.proof).genuine("token", "run", "b")


def garbage(address: str, *messages: bytes) -> bytes:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=LONG) as connection:
        connection.recv(GREETING)
        for message in messages:
            connection.sendall(message)
        connection.settimeout(LONG)
        try:
            return connection.recv(100)
        except ConnectionResetError:
            return b""


def test_strangers_get_nothing_from_a_master(master):
    assert garbage(master.address, b"GET / HTTP/1.1\r\n" + b"x" * 60) == b""
    assert master.state.home == {}


def test_a_peer_that_sends_a_frame_too_long_is_dropped(master):
    host, port = master.address.split(":")
    with socket.create_connection((host, int(port)), timeout=LONG) as connection:
        greet(connection, TOKEN)
        connection.sendall(pack(Register(0, 1, 2, 3)) + struct.pack("!I", MAX_PACKET + 1))
        while connection.recv(1 << 16):
            pass
    assert wait_until(lambda: master.state.home == {})


def test_strangers_at_a_peers_ports_do_no_harm(peers, master):
    a, b = peers(2)
    for member in master.state.groups[0].members.values():
        address = member.address
        for port in (address.ring, address.state, address.bandwidth):
            for said in (
                b"",
                b"\xff" * 100,
                pack(Link("ring", "x", member.id, 9, 0, "", "0" * 64)),
            ):
                with socket.create_connection((address.host, port), timeout=LONG) as connection:
                    connection.sendall(said)
    for puppet in (a, b):
        puppet.make("x", 1, 1_000)
    assert len({info["hash"] for info in together("reduce", a, b, args=("x",))}) == 1


def test_a_taken_port_is_passed_over():
    with MasterThread(TOKEN) as master:
        one = Communicator(master.address, token=TOKEN, first_port=48200)
        two = Communicator(master.address, token=TOKEN, first_port=48200, group=1)
        one.connect()
        two.connect()
        ports = [m.address for g in master.state.groups.values() for m in g.members.values()]
        used = [port for a in ports for port in (a.ring, a.state, a.bandwidth)]
        assert len(set(used)) == 6 and min(used) >= 48200
        one.close()
        two.close()


def test_a_master_that_cannot_listen_says_so():
    with (
        MasterThread(TOKEN) as master,
        pytest.raises(InputError, match="cannot listen"),
        MasterThread(TOKEN, port=int(master.address.split(":")[1])),
    ):
        pass
    with pytest.raises(InputError, match="shared token"):
        Master("")


def test_nobody_home_is_a_lost_master():
    with pytest.raises(MasterLost, match="No master answers"):
        Communicator("127.0.0.1:1", token=TOKEN).connect()
    with pytest.raises(InputError, match="host:port"):
        Communicator("somewhere", token=TOKEN)


SERVE = """
import asyncio, sys
from pathlib import Path
from shoal.collectives import Master
async def main():
    master = Master(sys.argv[1], port=int(sys.argv[2]), journal=Path(sys.argv[3]),
                    heartbeat=0.2, peer_timeout=5.0)
    await master.start()
    print(master.address, flush=True)
    await asyncio.sleep(120)
asyncio.run(main())
"""


def serve(port: int, journal: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, TOKEN, str(port), str(journal)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_master_that_was_killed_takes_the_run_up_again(tmp_path):
    process, address = serve(0, tmp_path / "journal.json")
    a, b = puppets = [Puppet(address) for _ in range(2)]
    try:
        for puppet in puppets:
            puppet.begin("connect")
            puppet.begin("gather", 2)
        ids = [puppet.end() for puppet in puppets]
        assert [puppet.end() for puppet in puppets] == [2, 2]
        a.share({"w": 3.0}, revision=8)
        b.share({"w": 3.0}, revision=8)
        together("sync", a, b)
        process.kill()
        process.wait()
        for puppet in puppets:
            puppet.make("x", 0, 10)
            with pytest.raises(Refusal, match="MasterLost"):
                puppet.reduce("x")
        assert a.values() == {"w": 3.0}
        process, _ = serve(int(address.split(":")[1]), tmp_path / "journal.json")
        a.share({"w": 4.0}, revision=9)  # the one that heard of the last commit
        b.share({"w": 3.0}, revision=8)
        for puppet in puppets:
            puppet.begin("connect")
            puppet.begin("gather", 2)
        assert [puppet.end() for puppet in puppets] == ids
        assert [puppet.end() for puppet in puppets] == [2, 2]
        found = together("sync", a, b)
        assert [info["values"] for info in found] == [{"w": 4.0}] * 2
        assert {info["revision"] for info in found} == {9}
        assert len({info["hash"] for info in together("reduce", a, b, args=("x",))}) == 1
    finally:
        for puppet in puppets:
            puppet.kill()
        process.kill()
        process.wait()


def test_a_master_of_another_run_is_no_substitute(tmp_path):
    with MasterThread(TOKEN) as master:
        peer = Communicator(master.address, token=TOKEN)
        peer.connect()
        port = int(master.address.split(":")[1])
    with MasterThread(TOKEN, port=port), pytest.raises(Refused, match="the journal of that run"):
        peer.connect()


def test_an_unreadable_journal_is_named(tmp_path):
    (tmp_path / "journal.json").write_text("{")
    with pytest.raises(InputError, match="not a readable journal"):
        Master(TOKEN, journal=tmp_path / "journal.json")


def test_what_happens_is_in_the_log():
    with EventLog() as log, MasterThread(TOKEN, log=log) as master:
        peer = Communicator(master.address, token=TOKEN)
        peer.connect()
        other = Communicator(master.address, token=TOKEN)
        with pytest.raises(TimeoutError):
            other.connect(timeout=0.2)
        peer.update_topology()
        x = np.ones(4)
        handles = [p.all_reduce_async(x.copy(), op="avg") for p in (peer, other)]
        assert [handle.wait().world for handle in handles] == [2, 2]
        peer.close()
        other.close()
        told = {"join", "accept", "ring", "commence", "commit", "leave"}
        assert wait_until(lambda: told <= {event.kind for event in log.events()})
