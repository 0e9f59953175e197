"""Actor-critics of one decision: what they learn, alone and side by side."""

from __future__ import annotations

import math

import pytest
import torch

from shoal.core.errors import ConfigError, InputError
from shoal.training.bandit import BanditOptions, Bandits


def noise(learners: int, batch: int, outputs: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn((learners, batch, outputs), generator=random)


def taught(bandits: Bandits, rounds: int, batch: int = 48) -> None:
    """Reward is least squared distance to half the state."""
    for k in range(rounds):
        random = torch.Generator().manual_seed(k)
        state = torch.rand((1, batch, bandits.features), generator=random)
        state = state.expand(bandits.learners, -1, -1)
        draw = bandits.act(
            state,
            noise_LBO=noise(1, batch, bandits.outputs, 99 + k).expand(bandits.learners, -1, -1),
        )
        target = 0.2 + 0.6 * state[..., :1]
        bandits.learn(state, draw, -((draw.outputs - target) ** 2).sum(-1))


def test_a_policy_learns_to_answer_what_it_sees() -> None:
    bandits = Bandits(1, 2, 1, BanditOptions(lr=0.01, target_kl=0.05, entropy=0.0), seed=3)
    taught(bandits, 150)
    state = torch.tensor([[[0.1, 0.5], [0.9, 0.5]]])
    low, high = bandits.act(state).outputs.flatten().tolist()
    assert low == pytest.approx(0.26, abs=0.08)
    assert high == pytest.approx(0.74, abs=0.08)


def test_learners_side_by_side_learn_what_each_learns_alone() -> None:
    options = BanditOptions(target_kl=0.002)  # some stop early, others go on
    both = Bandits(2, 2, 1, options, seed=3)
    alone = Bandits(1, 2, 1, options, seed=3)
    with torch.no_grad():
        for name, tensor in alone.weights.items():
            tensor.copy_(both.weights[name][1:])
    taught(both, 4)
    taught(alone, 4)
    for name, tensor in alone.weights.items():
        assert torch.allclose(tensor, both.weights[name][1:], atol=1e-5), name


def test_outputs_reach_their_whole_range_with_one_sigmoid() -> None:
    bandits = Bandits(1, 1, 1, BanditOptions(spread=3.0))
    draw = bandits.act(torch.zeros(1, 2_000, 1), noise_LBO=noise(1, 2_000, 1, 5))
    assert draw.outputs.min() < 0.01
    assert draw.outputs.max() > 0.99
    assert torch.allclose(draw.outputs, torch.sigmoid(draw.raw))


def test_log_densities_are_those_of_the_gaussian() -> None:
    bandits = Bandits(1, 1, 2, BanditOptions(spread=0.5))
    draw = bandits.act(torch.zeros(1, 4, 1), noise_LBO=noise(1, 4, 2, 1))
    middle = bandits.act(torch.zeros(1, 4, 1)).raw
    normal = torch.distributions.Normal(middle, 0.5)
    expected = normal.log_prob(draw.raw).sum(-1) + math.log(2 * math.pi)
    assert torch.allclose(draw.logp, expected, atol=1e-5)


def test_rewards_that_are_none_are_left_out() -> None:
    state = torch.rand((1, 6, 2), generator=torch.Generator().manual_seed(1))
    ends = []
    for kept in (6, 4):
        bandits = Bandits(1, 2, 1, seed=1)
        draw = bandits.act(state[:, :kept], noise_LBO=noise(1, 6, 1, 2)[:, :kept])
        reward = draw.outputs[..., 0].clone()
        if kept == 6:
            reward[:, 4:] = math.nan
        bandits.learn(state[:, :kept], draw, reward)
        ends.append(bandits.act(state).raw)
    assert torch.equal(*ends)
    with pytest.raises(InputError, match="finite reward"):
        bandits.learn(state[:, :4], draw, torch.full((1, 4), math.nan))


def test_learning_goes_on_bit_for_bit_from_a_state() -> None:
    first, second = Bandits(2, 2, 1, seed=7), Bandits(2, 2, 1, seed=7)
    taught(first, 3)
    second.restore(first.state(), first.updates)
    state = torch.rand((2, 8, 2), generator=torch.Generator().manual_seed(9))
    for one in (first, second):
        draw = one.act(state, noise_LBO=noise(2, 8, 1, 4))
        one.learn(state, draw, draw.outputs[..., 0])
    assert torch.equal(first.act(state).raw, second.act(state).raw)
    with pytest.raises(InputError, match="of shape"):
        Bandits(2, 3, 1).restore(first.state(), 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"lr": 0.0}, "lr is 0.0"), ({"spread": -1.0}, "spread"), ({"hidden": (0, 8)}, "no network")],
)
def test_options_that_make_no_sense_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        BanditOptions(**options)


def test_states_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="2 learners see 3 features"):
        Bandits(2, 3, 1).act(torch.zeros(2, 5, 4))
