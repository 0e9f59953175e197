"""Run files trained with peers: the same weights for all, played with seeds of their own."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import torch
from worlds import Walk

from shoal.collectives import Communicator, MasterThread
from shoal.collectives.backends import ShoalBackend
from shoal.training.config import RunConfig, parse_run
from shoal.training.loop import Iteration
from shoal.training.peers import PeerTrainer, apart
from shoal.training.policies import fingerprint
from shoal.training.setup import build

TOKEN = "of run files"


def small(iterations: int) -> RunConfig:
    return parse_run(
        {
            "iterations": iterations,
            "environment": {"name": "the walk", "train": [0, 4], "held_out": [10, 12]},
            "groups": {"tasks": 2, "episodes": 2},
            "policy": {"hidden": 16, "layers": 1, "heads": 2},
            "optimiser": {"lr": 0.01},
        }
    )


def trained(
    address: str, every: int, iterations: int, found: dict[str, tuple[str, list[Iteration]]]
) -> None:
    with Communicator(address, token=TOKEN) as peer:
        peer.gather(2)
        trainer = PeerTrainer(
            build(apart(small(iterations), peer.id), make=Walk), ShoalBackend(peer), every=every
        )

        async def play() -> list[Iteration]:
            return [await trainer.iterate() for _ in range(iterations)]

        played = asyncio.run(play())
        found[peer.id] = (fingerprint(trainer.policy), played)


@pytest.mark.parametrize(("every", "iterations"), [(1, 3), (2, 3)])
def test_two_peers_play_apart_and_end_with_the_same_weights(every, iterations):
    torch.set_num_threads(1)
    found: dict[str, tuple[str, list[Iteration]]] = {}
    with MasterThread(TOKEN) as master:
        threads = [
            threading.Thread(target=trained, args=(master.address, every, iterations, found))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    (one, first), (two, second) = found.values()
    assert one == two
    assert [row.action for row in first[0].rows] != [row.action for row in second[0].rows]
    shared = [iteration.metrics.get("peers") for iteration in first]
    assert shared == ([2.0] * 3 if every == 1 else [None, 2.0, 2.0])
    assert first[-1].metrics["peers.fetched_bytes"] == 0
    assert first[-1].metrics["peers.rounds"] == -(-iterations // every)


def test_seeds_of_peers_differ_and_are_functions_of_their_names():
    config = small(1)
    assert apart(config, "a") == apart(config, "a")
    assert len({apart(config, name).seed for name in "abc"}) == 3


def test_sharing_every_zero_iterations_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="every 0 iterations"):
        PeerTrainer(build(small(1), make=Walk), None, every=0)  # type: ignore[arg-type]
