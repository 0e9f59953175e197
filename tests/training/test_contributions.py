"""What agents learn to contribute, held against the equilibrium."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.mechanisms.goods.contribution_game import Game
from shoal.training.bandit import BanditOptions
from shoal.training.contributions import learn_contributions

FULL = Game()
QUICK = BanditOptions(lr=0.01, target_kl=0.05, decay=0.98)


def test_without_synergy_and_penalty_everybody_learns_to_ride_free() -> None:
    plain = replace(FULL, gamma=0, penalty=0)
    learnt = learn_contributions(plain, groups=2, epochs=60, episodes=40, options=QUICK, seed=5)
    assert learnt.contributions.shape == (2, 3)
    assert learnt.contributions.mean() <= 0.2
    assert len(learnt.history) == 60
    assert learnt.history[-1] < learnt.history[0]


def test_a_share_that_exceeds_the_cost_is_learnt_to_be_worth_all() -> None:
    no_dilemma = replace(FULL, agents=2, rho=4.0, bar=1.0, penalty=0, gamma=0)
    learnt = learn_contributions(no_dilemma, groups=2, epochs=60, episodes=40, options=QUICK)
    assert learnt.contributions.mean() >= 0.9


def test_the_same_seed_learns_the_same() -> None:
    one, two = (learn_contributions(FULL, groups=1, epochs=3, seed=8) for _ in range(2))
    assert one.contributions.tolist() == two.contributions.tolist()
    other = learn_contributions(FULL, groups=1, epochs=3, seed=9)
    assert one.contributions.tolist() != other.contributions.tolist()


@pytest.mark.slow
def test_in_sequence_most_groups_learn_the_equilibrium_and_at_once_they_ride_free() -> None:
    options = BanditOptions()
    learnt = learn_contributions(FULL, groups=8, options=options, seed=4)
    near = abs(learnt.contributions.sum(axis=1) - 2.55) <= 0.1
    assert near.sum() >= 6
    hidden = learn_contributions(FULL, observe="none", groups=8, options=options, seed=4)
    assert hidden.contributions.sum(axis=1).max() <= 0.35
