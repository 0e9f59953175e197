"""ToolRL's reward against its worked examples, its variants, and what people send it."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from shoal.core.errors import ConfigError
from shoal.core.records import ToolSpec
from shoal.envs import open_environment
from shoal.envs.calls import Answer, Call, Wanted, WantedCall, dialect
from shoal.envs.calls.values import Equality
from shoal.envs.calls.wanted import wanted
from shoal.training.rewards import VARIANTS, ToolCallReward, variant
from shoal.training.rewards.hacking import drift
from shoal.training.rewards.matching import greedy, optimal
from shoal.training.rewards.schedule import Range, Schedule, Stage, constant

TAGS = dialect("tags")


def truth(*calls: tuple[str, dict[str, Any]]) -> Wanted:
    return Wanted(
        "x",
        tuple(WantedCall(name, {k: (v,) for k, v in given.items()}) for name, given in calls),
    )


def said(*calls: tuple[str, dict[str, Any]], thought: str = "so") -> Answer:
    text = TAGS.write(Answer(tuple(Call(*one) for one in calls), ("think", "calls"), thought))
    return TAGS.read(text)


PUBLISHED = truth(("f", {"a": 1, "b": "x"}))
NEARLY = said(("f", {"a": 1, "c": "x"}))


# -- the worked examples ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "correct", "total"),
    [
        ("original", 0.5, 1.5),  # S = 1 + 1/3 + 1, S_max = 4
        ("finegrained", 0.0, 1.0),  # S = 1 + 0 + 1
        ("intermediate", 0.0, 1.0),  # S = 1, S_max = 2
        ("coarse", -3.0, -2.0),
        ("equal-max", 1 / 6, 7 / 6),  # 2 · 7/12 - 1
    ],
)
def test_the_worked_example_of_each_granularity(name: str, correct: float, total: float) -> None:
    told = VARIANTS[name].score(PUBLISHED, NEARLY, TAGS)
    assert told.parts["format"] == 1
    assert told.parts[next(part for part in told.parts if part != "format")] == pytest.approx(
        correct
    )
    assert told.total == pytest.approx(total)


def test_two_wanted_and_one_called() -> None:
    told = VARIANTS["original"].score(
        truth(("f", {"a": 1}), ("g", {"b": 2})), said(("f", {"a": 1})), TAGS
    )
    assert told.parts["original"] == 0  # S = 1/2 + 2, S_max = 5
    assert told.marks == {
        "format": 1, "exact": 0, "name": 0.5, "parameter": 0.5, "value": 0.5, "called_exactly": 0
    }  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_right_answer_gets_the_most_and_nothing_the_least(name: str) -> None:
    reward = VARIANTS[name]
    right = said(("f", {"a": 1, "b": "x"}), thought="word " * 700)
    for progress in (0.0, 0.2, 0.5, 1.0):
        low, high = reward.bounds(progress)
        assert reward.score(PUBLISHED, right, TAGS, progress).total == pytest.approx(high)
        assert reward.score(PUBLISHED, Answer(), TAGS, progress).total == pytest.approx(low)


def test_the_published_range_is_from_minus_three_to_four() -> None:
    for name in ("original", "finegrained", "intermediate", "coarse"):
        assert VARIANTS[name].bounds(0.7) == (-3, 4)


@pytest.mark.parametrize(
    ("name", "progress", "format_", "correct"),
    [
        # R_f in [-2 + p, 2 - p], R_c in [-2 - p, 2 + p]; 7/12 of S_max is reached
        ("dynamic", 0.0, 2.0, -2 + 4 * 7 / 12),
        ("dynamic", 0.5, 1.5, -2.5 + 5 * 7 / 12),
        ("dynamic", 1.0, 1.0, 0.5),
        # a third for the first 30 of 105 steps, then in full, and format halved
        ("two-stage", 0.0, 1.0, 1 / 6),
        ("two-stage", 29 / 105, 1.0, 1 / 6),
        ("two-stage", 30 / 105, 0.5, 0.5),
        ("two-stage", 1.0, 0.5, 0.5),
    ],
)
def test_schedules_go_by_progress(
    name: str, progress: float, format_: float, correct: float
) -> None:
    told = VARIANTS[name].score(PUBLISHED, NEARLY, TAGS, progress)
    assert told.parts == pytest.approx({"format": format_, "original": correct})


@pytest.mark.parametrize(
    ("name", "progress", "words", "worth"),
    [
        ("length", 0.0, 128, 0.25),
        ("length", 1.0, 128, 0.25),
        ("length", 0.0, 2_000, 1.0),
        ("scheduled-length", 0.0, 192, 0.5),  # of 384
        ("scheduled-length", 0.5, 256, 0.5),  # of 512
        ("scheduled-length", 1.0, 320, 0.5),  # of 640
    ],
)
def test_length_is_words_of_thinking_over_a_target(
    name: str, progress: float, words: int, worth: float
) -> None:
    answer = said(("f", {"a": 1, "b": "x"}), thought="word " * words)
    assert VARIANTS[name].score(PUBLISHED, answer, TAGS, progress).parts["length"] == worth


def test_the_papers_own_length_schedule_is_a_setting() -> None:
    schedule = Schedule(
        (Stage({"length": Range(0, 1)}),),
        length=(512, 1024),  # L · (1 + p)
    )
    reward = ToolCallReward(("length",), schedule)
    answer = said(("f", {"a": 1, "b": "x"}), thought="word " * 384)
    assert reward.score(PUBLISHED, answer, TAGS, 0.5).total == 0.5


# -- matching ---------------------------------------------------------------------------------


def reference(wanted_: list[Call], found: list[Call]) -> float:
    """ToolRL's S / S_max in the plainest way, with its greedy matching."""
    left = [one.name for one in found]
    both = 0
    for one in wanted_:
        if one.name in left:
            left.remove(one.name)
            both += 1
    score = both / (len(wanted_) + len(found) - both)
    most = 1.0 + len(wanted_) + sum(len(one.arguments) for one in wanted_)
    used: list[int] = []
    for one in wanted_:
        best, place = 0.0, None
        for at, other in enumerate(found):
            if other.name != one.name or at in used:
                continue
            ours, theirs = set(one.arguments), set(other.arguments)
            keys = len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0
            values = sum(k in theirs and one.arguments[k] == other.arguments[k] for k in ours)
            if keys + values > best:
                best, place = keys + values, at
        if place is not None:
            used.append(place)
            score += best
    return score / most


