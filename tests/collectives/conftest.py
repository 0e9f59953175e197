"""A master on a thread, and peers in processes that are gone when a test is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from puppet import TOKEN, Puppet, all_end

from shoal.collectives import Master, MasterThread


@pytest.fixture
def master() -> Iterator[Master]:
    with MasterThread(TOKEN, heartbeat=0.2, peer_timeout=5.0) as running:
        yield running


@pytest.fixture
def peers(master: Master) -> Iterator[Callable[..., list[Puppet]]]:
    """Starts peers; with ``join`` they are one ring when it returns."""
    with contextlib.ExitStack() as stack:

        def start(count: int, *, join: bool = True, **options: object) -> list[Puppet]:
            made = [Puppet(master.address, **options) for _ in range(count)]
            for puppet in made:
                stack.callback(puppet.kill)
            if join:
                for puppet in made:
                    puppet.begin("connect")
                    puppet.begin("gather", count)
                all_end(*made)
                assert all_end(*made) == [count] * count
            return made

        yield start
