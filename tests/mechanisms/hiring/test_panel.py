"""Agents for hire that are model calls: laws from counts, costs from tokens, rounds as told."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from shoal.core.errors import InputError
from shoal.core.protocols import Prompt, Sampling, Segment
from shoal.core.rng import generator
from shoal.engine.scripted import ScriptedEngine
from shoal.mechanisms.generations import Generations
from shoal.mechanisms.hiring.examples import common_noise
from shoal.mechanisms.hiring.information_acquisition import alone, solve_correlated, worth
from shoal.mechanisms.hiring.panel import Seen, Way, Worker, estimated, hire, look, polled
from shoal.mechanisms.hiring.problem import largest_gain

EYE = np.eye(2)


def common_signals(items: int, seed: int) -> tuple[Seen, list[int]]:
    """What two agents see under common noise of accuracy 0.7, at every effort of each."""
    rng = generator("common", seed)
    states = rng.integers(0, 2, items)
    shared = np.where(rng.random(items) < 0.7, states, 1 - states)
    signals = rng.integers(0, 2, (items, 2, 2))
    signals[:, :, 1] = shared[:, None]
    tokens = np.zeros((items, 2, 2), dtype=np.int64)
    tokens[:, :, 1] = rng.integers(20, 41, (items, 2))
    return Seen(signals, tokens), states.tolist()


def test_laws_are_counts_and_costs_are_tokens_at_their_price() -> None:
    signals = np.array([[[0, 1], [1, 1]], [[1, 0], [0, 0]], [[0, 1], [0, 0]]])
    tokens = np.array([[[0, 9], [0, 12]], [[0, 12], [0, 6]], [[0, 6], [0, 3]]])
    case = estimated(Seen(signals, tokens), [1, 0, 1], EYE, price=0.01, pseudo=0.0)
    assert [cost.tolist() for cost in case.costs] == [[0.0, 0.09], [0.0, 0.07]]
    for b1, b2 in itertools.product((0, 1), repeat=2):
        expected = np.zeros((2, 2, 2))
        for k, state in enumerate((1, 0, 1)):
            expected[state, signals[k, 0, b1], signals[k, 1, b2]] += 1 / 3
        assert case.P[b1, b2] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_an_agents_law_depends_on_its_own_effort_alone_whatever_was_seen(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen = Seen(rng.integers(0, 3, (40, 2, 3)), rng.integers(0, 50, (40, 2, 3)))
    case = estimated(seen, rng.integers(0, 2, 40).tolist(), EYE, price=1e-3, signals=3)
    assert case.P.sum() == pytest.approx(9)  # checked when the problem is made
    assert alone(case, 1).shape == (3, 3, 2)


def test_the_estimated_contract_is_nearly_the_one_of_the_true_law() -> None:
    seen, states = common_signals(20_000, 1)
    case = estimated(seen, states, EYE, price=0.002)  # 30 tokens: a cost of 0.06
    contract = solve_correlated(case)
    assert worth(contract, case).utility == pytest.approx(0.5723, abs=0.02)
    assert 0 < contract.mu[1, 1] < 0.15
    assert largest_gain(contract, case.P, case.differences) <= 1e-7
    truth = common_noise()
    assert largest_gain(contract, truth.P, truth.differences) < 0.02


def test_checked_now_and_then_two_copies_are_as_right_as_both_at_half_the_tokens() -> None:
    seen, states = common_signals(4_000, 2)
    case = estimated(seen, states, EYE, price=0.002)
    contract = solve_correlated(case)
    held, truth = common_signals(4_000, 3)
    hired = hire(case, contract, held, truth, seed=1)
    both = hire(case, polled(case, (1, 1)), held, truth, seed=1)
    assert both.utility.mean() == pytest.approx(0.7, abs=0.03)
    assert hired.utility.mean() == pytest.approx(both.utility.mean(), abs=0.02)
    assert hired.tokens.mean() / both.tokens.mean() < 0.6
    assert (both.paid == 0).all()
    assert hired.paid.mean() == pytest.approx(worth(contract, case).pay, abs=0.02)
    nobody = hire(case, polled(case, (0, 0)), held, truth, seed=1)
    assert nobody.utility.mean() == pytest.approx(0.5, abs=0.03)
    assert not nobody.tokens.any()


def ask(question: str) -> Prompt:
    return (Segment(question),)


def workers(engine: ScriptedEngine) -> list[Worker]:
    known = Generations(engine, longest=8)
    ways = (
        Way("guess"),
        Way("ask", ask, lambda question, text: int(text == "yes"), Sampling(max_tokens=8)),
    )
    return [Worker("anna", known, ways), Worker("ben", known, ways)]


async def test_everybody_is_asked_in_every_way_and_guesses_are_drawn() -> None:
    seen = await look(workers(ScriptedEngine("yes")), [f"question {k}" for k in range(40)])
    assert (seen.signals[:, :, 1] == 1).all()
    assert (seen.tokens[:, :, 1] == 1).all()
    assert not seen.tokens[:, :, 0].any()
    assert 20 < seen.signals[:, :, 0].sum() < 60
    case = estimated(seen, [1] * 30 + [0] * 10, EYE, price=0.001)
    idle = case.P[0, 0]  # 40 draws may look as if they knew something
    assert idle == pytest.approx(np.broadcast_to(idle.mean(axis=(1, 2), keepdims=True), (2, 2, 2)))
    again = await look(workers(ScriptedEngine("yes")), [f"question {k}" for k in range(40)])
    assert (seen.signals == again.signals).all()


async def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(InputError, match="'anna' gave no answer to 'why'"):
        await look(workers(ScriptedEngine("yes", failures={0: "lost"})), ["why"])
    anna, ben = workers(ScriptedEngine("yes"))
    with pytest.raises(InputError, match="same number of efforts"):
        await look([anna, Worker("ben", ben.generations, ben.ways[:1])], ["why"])
    seen, states = common_signals(5, 1)
    with pytest.raises(InputError, match="5 items, but 4 states"):
        estimated(seen, states[:4], EYE, price=0.01)
