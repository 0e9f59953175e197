"""What every environment promises, and what each says of itself."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Hashable
from typing import Any

import numpy as np
import pytest

from shoal.core.errors import ConfigError, MissingExtra
from shoal.envs import BadEnvironment, Demonstrates, Environment, open_environment
from shoal.envs.aliasing import Aliasing, aliasing
from shoal.envs.protocol import Spells, as_key
from shoal.envs.reasoning import canonical
from shoal.envs.strategies import METHODS

CASES: dict[str, dict[str, Any]] = {
    "taxi": {},
    "frozen-lake": {},
    "minigrid": {},
    "minigrid ": {"level": "MiniGrid-MultiRoom-N2-S4-v0", "holding": True, "colours": True},
    "reasoning": {"config": {"min_terms": 2, "max_terms": 2}},
    "reasoning ": {"task": "letter_counting", "spaced": True},
    "strategies": {},
    "arithmetic": {},
    "tool-world": {},
    "textarena": {},
    "textworld-express": {},
}


def opened(case: str) -> Environment:
    if case == "textworld-express" and shutil.which("java") is None:
        pytest.skip("TextWorld-Express needs Java")
    return open_environment(case.strip(), CASES[case])


@pytest.fixture(params=CASES)
def env(request: pytest.FixtureRequest) -> Environment:
    return opened(request.param)


def actions(env: Environment, n: int) -> list[str]:
    """Some actions: the expert's, or the first that make sense, or nonsense."""
    if isinstance(env, Demonstrates):
        return [env.expert_action()][:n]
    return list(env.admissible_actions()[:n]) or ["[A B]"]


def test_the_same_seed_is_the_same_start(env: Environment) -> None:
    first, key = env.reset(5), env.state_key()
    env.step(actions(env, 1)[0])
    assert env.reset(5) == first and env.state_key() == key


def test_an_action_that_makes_no_sense_is_no_error(env: Environment) -> None:
    env.reset(1)
    found = env.step("fly to the moon")
    assert np.isfinite(found.reward) and env.reward_min <= found.reward <= env.reward_max


def test_a_snapshot_brings_a_state_back(env: Environment) -> None:
    env.reset(2)
    if env.max_steps > 1:
        env.step(actions(env, 1)[0])
    key, kept = env.state_key(), env.snapshot()
    for action in actions(env, 2):
        env.step(action)
    env.restore(kept)
    assert env.state_key() == key


def test_keys_can_be_hashed_and_repeat(env: Environment) -> None:
    env.reset(3)
    assert isinstance(env.state_key(), Hashable)
    assert hash(env.state_key()) == hash(env.state_key())


def test_an_expert_solves_what_it_can_and_rewards_stay_in_bounds(env: Environment) -> None:
    if not isinstance(env, Demonstrates):
        pytest.skip("knows no expert")
    solved = 0
    for seed in range(8):
        env.reset(seed)
        total = 0.0
        for _ in range(env.max_steps):
            found = env.step(env.expert_action())
            total += found.reward
            if found.done:
                break
        solved += found.solved
        assert env.reward_min <= total <= env.reward_max + 1e-6
        assert not found.solved or total == pytest.approx(env.reward_max)
    assert solved >= (2 if env.name in ("strategies", "arithmetic") else 8)


def test_a_vocabulary_holds_all_that_is_said(env: Environment) -> None:
    if not isinstance(env, Spells) or "textworld" in env.name:
        pytest.skip("spells nothing, or from samples only")
    from shoal.training.policies import word_policy

    policy = word_policy(env.words(), hidden=16, layers=1, heads=2)
    said = [env.reset(seed) for seed in range(20)]
    for text in said:
        tokens = policy.tokenizer.encode(text)
        assert 1 not in tokens, f"{policy.tokenizer.decode(tokens)!r} of {text!r}"


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, extra in (
        ("gymnasium", "taxi", "envs"),
        ("minigrid", "minigrid", "envs"),
        ("reasoning_gym", "reasoning", "envs"),
        ("textarena", "textarena", "games"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtra, match=rf"shoal\[{extra}\]"):
            open_environment(name)


def test_java_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.envs import textworld_express

    monkeypatch.setattr(textworld_express, "_gateway", None)
    monkeypatch.setattr(textworld_express.shutil, "which", lambda name: None)
    if importlib.util.find_spec("textworld_express") is None:
        pytest.skip("not installed")
    with pytest.raises(ConfigError, match="needs Java"):
        open_environment("textworld-express")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("minigrd", {}, "Did you mean 'minigrid'"),
        ("minigrid", {"veiw": 1}, "Did you mean 'view'"),
        ("minigrid", {"level": "MiniGrid-Nowhere-v0"}, "no MiniGrid level"),
        ("minigrid", {"actions": ["jump"]}, "no action 'jump'"),
        ("minigrid", {"view": 0}, "sees nothing"),
        ("reasoning", {"task": "mind_reading"}, "cannot make 'mind_reading'"),
        ("textarena", {"game": "Nothing-v9"}, "no game 'Nothing-v9'"),
        ("textworld-express", {"game": "golf"}, "no game 'golf'"),
    ],
)
def test_wrong_names_and_options_are_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_environment(name, options)