some_calls = st.lists(
    st.builds(
        Call,
        st.sampled_from("fg"),
        st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@given(some_calls, some_calls)
def test_the_formula_is_the_plainest_one(ours: list[Call], theirs: list[Call]) -> None:
    goal = truth(*((one.name, dict(one.arguments)) for one in ours))
    answer = Answer(tuple(theirs), ("think", "calls"))
    reward = variant("original", equality="json")
    told = reward.score(goal, answer, TAGS).parts["original"]
    assert told == pytest.approx(6 * reference(ours, theirs) - 3)
    best = variant("original", equality="json", matcher="optimal")
    assert best.score(goal, answer, TAGS).parts["original"] >= told - 1e-12


@given(
    st.integers(0, 4).flatmap(
        lambda columns: st.lists(
            st.lists(
                st.none() | st.integers(0, 6).map(lambda n: Fraction(n, 3)),
                min_size=columns,
                max_size=columns,
            ),
            max_size=4,
        )
    )
)
def test_the_optimal_matching_is_scipys(scores: list[list[Fraction | None]]) -> None:
    found = optimal(scores)
    places = [place for place in found if place is not None]
    assert len(set(places)) == len(places)
    value = sum(
        float(row[at] or 0) for row, at in zip(scores, found, strict=True) if at is not None
    )
    table = np.array([[float(one or 0) for one in row] for row in scores])
    table = table.reshape(len(scores), len(scores[0]) if scores else 0)
    rows, columns = linear_sum_assignment(table, maximize=True)
    assert value == pytest.approx(float(table[rows, columns].sum()))
    assert all(at is None or row[at] is not None for row, at in zip(scores, found, strict=True))


def test_where_greedy_takes_what_another_needs() -> None:
    goal = truth(("f", {"a": 1, "b": 1}), ("f", {"a": 1, "b": 2}))
    # the first wanted call scores 2 with either, and takes the one that is exactly the second
    answer = said(("f", {"a": 1, "b": 2}), ("f", {"b": 1, "c": 9, "a": 1}))
    scores = [[Fraction(2), Fraction(2, 3) + 2], [Fraction(3), Fraction(2, 3) + 1]]
    assert greedy(scores) == [1, 0] == optimal(scores)
    tied = [[Fraction(2), Fraction(2)], [Fraction(3), Fraction(1)]]
    assert greedy(tied) == [0, 1] and optimal(tied) == [1, 0]
    by_greedy = VARIANTS["original"].score(goal, answer, TAGS).total
    assert variant("original", matcher="optimal").score(goal, answer, TAGS).total >= by_greedy


def test_many_needless_calls_are_punished_by_their_names() -> None:
    right = ("f", {"a": 1})
    for count in (1, 10, 100, 1_000):
        told = VARIANTS["original"].score(truth(right), said(*[right] * count), TAGS)
        assert told.parts["original"] == pytest.approx(6 * (1 / count + 2) / 3 - 3)
        assert told.marks["exact"] == (count == 1)


@given(some_calls, some_calls, st.sampled_from(sorted(VARIANTS)), st.floats(0, 1))
def test_every_reward_stays_within_its_bounds(
    ours: list[Call], theirs: list[Call], name: str, progress: float
) -> None:
    goal = truth(*((one.name, dict(one.arguments)) for one in ours))
    reward = VARIANTS[name]
    low, high = reward.bounds(progress)
    told = reward.score(goal, Answer(tuple(theirs), ("think", "calls")), TAGS, progress)
    assert low - 1e-9 <= told.total <= high + 1e-9
    assert told.total == sum(told.parts.values())
    assert all(0 <= value <= 1 for value in told.marks.values())


# -- no call wanted ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("no_call", "silent", "called", "broken"),
    [("zero", 0, 0, 0), ("punish", 0, -3, -3), ("score", 3, -3, -3)],
)
def test_not_calling_is_worth_what_the_reward_says(
    no_call: Any, silent: float, called: float, broken: float
) -> None:
    reward = variant("original", no_call=no_call)
    nothing = Wanted("x")
    quiet = TAGS.read("<think> no tool </think>\n<response> I cannot. </response>")
    told = reward.score(nothing, quiet, TAGS)
    assert told.parts == {"format": 1, "original": silent} and told.marks["irrelevance"] == 1
    told = reward.score(nothing, NEARLY, TAGS)
    assert told.parts == {"format": 0, "original": called} and told.marks["irrelevance"] == 0
    garbled = TAGS.read("<think> x </think>\n<tool_call>\n{oops\n</tool_call>")
    told = reward.score(nothing, garbled, TAGS)
    assert told.parts["original"] == broken and told.marks["irrelevance"] == 0


# -- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "why"),
    [
        ('{"name": "f", "parameters": {"a": 1, "a": 1, "b": "x"}}', "given twice"),
        ('{"name": "f", "name": "f", "parameters": {}}', "given twice"),
        ('{"name": "f", "parameters": {"a": NaN}}', "no JSON number"),
        ('{"name": "f", "parameters": {"a": Infinity}}', "no JSON number"),
        ('{"name": "f", "parameters": {"a": 1e400}}', "too large"),
        ('{"name": "f", "parameters": {"a": ' + "1" * 1_000 + "}}", "too large"),
        ('{"name": "f"}', "missing"),
        ('{"parameters": {}}', "no name"),
        ('{"name": "f", "parameters": [1]}', "list"),
        ("[1, 2]", "object"),
        ('{"name": "f", "parameters": {"a": 1, "b": "x"}', "No valid JSON"),
        ("f(a=1, b='x')", "No valid JSON"),
    ],
)
def test_calls_that_cannot_be_read_get_the_least_and_say_why(inside: str, why: str) -> None:
    answer = TAGS.read(f"<think> x </think>\n<tool_call>\n{inside}\n</tool_call>")
    told = VARIANTS["original"].score(PUBLISHED, answer, TAGS)
    assert told.parts == {"format": 1, "original": -3}
    assert why in told.errors[0] and told.final_answer is None


