"""Gates: what they are, what they learn, and that they stop where they must."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from shoal.core.errors import ConfigError, InputError
from shoal.models.decoder import Decoder
from shoal.models.depth.arrange import arrange
from shoal.models.depth.gates import GateOptions, Gates, _moved, gate, learn_gates
from shoal.models.depth.influence import block_influence
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.stack import row_losses, run

OPTIONS = GateOptions(steps=60, batch=8)


@pytest.fixture(scope="module")
def learned(decoder: Decoder, ids_NS: torch.Tensor) -> Gates:
    return learn_gates(decoder, ids_NS, 2, OPTIONS, protect=(0, 5), seed=3)


def test_a_gate_is_the_smoothed_l0_of_gdp() -> None:
    w = torch.tensor([0.0, 0.1, 1.0, -1.0])
    expected = [0.0, 0.01 / 0.11, 1 / 1.1, 1 / 1.1]
    assert gate(w, 0.1).tolist() == pytest.approx(expected)
    assert gate(w, 1e-4)[1].item() == pytest.approx(0.01 / 0.0101)


def test_gates_polarise_and_their_mean_meets_the_constraint(learned: Gates) -> None:
    assert learned.stopped is None
    assert learned.polarised == 1.0
    assert learned.final.mean().item() == pytest.approx(4 / 6, abs=0.01)
    assert learned.gates_PN.shape == (60, 6)
    assert learned.gates_PN[0].mean().item() > 0.85  # soft at the start


def test_removing_what_gates_close_costs_hard_what_it_costs_soft(
    learned: Gates, decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    closed = learned.lowest(2)
    assert closed == learned.final.argsort()[:2].tolist()
    hard = float(row_losses(arrange(decoder, DepthPlan.whole(6).without(closed)), ids_NS).mean())
    assert hard == pytest.approx(sum(learned.losses[-5:]) / 5, abs=0.15)


def test_gates_do_not_find_the_worst_pair(
    learned: Gates, decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    whole = DepthPlan.whole(6)
    losses = {
        pair: float(row_losses(arrange(decoder, whole.without(pair)), ids_NS, batch=24).mean())
        for pair in itertools.combinations(range(1, 5), 2)
    }
    found = losses[tuple(sorted(learned.lowest(2, protect=(0, 5))))]
    assert found < max(losses.values())


def test_weights_are_frozen_and_the_seed_decides(decoder: Decoder, ids_NS: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in decoder.weights.items()}
    options = GateOptions(steps=6, batch=4)
    one, same, other = (
        learn_gates(decoder, ids_NS, 2, options, seed=seed).gates_PN for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert all(torch.equal(before[name], tensor) for name, tensor in decoder.weights.items())
    assert not any(tensor.requires_grad for tensor in decoder.weights.values())


def test_ties_are_broken_by_the_last_fifth_of_the_steps() -> None:
    trajectory = torch.tensor([[0.9, 0.9, 0.9]] * 8 + [[0.5, 0.2, 1.0], [0.0, 0.0, 1.0]])
    assert Gates(trajectory, ()).lowest(2) == [1, 0]
    assert Gates(trajectory, ()).lowest(1, protect=(1,)) == [0]
    with pytest.raises(ConfigError, match="3 blocks cannot be removed of 3, of which 1"):
        Gates(trajectory, ()).lowest(3, protect=(1,))


def test_a_loss_that_is_not_finite_ends_it_with_the_last_gates_that_were(
    decoder: Decoder, ids_NS: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.models.depth import gates as module

    calls = itertools.count()
    true_loss = module.language_loss

    def loss(*args: object, **named: object) -> torch.Tensor:
        found = true_loss(*args, **named)  # type: ignore[arg-type]
        return found * float("nan") if next(calls) == 4 else found

    monkeypatch.setattr(module, "language_loss", loss)
    found = learn_gates(decoder, ids_NS, 2, GateOptions(steps=20, batch=4))
    assert found.stopped == "the loss was nan at step 4"
    assert found.gates_PN.shape == (4, 6)
    assert torch.isfinite(found.final).all()
    assert all(math.isfinite(loss) for loss in found.losses)


def test_there_must_be_text(decoder: Decoder) -> None:
    with pytest.raises(InputError, match="no row of calibration text"):
        learn_gates(decoder, torch.empty(0, 32, dtype=torch.long), 2)


def test_block_influence_is_one_minus_the_mean_cosine(
    decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    found = block_influence(decoder, ids_NS[:3], batch=2)
    ids = ids_NS[:3]
    x_TD, after = run(decoder, ids, keep=range(6))
    before = [decoder.embed(ids.reshape(-1)), *(after[i] for i in range(5))]
    for index in range(6):
        a, b = before[index], after[index]
        cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
        assert found[index].item() == pytest.approx(1 - cosine.mean().item(), abs=1e-5)
    assert torch.equal(x_TD, after[5])


def test_protected_gates_stay_open(decoder: Decoder, ids_NS: torch.Tensor) -> None:
    found = learn_gates(decoder, ids_NS, 2, OPTIONS, protect=(0, 2, 5))
    assert found.final[[0, 2, 5]].min().item() > 0.99
    assert found.final[[1, 3, 4]].sort().values[:2].max().item() < 0.01
    with pytest.raises(ConfigError, match="3 gates cannot close of 6, of which 3 are protected"):
        learn_gates(decoder, ids_NS, 3, OPTIONS, protect=(0, 2, 5))


def test_w_descends_on_the_loss_and_a_price_at_which_two_gates_do_not_pay() -> None:
    w, benefit = torch.tensor([0.5, 0.5, 1.0, 0.5]), torch.tensor([0.1, 0.3, 0.2, 0.9])
    moved = _moved(w, benefit, 2, 0.1, 0.05)
    asked = w.clone().requires_grad_()
    (gate(asked, 0.1) * (benefit - 0.25)).sum().backward()  # the price is half way, 0.25
    assert asked.grad is not None
    down, up = asked.grad[[0, 2]], asked.grad[[1, 3]]
    assert (down < 0).all() and (up > 0).all()
    step = torch.zeros(4)
    step[[0, 2]] = (down / down.abs().median()).clamp(-1, 1)
    step[[1, 3]] = (up / up.abs().median()).clamp(-1, 1)
    torch.testing.assert_close(moved, w + 0.05 * step)
    torch.testing.assert_close(_moved(w, 1000 * benefit, 2, 0.1, 0.05), moved)


def test_a_closed_gate_counts_and_opens_nothing() -> None:
    w, benefit = torch.tensor([0.0, 0.5, 0.6, 0.7]), torch.tensor([9.0, 0.3, 0.2, 0.9])
    one_left = _moved(w, benefit, 2, 1e-3, 0.05)
    assert one_left[0] == 0  # whatever its benefit has become
    assert one_left[2] < w[2] and (one_left[[1, 3]] > w[[1, 3]]).all()
    none_left = _moved(w, benefit, 1, 1e-3, 0.05)
    assert none_left[2] == w[2] and (none_left[[1, 3]] > w[[1, 3]]).all()
