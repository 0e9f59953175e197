"""Slow networks on one machine: a paced connection, shaped links between namespaces."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

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
        taker.wait(20)
        names = {network.command(host)[3] for host in range(2)}
    assert 10 < rate < 80
    time.sleep(0.1)
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert not names & set(left.split())


def test_where_links_cannot_be_shaped_it_says_why(monkeypatch):
    monkeypatch.setattr("shoal.collectives.wan.shutil.which", lambda tool: None)
    assert unavailable() == "the tool ip is not installed"
    monkeypatch.undo()
    monkeypatch.setattr("shoal.collectives.wan.os.geteuid", lambda: 1000)
    assert unavailable() in ("network namespaces need root", "the tool ip is not installed")
