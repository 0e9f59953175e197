"""Slow networks on one machine: a paced connection, shaped links between namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from shoal.collectives import longline
from shoal.collectives.longline import LongLine
from shoal.collectives.wan import ShapedNetwork, unavailable

REASON = unavailable()

SEND = """
import json, socket, sys, time
listener = socket.create_connection((sys.argv[1], int(sys.argv[2])))
start, total = time.monotonic(), 0
while total < 2_000_000:
    total += listener.send(bytes(65536))
listener.shutdown(socket.SHUT_WR)
listener.recv(1)
print(json.dumps(8e-6 * total / (time.monotonic() - start)))
"""
TAKE = """
import socket
listener = socket.socket()
listener.bind(("", 5000))
listener.listen()
print("ready", flush=True)
connection, _ = listener.accept()
while connection.recv(65536):
    pass
"""


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_shaped_pair_carries_its_rate_and_leaves_nothing_behind():
    rates = {(0, 1): 40.0, (1, 0): 1000.0}
    with ShapedNetwork(2, rates) as network:
        taker = subprocess.Popen(
            [*network.command(1), sys.executable, "-c", TAKE], stdout=subprocess.PIPE, text=True
        )
        assert taker.stdout is not None and taker.stdout.readline() == "ready\n"
        sender = [*network.command(0), sys.executable, "-c", SEND, network.address(1), "5000"]
        rate = json.loads(subprocess.run(sender, capture_output=True, text=True).stdout)
        taker.wait(60)
        names = {network.command(host)[3] for host in range(2)}
    assert 1 < rate < 80
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert not names & set(left.split())


LONG = REASON or longline.unavailable()
TIME = """
import socket, sys, time
start = time.monotonic()
socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
print(time.monotonic() - start)
"""


@pytest.mark.skipif(LONG is not None, reason=str(LONG))
def test_two_peers_reduce_over_a_long_line_which_costs_its_round_trips():
    environment = {**os.environ, "SHOAL_PEERS_TOKEN": "long", "OMP_NUM_THREADS": "1"}
    shoal = [sys.executable, "-m", "shoal", "peers"]
    with LongLine(delay=0.03, rate=200) as line:
        master = subprocess.Popen(
            [*line.command(0), *shoal, "master", "--host", "0.0.0.0", "--port", "5001"],
            stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        try:
            assert master.stdout is not None and "5001" in master.stdout.readline()
            address = f"{line.address(0)}:5001"
            join = [*shoal, "join", address, "--mib", "1", "--steps", "3", "--pool", "4", "--json"]
            peers = [
                subprocess.Popen(
                    [*line.command(host), *join], stdout=subprocess.PIPE, text=True, env=environment
                )
                for host in range(2)
            ]
            found = [json.loads(peer.communicate(timeout=60)[0]) for peer in peers]
            timed = [*line.command(1), sys.executable, "-c", TIME, line.address(0), "5001"]
            trip = float(subprocess.run(timed, capture_output=True, text=True).stdout)
        finally:
            master.kill()
            master.wait()
        names = {line.command(host)[3] for host in range(2)}
    assert [one["worlds"] for one in found] == [[2], [2]]
    assert [one["wrong"] for one in found] == [0, 0]
    assert trip >= 0.06
    assert found[0]["median_ms"] >= 1e3 * (4 * 0.03 + (1 << 20) * 8e-6 / 200)
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert not names & set(left.split())


def test_where_links_cannot_be_shaped_it_says_why(monkeypatch):
    monkeypatch.setattr("shoal.collectives.wan.shutil.which", lambda tool: None)
    assert unavailable() == "the tool ip is not installed"
    monkeypatch.undo()
    monkeypatch.setattr("shoal.collectives.wan.os.geteuid", lambda: 1000)
    assert unavailable() in ("network namespaces need root", "the tool ip is not installed")
