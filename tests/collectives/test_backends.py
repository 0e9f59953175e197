"""Backends behind one protocol: the same mean from this ring and from gloo; refusals by name."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from shoal.collectives import Communicator, MasterThread, SharedState
from shoal.collectives.backends import GlooBackend, ShoalBackend, TorchFTBackend
from shoal.core.errors import ConfigError, MissingExtra

STEP = """
import sys
import numpy as np
from shoal.collectives import Communicator, SharedState
from shoal.collectives.backends import GlooBackend, ShoalBackend
kind, where, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
if kind == "gloo":
    backend = GlooBackend(f"file://{where}", rank=rank, world=2)
else:
    peer = Communicator(where, token="t")
    peer.connect()
    peer.gather(2)
    backend = ShoalBackend(peer)
state = SharedState({"w": np.full(3, float(rank))})
backend.begin(state)
x = np.arange(5, dtype=np.float32) * (rank + 1)
infos = backend.average([x])
assert backend.commit() and not backend.pending()
print(float(state.buffers["w"].flat[0]) in (0.0, 1.0),
      x.tolist(), infos[0].world, backend.world_size, flush=True)
backend.close()
"""


@pytest.mark.parametrize("kind", ["gloo", "shoal"])
def test_two_processes_average_alike(kind, tmp_path):
    with MasterThread("t") as master:
        where = str(tmp_path / "meet") if kind == "gloo" else master.address
        command = [sys.executable, "-c", STEP, kind, where]
        peers = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        said = [peer.communicate(timeout=100)[0] for peer in peers]
    assert said == ["True [0.0, 1.5, 3.0, 4.5, 6.0] 2 2\n"] * 2


def test_gloo_does_not_quantise(tmp_path):
    backend = GlooBackend(f"file://{tmp_path / 'meet'}", rank=0, world=1)
    with pytest.raises(ConfigError, match="does not quantise"):
        backend.average([np.ones(2, np.float32)], "min_max")
    backend.close()


def test_without_torchft_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchft", None)
    with pytest.raises(MissingExtra, match=r"shoal\[ft\]"):
        TorchFTBackend("http://127.0.0.1:1", replica="a")


def test_a_peer_alone_is_a_backend_too():
    with MasterThread("t") as master:
        peer = Communicator(master.address, token="t")
        peer.connect()
        backend = ShoalBackend(peer)
        state = SharedState({"w": np.ones(2)}, revision=3)
        assert backend.begin(state).revision == 3
        assert backend.world_size == 1 and backend.commit() and not backend.pending()
        backend.close()
