"""A text trained on by peers that come and go."""

from __future__ import annotations

import threading

import pytest

from shoal.collectives import Communicator, MasterThread
from shoal.core.errors import InputError
from shoal.training.diloco import Round
from shoal.training.together import LEAST, train_together

TOKEN = "of a text"
TEXT = bytes(range(32, 96)) * 128


class Taker(threading.Thread):
    """A peer that trains on a thread, and leaves after ``leaves_after`` rounds where given."""

    def __init__(self, address: str, *, rounds: int, leaves_after: int = 0) -> None:
        super().__init__(daemon=True)
        self.address, self.rounds, self.leaves_after = address, rounds, leaves_after
        self.found: list[Round] = []
        self.loss = float("nan")
        self.start()

    def run(self) -> None:
        with Communicator(self.address, token=TOKEN) as peer:
            rounds = self.leaves_after or self.rounds
            self.loss = train_together(
                peer, TEXT, rounds=rounds, least=2, inner_steps=1, batch=1,
                on_round=lambda found, loss: self.found.append(found),
            )  # fmt: skip


def test_a_round_waits_for_the_least_number_of_peers():
    with MasterThread(TOKEN) as master:
        stays = Taker(master.address, rounds=4)
        leaves = Taker(master.address, rounds=4, leaves_after=2)
        leaves.join(timeout=60)
        stays.join(timeout=1.0)
        assert stays.is_alive(), "it went on alone"
        comes = Taker(master.address, rounds=4)
        for taker in (stays, comes):
            taker.join(timeout=60)
            assert not taker.is_alive()
    assert stays.loss == comes.loss
    counted = [found for found in stays.found if found.committed]
    assert [found.number for found in counted] == [1, 2, 3, 4]
    assert [found.worlds for found in counted] == [(2,)] * 4
    assert [found.number for found in comes.found] == [3, 4]


def test_a_text_too_short_to_measure_on_is_refused():
    with (
        MasterThread(TOKEN) as master,
        Communicator(master.address, token=TOKEN) as peer,
        pytest.raises(InputError, match=f"{LEAST} at least"),
    ):
        train_together(peer, TEXT[: LEAST - 1], rounds=1)


def test_delayed_rounds_do_not_wait_for_peers():
    with (
        MasterThread(TOKEN) as master,
        Communicator(master.address, token=TOKEN) as peer,
        pytest.raises(ValueError, match="cannot wait for 2 peers"),
    ):
        train_together(peer, TEXT, rounds=1, least=2, delayed=True)
