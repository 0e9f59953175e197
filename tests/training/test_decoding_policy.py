"""Policies over decoding settings: their ranges, their files, and a group that learns."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from shoal.core.errors import ConfigError, InputError
from shoal.core.protocols import Sampling
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine
from shoal.mechanisms.generations import Generations
from shoal.mechanisms.goods.contribution_game import Game
from shoal.mechanisms.goods.evaluators import by_answer
from shoal.mechanisms.goods.prompts import ByInstruction
from shoal.mechanisms.goods.public_goods import PublicGoods
from shoal.mechanisms.goods.sequence import Group, play
from shoal.mechanisms.goods.tasks import Task
from shoal.training.bandit import BanditOptions
from shoal.training.decoding_policy import OUTPUTS, DecodingPolicies, Ranges
from shoal.training.spgg import Epoch, train

NAMES = ("anna", "ben", "carl")
TASKS = [Task(f"{a} + 2", str(a + 2)) for a in range(1, 9)]
RANGES = Ranges(max_tokens=(2, 20), levels=4)
QUICK = BanditOptions(lr=0.02, target_kl=0.1, entropy=0.0)


def patient(messages: tuple[Message, ...], seed: int) -> str:
    """The answer comes after ten words: who stops before has none."""
    question = messages[-1].content.split("Question: ")[1].split("\n")[0]
    return " ".join(["so"] * 8) + f" \nAnswer: {int(question.split()[0]) + 2}"


def group(longest: int = 20) -> Group:
    known = Generations(ScriptedEngine(patient), longest=longest)
    return Group(
        PublicGoods(Game(), "last"), NAMES, dict.fromkeys(NAMES, known), ByInstruction(),
        by_answer, longest,
    )  # fmt: skip


def test_six_outputs_become_six_settings_over_their_whole_ranges() -> None:
    ranges = Ranges()
    assert len(OUTPUTS) == 6
    assert ranges.sampling([0] * 6) == Sampling(
        max_tokens=100, temperature=0.3, top_p=0.6, top_k=20
    )
    assert ranges.sampling([1] * 6) == Sampling(
        max_tokens=400, temperature=1.2, top_p=0.95, top_k=80, repetition_penalty=1.3,
        presence_penalty=0.6,
    )  # fmt: skip
    middle = ranges.sampling([0.49, 0.51, 0.5, 0.5, 0.5, 0.5])
    assert (middle.temperature, middle.top_p) == (0.75, 0.775)  # the same level of five
    assert (middle.repetition_penalty, middle.presence_penalty) == (1.15, 0.3)


@pytest.mark.parametrize(
    ("ranges", "sentence"),
    [
        ({"temperature": (1.2, 0.3)}, "runs from 1.2 to 0.3"),
        ({"top_p": (0.6, 1.5)}, "top_p is 1.5"),
        ({"presence_penalty": (-3, 0)}, "presence_penalty is -3"),
        ({"max_tokens": (0, 9)}, "lets nobody speak"),
        ({"levels": 1}, "at least 2 levels"),
    ],
)
def test_ranges_that_engines_cannot_take_are_refused(ranges: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Ranges(**ranges)


async def test_policies_learn_to_speak_long_enough_for_an_answer() -> None:
    them, policies = group(), DecodingPolicies(NAMES, RANGES, QUICK, seed=1)
    epochs: list[Epoch] = []
    await train(them, policies, TASKS, epochs=40, episodes=16, on_epoch=epochs.append)
    first, last = epochs[0].summary, epochs[-1].summary
    assert first.accuracy < 0.9
    assert last.accuracy > first.accuracy
    assert sum(last.rewards) > sum(first.rewards)
    (one, *_) = played = await play(them, TASKS, policies.decide())
    assert all(each.right for each in played)
    assert all(turn.sampling.max_tokens >= 10 for turn in one.turns)
    assert epochs[-1].generated < 40 * 16 * 3  # what was tried before was known


async def test_learning_goes_on_from_a_file_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    path = tmp_path / "policies.safetensors"
    whole = DecodingPolicies(NAMES, RANGES, QUICK, seed=2)
    await train(group(), whole, TASKS, epochs=4, episodes=8)
    half = DecodingPolicies(NAMES, RANGES, QUICK, seed=2)
    await train(group(), half, TASKS, epochs=2, episodes=8, checkpoint=path)
    again = DecodingPolicies.load(path, ranges=RANGES)
    await train(group(), again, TASKS, epochs=4, episodes=8)
    for name, tensor in whole.bandits.state().items():
        assert tensor.tolist() == again.bandits.state()[name].tolist()


def test_a_file_of_other_ranges_is_refused_and_so_is_one_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "policies.safetensors"
    DecodingPolicies(NAMES, RANGES).save(path)
    with pytest.raises(InputError, match=r"trained with max_tokens in \(2.0, 20.0\), not in"):
        DecodingPolicies.load(path, ranges=Ranges(max_tokens=(2, 30), levels=4))
    assert DecodingPolicies.load(path).agents == NAMES
    path.write_bytes(b"no tensors")
    with pytest.raises(InputError, match="holds no decoding policies"):
        DecodingPolicies.load(path)
    with pytest.raises(InputError, match="holds no decoding policies"):
        DecodingPolicies.load(tmp_path / "missing.safetensors")


async def test_training_refuses_what_does_not_fit_together() -> None:
    policies = DecodingPolicies(NAMES, RANGES)
    short, others = group(10), DecodingPolicies(("x", "y", "z"), RANGES)
    with pytest.raises(ConfigError, match="effort counts to 10"):
        await train(short, policies, TASKS, epochs=1, episodes=4)
    with pytest.raises(ConfigError, match="the order is anna, ben, carl"):
        await train(group(), others, TASKS, epochs=1, episodes=4)
    with pytest.raises(ConfigError, match="at least one task"):
        await train(group(), policies, [], epochs=1, episodes=4)


async def test_episodes_without_a_score_are_left_out_and_the_rest_is_learnt_from() -> None:
    async def broken(said: list[tuple[Task, str]]) -> list[float]:
        return [math.nan if task == TASKS[0] else 0.9 for task, _ in said]

    them = group()
    them = Group(
        them.mechanism, them.agents, them.generations, them.asking, broken, them.longest,  # type: ignore[arg-type]
    )  # fmt: skip
    policies = DecodingPolicies(NAMES, RANGES, QUICK)
    (epoch,) = await train(them, policies, TASKS, epochs=1, episodes=8)
    assert (epoch.summary.plays, epoch.summary.refused) == (8, 1)
    assert np.isfinite(epoch.summary.rewards).all()