def test_a_game_for_two_is_not_played_alone() -> None:
    env = open_environment("textarena", {"game": "TicTacToe-v0"})
    with pytest.raises(ConfigError, match="is not played alone"):
        env.reset(0)


# -- MiniGrid -------------------------------------------------------------------------------


def test_minigrid_keys_tell_apart_what_reads_the_same() -> None:
    env = open_environment("minigrid", {"level": "MiniGrid-DoorKey-6x6-v0", "view": 1})
    texts, states = [], []
    rng = np.random.default_rng(0)
    for _ in range(20):
        text = env.reset(0)
        for _ in range(40):
            texts.append(text)
            states.append(env.state_key())
            found = env.step(str(rng.choice(env.admissible_actions())))
            text = found.observation
            if found.done:
                break
    found = aliasing(texts, states)
    assert found.aliased > 0.3 and len(set(states)) > 2 * len(set(texts))


def test_minigrid_says_the_same_states_as_its_own_hash() -> None:
    env = open_environment("minigrid", {"level": "MiniGrid-DoorKey-5x5-v0"})
    world = env._world  # type: ignore[attr-defined]
    ours: dict[Hashable, str] = {}
    rng = np.random.default_rng(1)
    for _ in range(10):
        env.reset(4)
        for _ in range(40):
            theirs = f"{world.hash()} {world.carrying and world.carrying.type}"
            assert ours.setdefault(env.state_key(), theirs) == theirs
            if env.step(str(rng.choice(env.admissible_actions()))).done:
                break
    assert len(set(ours.values())) == len(ours) > 20


def test_minigrid_reads_from_where_the_agent_looks() -> None:
    env = open_environment("minigrid", {"level": "MiniGrid-Empty-5x5-v0", "view": 3})
    assert env.reset(0) == "empty , wall , empty sees goal ahead2 right2"
    assert env.step("right").observation == "empty , empty , wall sees goal ahead2 left2"
    assert env.step("forward").observation == "empty , empty , wall sees goal ahead1 left2"


# -- questions ------------------------------------------------------------------------------


def test_held_out_questions_are_never_trained_on() -> None:
    env = open_environment("strategies")
    trained = {env.reset(seed) for seed in range(4_000)}
    held_out = {env.reset(1_000_000 + seed) for seed in range(1_000)}
    assert not trained & held_out and len(held_out) > 100


def test_methods_give_their_results() -> None:
    env = open_environment("strategies", {"base": 7})
    for seed in range(30):
        text = env.reset(seed)
        *_, a, b = text.split()
        method, value = env.right(seed).split()  # type: ignore[attr-defined]
        assert METHODS[method](int(a), int(b)) % 7 == int(value)
        assert env.step(f"{method} {value}").solved


def test_misled_kinds_are_shown_one_wrong_method() -> None:
    env = open_environment("strategies", {"misled": 0.5, "habit": 1.0})
    shown: dict[str, set[str]] = {}
    wrong: dict[str, bool] = {}
    for seed in range(2_000):
        kind = " ".join(env.reset(seed).split()[:2])
        shown.setdefault(kind, set()).add(env.expert_action().split()[0])  # type: ignore[attr-defined]
        wrong[kind] = env.expert_action() != env.right(seed)  # type: ignore[attr-defined]
    assert all(len(methods) == 1 for methods in shown.values())
    assert sum(wrong.values()) == 8 and len(wrong) == 16


def test_an_answer_that_cannot_be_read_is_none() -> None:
    env = open_environment("arithmetic")
    env.reset(0)
    found = env.step("many")
    assert env.final_answer is None and not found.valid


def test_answers_that_mean_the_same_are_equal() -> None:
    assert canonical("1/2") == canonical("0.5") == canonical(" .50 ")
    assert canonical("1,000") == canonical("1000")
    assert canonical("Seven  Dwarfs.") == canonical("seven dwarfs")
    assert canonical("1/0") != canonical("0")


def test_reasoning_reads_exactly_one_tagged_answer() -> None:
    env = open_environment("reasoning", {"tags": True})
    env.reset(0)
    answer = env.expert_action()  # type: ignore[attr-defined]
    assert env.step(f"let me see {answer}").solved
    env.reset(0)
    found = env.step(f"{answer} or {answer}")
    assert not found.valid and env.final_answer is None and found.reward == 0


# -- keys and aliasing ----------------------------------------------------------------------


def test_arrays_and_lists_become_keys() -> None:
    assert as_key(np.array([[1, 2]]), "w") == ((1, 2),)
    assert as_key({"b": [1], "a": 2}, "w") == (("a", 2), ("b", (1,)))


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.array([0.5]), "w holds the float 0.5"), ({1, 2}, "is a set, which cannot be hashed")],
)
def test_keys_that_never_repeat_or_cannot_be_hashed_are_refused(value: Any, message: str) -> None:
    with pytest.raises(BadEnvironment, match=message):
        as_key(value, "w")


def test_the_aliasing_meter_counts_keys_and_visits() -> None:
    found = aliasing(["a", "a", "a", "b", "b", "c"], [1, 1, 2, 3, 3, 4])
    assert found == Aliasing(keys=2, aliased=0.5, visits=0.2)


def test_keys_that_never_repeat_cannot_alias() -> None:
    assert aliasing(["a", "b"], [1, 1]) == Aliasing(0, 0.0, 0.0)
