"""DiLoCo: the outer step is torch's SGD, peers stay identical, joiners get the current state."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from shoal.collectives import Communicator, Master, MasterThread, ReduceInfo, SharedState, SyncInfo
from shoal.collectives.backends import ShoalBackend
from shoal.collectives.errors import TooFewPeers
from shoal.collectives.state import content_hash
from shoal.training.byte_llama import ByteLlama, rows, tiny_config
from shoal.training.diloco import PUBLISHED, DiLoCo, Outer, Round, outer_step

TOKEN = "diloco"


@pytest.mark.parametrize(
    "setting", [Outer(), Outer(lr=0.7), Outer(0.5, 0.9), PUBLISHED], ids=lambda s: f"{s}"
)
def test_the_outer_step_is_torchs_sgd(setting):
    rng = np.random.default_rng(0)
    outer = rng.normal(size=100).astype(np.float32)
    velocity = np.zeros_like(outer)
    reference = torch.tensor(outer.copy(), requires_grad=True)
    sgd = torch.optim.SGD(
        [reference], setting.lr, momentum=setting.momentum, nesterov=setting.nesterov
    )
    for _ in range(5):
        delta = rng.normal(size=100).astype(np.float32)
        reference.grad = torch.from_numpy(delta.copy())
        sgd.step()
        outer_step(outer, velocity, delta, setting)
        np.testing.assert_allclose(outer, reference.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [((0.0,), "learning rate"), ((1.0, 1.0), "momentum"), ((1.0, 0.0, True), "Nesterov")],
)
def test_a_setting_that_makes_no_sense_is_refused(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        Outer(*setting)


class Alone:
    """A backend without peers, which averages with values that the test gives."""

    world_size = 1

    def __init__(self, others: float | None = None) -> None:
        self.others = others

    def begin(self, state: SharedState) -> SyncInfo:
        return SyncInfo(state.revision, 0, 0, 1)

    def average(self, arrays: list[np.ndarray], quantization: str = "none") -> list[ReduceInfo]:
        if self.others is None:
            raise TooFewPeers("alone")
        for array in arrays:
            array[:] = (array + self.others) / 2
        return [ReduceInfo(2, array.nbytes, array.nbytes) for array in arrays]

    def commit(self) -> bool:
        return True

    def pending(self) -> bool:
        return False

    def close(self) -> None:
        pass


def test_plain_averaging_ends_in_the_mean_of_the_peers():
    weights = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    diloco = DiLoCo([weights], Alone(others=-4.0), bucket=2)  # type: ignore[arg-type]
    found = diloco.round(lambda: weights.data.add_(2.0))
    np.testing.assert_allclose(weights.detach(), [4.0, 5.0, 6.0])  # 1 + (2 + 4) / 2
    assert found == Round(1, (2, 2), 12, 12, 0, True)


class Echo(Alone):
    """Others who do just as this peer does, so that the mean is its own."""

    world_size = 2

    def average(self, arrays: list[np.ndarray], quantization: str = "none") -> list[ReduceInfo]:
        return [ReduceInfo(2, array.nbytes, array.nbytes) for array in arrays]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_delay_loses_nothing_and_counts_nothing_twice(kind):
    """Where all peers do the same, training with a delay is training alone, step for step."""
    weights, plain = torch.full((3,), 8.0, dtype=kind), torch.full((3,), 8.0, dtype=kind)
    diloco = DiLoCo([weights], Echo(), delayed=True)  # type: ignore[arg-type]
    for number in range(6):
        diloco.round(lambda: weights.mul_(0.5))
        plain.mul_(0.5)
        assert torch.equal(weights, plain), number
    last = diloco.finish()
    assert torch.equal(weights, plain) and last is not None and last.number == 6


def test_alone_a_round_is_dropped_and_the_parameters_are_the_outer_ones():
    weights = torch.tensor([1.0, 2.0])
    diloco = DiLoCo({"w": weights}, Alone())  # type: ignore[arg-type]
    assert diloco.round(lambda: weights.add_(5.0)) == Round(0, (), 0, 0, 0, False)
    np.testing.assert_allclose(weights, [1.0, 2.0])


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no parameter"):
        DiLoCo([], Alone())  # type: ignore[arg-type]


@pytest.fixture
def master() -> Iterator[Master]:
    with MasterThread(TOKEN) as running:
        yield running


def peers_of(master: Master, count: int) -> list[Communicator]:
    """That many in one ring; a thread each, as their votes are joint."""
    peers = [Communicator(master.address, token=TOKEN) for _ in range(count)]

    def gather(peer: Communicator) -> None:
        peer.connect()
        peer.gather(count)

    at_once([lambda peer=peer: gather(peer) for peer in peers])
    return peers


def at_once(jobs: list[Callable[[], object]]) -> list[object]:
    found: list[object] = [None] * len(jobs)

    def run(place: int) -> None:
        found[place] = jobs[place]()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def worker(
    peer: Communicator, seed: int, rounds: int, **options: object
) -> tuple[str, list[Round]]:
    """Trains a tiny matrix towards a target of its own; the hash of what it ends with."""
    weights = torch.nn.Parameter(torch.full((40, 10), float(seed)))
    target = torch.randn(40, 10, generator=torch.Generator().manual_seed(seed))
    sgd = torch.optim.SGD([weights], 0.1)
    diloco = DiLoCo([weights], ShoalBackend(peer), bucket=150, **options)  # type: ignore[arg-type]

    def train() -> None:
        for _ in range(5):
            sgd.zero_grad()
            ((weights - target) ** 2).sum().backward()
            sgd.step()

    found = [diloco.round(train) for _ in range(rounds)]
    last = diloco.finish()
    peer.close()
    return content_hash(weights.detach().numpy()), [*found, *([last] if last else [])]


@pytest.mark.parametrize(
    "options", [{}, {"outer": PUBLISHED}, {"quantization": "min_max"}], ids=str
)
@pytest.mark.parametrize("delayed", [False, True])
def test_peers_end_with_the_same_bits_and_sync_nothing_after_the_first_round(
    master, options, delayed
):
    peers = peers_of(master, 3)
    found = at_once(
        [
            lambda peer=peer, seed=seed: worker(peer, seed, 4, delayed=delayed, **options)
            for seed, peer in enumerate(peers)
        ]
    )
    assert len({content for content, _ in found}) == 1
    for _, done in found:
        assert done[-1].number == 4
        assert [one.fetched for one in done[1:]] == [0] * (len(done) - 1)
        assert {one.worlds for one in done if one.committed} == {(3, 3, 3)}


def test_averaging_ends_at_the_mean_of_the_targets(master):
    peers = peers_of(master, 2)
    found: list[torch.Tensor] = []

    def job(peer: Communicator, goal: float) -> None:
        weights = torch.nn.Parameter(torch.zeros(5))
        sgd = torch.optim.SGD([weights], 0.1)
        diloco = DiLoCo([weights], ShoalBackend(peer))

        def train() -> None:
            for _ in range(10):
                sgd.zero_grad()
                ((weights - goal) ** 2).sum().backward()
                sgd.step()

        for _ in range(15):
            diloco.round(train)
        found.append(weights.detach())
        peer.close()

    at_once([lambda: job(peers[0], 1.0), lambda: job(peers[1], 4.0)])
    for weights in found:
        np.testing.assert_allclose(weights, 2.5, atol=1e-5)


def test_half_width_parameters_keep_an_outer_copy_in_full_width():
    weights = torch.ones(3, dtype=torch.bfloat16)
    diloco = DiLoCo([weights], Alone(others=-(2.0**-10)))  # type: ignore[arg-type]
    for _ in range(16):  # each step is too small for bfloat16 to see
        diloco.round(lambda: None)
    assert weights[0].item() == 1.0078125


def test_the_byte_model_learns_and_its_gradients_reach_every_parameter():
    model = ByteLlama(tiny_config(hidden=48, layers=2))
    text = torch.frombuffer(
        bytearray(b"a quick brown fox jumps over the lazy dog. " * 50), dtype=torch.uint8
    )
    sgd = torch.optim.AdamW(model.parameters.values(), 3e-3)
    losses = []
    for step in range(40):
        sgd.zero_grad()
        loss = model.loss(rows(text, batch=4, length=33, seed=step))
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(256), abs=0.3)
    assert losses[-1] < 2.5
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters.values())
