"""Models in a fixed order: what each sees, what its tokens cost, and what a failure does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from shoal.core.errors import ConfigError
from shoal.core.log import EventLog
from shoal.core.protocols import Sampling
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine
from shoal.mechanisms.generations import Generations
from shoal.mechanisms.goods.contribution_game import Game
from shoal.mechanisms.goods.evaluators import Graded, by_answer
from shoal.mechanisms.goods.features import SLOTS, size, state_of
from shoal.mechanisms.goods.leave_one_out import marginals, rank_correlation
from shoal.mechanisms.goods.prompts import ByExample, ByInstruction, Heard
from shoal.mechanisms.goods.public_goods import Observe, PublicGoods
from shoal.mechanisms.goods.sequence import Group, play
from shoal.mechanisms.goods.tasks import Task

TASKS = [Task(f"{a} + 2", str(a + 2), f"{a} + 2 = {a + 2}.") for a in (1, 2, 3)]
NAMES = ("anna", "ben", "carl")


def solver(messages: tuple[Message, ...], seed: int) -> str:
    question = messages[-1].content.split("Question: ")[1].split("\n")[0]
    return f"it is so \nAnswer: {int(question.split()[0]) + 2}"


def group(
    answers: object = solver, observe: Observe = "all", longest: int = 20, **engine: object
) -> Group:
    known = Generations(ScriptedEngine(answers, **engine), longest=longest)  # type: ignore[arg-type]
    return Group(
        PublicGoods(Game(), observe), NAMES, dict.fromkeys(NAMES, known), ByInstruction(),
        by_answer, longest,
    )  # fmt: skip


def same(sampling: Sampling) -> object:
    def decide(place: int, states: Sequence[object]) -> list[Sampling]:
        return [sampling] * len(states)

    return decide


async def test_tokens_really_spent_are_what_effort_costs() -> None:
    played = await play(group(), TASKS, same(Sampling(max_tokens=20)))
    for one in played:
        assert [turn.spoken.tokens for turn in one.turns] == [5, 5, 5]
        assert one.details["efforts"] == dict.fromkeys(NAMES, 0.25)
        assert one.details["contributions"] == dict.fromkeys(NAMES, 0.9)
        spent = 0.25 + 0.05 * 0.25**2
        shares = 1.8 / 3 * 2.7
        assert one.reward("anna") == pytest.approx(shares - spent)
        assert one.reward("carl") == pytest.approx(shares - spent + 1.5 * 0.9 * 0.9)
        assert one.right


async def test_who_stops_early_saves_tokens_and_answers_nothing() -> None:
    (one,) = await play(group(), TASKS[:1], same(Sampling(max_tokens=2)))
    assert one.tokens == 6
    assert not one.right
    assert one.details["free_riders"] == list(NAMES)
    assert not one.details["reaches_bar"]


@pytest.mark.parametrize(("observe", "seen"), [("none", 0), ("last", 1), ("all", 2)])
async def test_an_agent_sees_those_before_it_that_it_may_see(observe: Observe, seen: int) -> None:
    them = group(observe=observe)
    await play(them, TASKS[:1], same(Sampling(max_tokens=20)))
    engine = them.generations["anna"].engine
    assert isinstance(engine, ScriptedEngine)
    asked = [messages.prompt[-1].content for (messages,) in engine.groups]  # type: ignore[union-attr]
    assert [text.count("'s answer: 3") for text in asked] == [0, min(seen, 1), seen]
    assert all("carl" not in text for text in asked)
    roles = [messages.prompt[0].content for (messages,) in engine.groups]  # type: ignore[union-attr]
    assert "Your answer is the group's answer." in roles[2]
    assert "Your answer is the group's answer." not in roles[1]


async def test_every_setting_reaches_the_engine_with_the_prompts_stop() -> None:
    them = group()
    them = replace(them, asking=ByExample(tuple(TASKS[1:])))
    sampling = Sampling(
        max_tokens=9, temperature=0.4, top_p=0.7, top_k=30, repetition_penalty=1.2,
        presence_penalty=0.3,
    )  # fmt: skip
    await play(them, TASKS[:1], same(sampling), seeds=[7])
    engine = them.generations["anna"].engine
    assert isinstance(engine, ScriptedEngine)
    for place, (request,) in enumerate(engine.groups):
        assert request.sampling == replace(sampling, stop=("\nQuestion:",), seed=21 + place)


async def test_a_failing_agent_leaves_a_gap_and_shares_still_go_by_all() -> None:
    them = group(failures={1: "no answer in time"})
    with EventLog() as log:
        (one,) = await play(them, TASKS[:1], same(Sampling(max_tokens=20)), log=log)
        (event,) = log.events("settlement")
    assert one.turns[1].skipped
    assert math.isnan(one.reward("ben"))
    assert one.settlement is not None and one.settlement.absent == ("ben",)
    assert event.body["absent"] == ["ben"]
    assert one.reward("anna") == pytest.approx(0.6 * 1.8 - (0.25 + 0.05 / 16) - 1.5)  # bar missed
    engine = them.generations["anna"].engine
    assert isinstance(engine, ScriptedEngine)
    assert "ben said:\n(nothing)" in engine.groups[2][0].prompt[-1].content  # type: ignore[union-attr]


async def test_an_empty_text_scores_the_least_and_the_play_goes_on() -> None:
    (one,) = await play(group(""), TASKS[:1], same(Sampling(max_tokens=20)))
    assert one.details["empty"] == list(NAMES)
    assert one.details["contributions"] == dict.fromkeys(NAMES, 0.1)
    assert one.details["efforts"] == dict.fromkeys(NAMES, 0.0)


@pytest.mark.parametrize("score", [float("nan"), 0.0, 1.2])
async def test_a_score_that_is_none_spoils_its_task_only(score: float) -> None:
    async def broken(said: Sequence[tuple[Task, str]]) -> list[float]:
        return [score if task == TASKS[1] else 0.9 for task, _ in said]

    played = await play(replace(group(), evaluator=broken), TASKS, same(Sampling(max_tokens=20)))
    assert [one.settlement is None for one in played] == [False, True, False]
    assert "'anna' is scored" in played[1].refused
    assert math.isnan(played[1].reward("anna"))


def test_an_order_with_duplicates_and_other_bad_groups_are_refused() -> None:
    them = group()
    with pytest.raises(ConfigError, match="named twice in the order anna, anna, ben"):
        replace(them, agents=("anna", "anna", "ben"))
    with pytest.raises(ConfigError, match="for 3 agents, but 2"):
        replace(them, agents=("anna", "ben"))
    with pytest.raises(ConfigError, match="'dora' has no model"):
        replace(them, agents=("anna", "ben", "dora"))
    with pytest.raises(ConfigError, match="0 lets nobody speak"):
        replace(them, longest=0)


async def test_what_is_asked_again_is_not_generated_again() -> None:
    them = group()
    known = them.generations["anna"]
    first = await play(them, TASKS, same(Sampling(max_tokens=20)))
    made = known.made
    again = await play(them, TASKS, same(Sampling(max_tokens=20)))
    assert (known.made, known.asked) == (made, 2 * made)
    assert [one.turns[2].spoken for one in first] == [one.turns[2].spoken for one in again]


async def test_marginals_are_what_the_last_score_loses_without_an_agent() -> None:
    def copier(messages: tuple[Message, ...], seed: int) -> str:
        """The first agent solves; the others repeat an answer they see, or have none."""
        if "number 1 of" in messages[0].content:
            return solver(messages, seed)
        said = messages[-1].content.rpartition("'s answer: ")[2]
        return f"\nAnswer: {said}" if "'s answer: " in messages[-1].content else "I see nothing"

    them = group(copier)
    played = await play(them, TASKS, same(Sampling(max_tokens=20)))
    worth = await marginals(them, played)
    assert worth == pytest.approx(np.tile([0.8, 0.0, 0.0], (3, 1)))
    contributions = np.array([[turn.score for turn in one.turns] for one in played])
    assert contributions == pytest.approx(np.full((3, 3), 0.9))  # scores alone hide the lazy two


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, 40).astype(float), rng.integers(0, 6, 40).astype(float)
    assert rank_correlation(x, y) == pytest.approx(float(spearmanr(x, y).statistic))
    assert rank_correlation(x, np.ones(40)) == 0.0


def test_states_follow_from_texts_alone_and_tell_what_was_said() -> None:
    heard = [Heard("anna", "1 + 2 = 3\nAnswer: 3"), Heard("ben", None), Heard("carl", "3")]
    state = state_of("1 + 2", 4, 4, heard)
    assert state.shape == (size(4),)
    assert state.tolist() == state_of("1 + 2", 4, 4, heard).tolist()
    assert state[:4].tolist() == [0, 0, 0, 1]
    slots = state[-7 * SLOTS :].reshape(SLOTS, 7)
    assert slots[0, 5] == 0  # carl has no answer line, though a number
    assert slots[1].tolist() == [1, 0, 0, 0, 0, 0, 0]  # ben's gap
    assert slots[2, 5] == 1
    assert (state_of("1 + 2", 1, 4, [])[-7 * SLOTS :] == 0).all()
    assert np.isfinite(state_of("", 1, 4, [Heard("anna", "")])).all()


async def test_a_graded_score_is_anchored_to_the_answer_and_within_its_bounds() -> None:
    engine = ScriptedEngine()
    grade = Graded(engine, share=0.3)
    task = TASKS[0]
    right, wrong, none = await grade(
        [(task, "so\nAnswer: 3"), (task, "so\nAnswer: 4"), (task, "so it goes")]
    )
    assert 0.7 * 0.9 <= right <= 0.7 * 0.9 + 0.3
    assert right - wrong == pytest.approx(0.7 * 0.8)  # the same work, another answer
    assert 0.1 <= none <= 0.7 * 0.1 + 0.3