def test_one_broken_call_spoils_the_others() -> None:
    good = json.dumps({"name": "f", "parameters": {"a": 1, "b": "x"}})
    text = f"<think> x </think>\n<tool_call>\n{good}\n{{oops\n</tool_call>"
    assert VARIANTS["original"].score(PUBLISHED, TAGS.read(text), TAGS).parts["original"] == -3


def test_nested_objects_are_compared_deeply() -> None:
    nested = {"a": {"b": [1, {"c": [2, 3]}]}}
    other = {"a": {"b": [1, {"c": [3, 2]}]}}
    reward = VARIANTS["original"]
    assert reward.score(truth(("f", nested)), said(("f", nested)), TAGS).total == 4
    assert reward.score(truth(("f", nested)), said(("f", other)), TAGS).total == pytest.approx(2)


def test_a_tool_without_parameters_can_be_called() -> None:
    goal = truth(("f", {}))
    assert VARIANTS["original"].score(goal, said(("f", {})), TAGS).total == 4
    # S = 1 + 0, S_max = 2: a parameter nobody asked for
    assert VARIANTS["original"].score(goal, said(("f", {"a": 1})), TAGS).total == 1
    assert VARIANTS["original"].score(goal, said(("g", {})), TAGS).total == -2


@pytest.mark.parametrize(
    ("equality", "given_", "right"),
    [("json", "1", False), ("json", 1.0, True), ("json", True, False), ("schema", 1.0, True)],
)
def test_types_count(equality: Equality, given_: Any, right: bool) -> None:
    reward = variant("original", equality=equality)
    told = reward.score(truth(("f", {"a": 1})), said(("f", {"a": given_})), TAGS)
    assert (told.total == 4) == right


def test_what_may_be_left_out_costs_nothing_and_counts_when_given() -> None:
    tool = ToolSpec(
        "f", "", {"type": "object", "properties": {"a": {}, "b": {"default": 5}, "c": {}}}
    )
    goal = wanted("x", [("f", {"a": [1], "c": [2, 3]})], [tool], optional=[{"c"}])
    reward = VARIANTS["original"]
    for arguments in ({"a": 1}, {"a": 1, "c": 3}, {"a": 1, "b": 5}):
        assert reward.score(goal, said(("f", arguments)), TAGS).total == 4
    # S = 1 + 1 + 1, S_max = 4
    assert reward.score(goal, said(("f", {"a": 1, "c": 9})), TAGS).parts["original"] == 1.5
    # S = 1 + 1/2 + 1, S_max = 3
    assert reward.score(goal, said(("f", {"a": 1, "b": 6})), TAGS).parts["original"] == 2


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: variant("orginal"), "Did you mean 'original'"),
        (lambda: ToolCallReward(("formt",), constant(formt=(0, 1))), "Did you mean 'format'"),
        (lambda: ToolCallReward(("format",), constant(coarse=(0, 1))), "what 'format' is worth"),
        (lambda: ToolCallReward((), constant()), "without parts"),
        (lambda: variant("original", matcher="best"), "no matcher"),
        (lambda: variant("binary", weights={"format": 2.0}), "is no part of this reward"),
        (lambda: Schedule(()), "Stages"),
        (lambda: Schedule((Stage({}, 0.5),)), "Stages"),
        (lambda: Schedule((Stage({}, 1.0), Stage({}, 0.5))), "Stages"),
        (lambda: Schedule((Stage({}),), length=(0, 5)), "words"),
    ],
)
def test_rewards_that_cannot_be_are_refused(make: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make()


def test_progress_beyond_the_run_is_our_mistake() -> None:
    for progress in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="progress"):
            VARIANTS["dynamic"].score(PUBLISHED, NEARLY, TAGS, progress)


def test_two_rewards_in_one_process_differ() -> None:
    strict, soft = VARIANTS["coarse"], variant("original", weights={"format": 2.0})
    for _ in range(2):
        assert strict.score(PUBLISHED, NEARLY, TAGS).total == -2
        assert soft.score(PUBLISHED, NEARLY, TAGS).total == 2.5
    assert soft.bounds(0) == (-3, 5)


def test_an_environment_without_calls_is_refused() -> None:
    env = open_environment("arithmetic")
    env.reset(0)
    with pytest.raises(ConfigError, match="arithmetic does not say which calls are wanted"):
        VARIANTS["original"](env, "1", env.step("1"), 0.0)


# -- reward hacking ---------------------------------------------------------------------------


def run_of(format_: list[float], value: list[float]) -> list[dict[str, float]]:
    return [
        {"marks.format": one, "marks.value": other}
        for one, other in zip(format_, value, strict=True)
    ]


def test_format_that_rises_alone_is_told() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.02, (4, 40))
    rises, flat = np.linspace(0.2, 0.9, 40), np.full(40, 0.3)
    found = drift(run_of(list(rises + noise[0]), list(flat + noise[1])))
    assert found is not None and found.hacked and "Format rose by 0.5" in found.sentence
    found = drift(run_of(list(rises + noise[2]), list(rises + noise[3])))
    assert found is not None and not found.hacked
    found = drift(run_of(list(flat + noise[0]), list(flat + noise[1])))
    assert found is not None and not found.hacked


def test_short_runs_and_runs_without_marks_say_nothing() -> None:
    assert drift(run_of([0.0, 1.0], [0.0, 0.0])) is None
    assert drift([{"reward": 1.0}] * 100) is None
