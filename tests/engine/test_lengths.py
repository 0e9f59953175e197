"""Lengths that answers are expected to have, and what admission makes of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from dry_run import DryRun
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.protocols import Grammar, Request, Sampling
from shoal.engine.batch.planned import Planned
from shoal.engine.generation import Generation
from shoal.engine.kvshare.order import HitRateOrder
from shoal.engine.lengths import KINDS, RECENT, SEEN, UNSEEN, AnswerLengths, Lengths, kind_of
from shoal.engine.outlook import Course, Growth, peak
from shoal.engine.policies import ArrivalOrder, LongestPrefix, Policy


def test_an_answer_has_the_length_of_one_of_those_that_were_longer() -> None:
    lengths = Lengths()
    for length in (30, 10, 20, 10, 50, 40, 10, 60):
        lengths.add(length)
    assert lengths.mean == pytest.approx(230 / 8)
    assert [lengths.drawn(0, q / 8) for q in range(8)] == [10, 10, 10, 20, 30, 40, 50, 60]
    assert [lengths.drawn(30, q / 3) for q in range(3)] == [40, 50, 60]
    assert lengths.drawn(10, 0.0) == 20
    assert lengths.drawn(60, 0.5) == 61
    assert lengths.longest == 60


def test_what_was_long_ago_is_forgotten() -> None:
    lengths = Lengths()
    for length in [900, 5, 900] * RECENT + [10, 30] * (RECENT // 2):
        lengths.add(length)
    assert lengths.mean == 20
    assert {lengths.drawn(0, quantile) for quantile in (0.0, 0.4, 0.6, 0.999)} == {10, 30}


def test_answers_under_way_are_expected_to_be_as_unlike_as_those_before() -> None:
    lengths = AnswerLengths()
    for length in range(1, 101):
        lengths.of("kind").add(length)
    one = job(Sampling(max_tokens=500), written=40)
    found = {lengths.growth(one, "kind") for _ in range(2000)}
    assert found == {Growth(slots, ends=True) for slots in range(1, 61)}


def test_kinds_beyond_those_asked_for_last_are_forgotten() -> None:
    lengths = AnswerLengths()
    lengths.of("first").add(7)
    lengths.of("second").add(7)
    for number in range(KINDS - 2):
        lengths.of(number)
    assert lengths.of("first").longest == 7
    lengths.of("one more")
    assert (lengths.of("first").longest, lengths.of("second").longest) == (7, 0)


def job(sampling: Sampling, written: int = 0, grammar: Grammar | None = None) -> Generation:
    made = DryRun(1000).job([1, 2, 3], answer=1, limit=sampling.max_tokens)
    made.request = Request(made.request.prompt, sampling, grammar)
    made.tokens += [5] * written
    return made


def test_growth() -> None:
    lengths = AnswerLengths()

    def growth(written: int = 0, limit: int = 500, **sampling: object) -> int:
        asked = Sampling(max_tokens=limit, **sampling)  # type: ignore[arg-type]
        return lengths.growth(job(asked, written), "kind").slots

    assert growth() == UNSEEN
    assert growth(20) == 2 * 20 - 20
    assert growth(200) == 200  # twice the longest so far
    assert growth(10) == 390  # also of others
    assert growth(450) == 50  # within its limit
    for _ in range(SEEN):
        lengths.of("kind").add(60)
    assert growth(10) == 50
    assert growth(70) == 1  # one more at least
    assert growth(10, min_tokens=90) == 80
    assert growth(500) == 0
    assert growth(10, ignore_eos=True) == 490  # it will reach its limit
    assert growth(10, ignore_eos=True, stop=("\n",)) == 50


def test_answers_that_were_broken_off_do_not_count() -> None:
    lengths = AnswerLengths()
    for finish in ("stop", "length", "cancelled", "error", None):
        one = job(Sampling(max_tokens=9), written=4)
        one.finish = finish  # type: ignore[assignment]
        lengths.add(one, "kind")
    assert lengths.of("kind").mean == 4
    assert not lengths.of("kind").known
    lengths.of("kind").longest = 0
    for _ in range(SEEN - 2):
        lengths.of("kind").add(1)
    assert lengths.of("kind").known


@pytest.mark.parametrize("policy", [ArrivalOrder, LongestPrefix, HitRateOrder, Planned])
def test_expecting_short_answers_admits_more_at_once(policy: Callable[[], Policy]) -> None:
    assert most_at_once(policy()) > 20


@pytest.mark.parametrize("policy", [ArrivalOrder(expects=False), Planned(expects=False)])
def test_by_their_limits_few_are_admitted(policy: Policy) -> None:
    assert most_at_once(policy) == 3


def most_at_once(policy: Policy) -> int:
    """Answers under way at most, where 4 tokens of 100 are used and memory holds 400."""
    dry = DryRun(400, policy=policy)
    dry.submit([dry.job([n, n, n], answer=4, limit=100) for n in range(60)])
    most = 0
    while dry.scheduler.busy:
        dry.step()
        most = max(most, len(dry.scheduler.running))
    assert len(dry.ended) == 60
    return most


def test_answers_take_slots_for_as_long_as_they_are_expected_to_be() -> None:
    dry = DryRun(4000)
    dry.submit([dry.job([n], answer=30, limit=1000) for n in range(SEEN)])
    dry.run()
    one = dry.job([1, 2], answer=99, limit=1000)
    dry.submit([one])
    taken = []
    while dry.scheduler.busy:
        dry.step()
        if one.decoding and one.end and one.end.capacity not in taken[-1:]:
            taken.append(one.end.capacity)
    assert taken[:2] == [30, 16]  # as those before, then little by little
    assert len(dry.ended) == SEEN + 1


def test_what_one_tenant_uses_says_nothing_of_another() -> None:
    policy = ArrivalOrder()
    dry = DryRun(4000, policy=policy)
    dry.submit([dry.job([n], answer=4, limit=100, salt="ann") for n in range(SEEN)])
    dry.run()
    assert policy.growth(dry.job([1], limit=100, salt="ann")) == Growth(4, ends=True)
    assert policy.growth(dry.job([1], limit=100, salt="bob")) == Growth(UNSEEN, ends=False)
    assert policy.growth(dry.job([1], limit=20, salt="bob")) == Growth(20, ends=True)


def walked(courses: list[Course]) -> int:
    """The same as ``peak``, a step at a time."""
    most, taken, steps = 0, 0, 0
    going = list(courses)
    while going:
        steps += 1
        taken += sum(steps > each.spare for each in going)
        most = max(most, taken)
        ending = [each for each in going if each.growth == steps and each.ends]
        taken -= sum(each.own + max(0, steps - each.spare) for each in ending)
        going = [each for each in going if each.growth > steps]
    return most


@given(
    st.lists(
        st.builds(
            Course, st.integers(1, 30), st.integers(0, 20), st.integers(0, 40), st.booleans()
        ),
        max_size=12,
    )
)
def test_the_peak_is_that_of_a_walk_step_by_step(courses: list[Course]) -> None:
    assert peak(courses) == walked(courses)


def test_answers_that_end_make_room_for_others() -> None:
    assert peak([]) == 0
    assert peak([Course(10, 0, 5)]) == 10
    assert peak([Course(10, 4, 5)]) == 6
    assert peak([Course(10, 30, 5)]) == 0
    assert peak([Course(100, 0, 0), Course(100, 0, 0)]) == 200
    assert peak([Course(100, 0, 0), Course(40, 0, 0)]) == 100
    assert peak([Course(100, 0, 0), Course(40, 0, 60)]) == 80  # two by 40, then 60 free, 60 asked
    assert peak([Course(100, 0, 0), Course(40, 0, 60, ends=False)]) == 140


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=25),
    st.integers(80, 200),
    st.sampled_from([ArrivalOrder, LongestPrefix]),
)
def test_everything_ends_however_wrong_expectations_are(
    answers: list[tuple[int, int]], slots: int, policy: Callable[[], Policy]
) -> None:
    dry = DryRun(slots, policy=policy())
    dry.submit([dry.job([n % 3, n], answer=min(a), limit=60) for n, a in enumerate(answers)])
    dry.run()
    assert len(dry.ended) == len(answers)
    assert dry.scheduler.meter.prefill_tokens >= len(answers)


def test_kinds() -> None:
    one = Request((), Sampling(max_tokens=5, stop=("a",)))
    assert kind_of(one) == kind_of(Request((), Sampling(max_tokens=5, stop=("a",), seed=3)))
    assert kind_of(one) != kind_of(Request((), Sampling(max_tokens=6, stop=("a",))))
    assert kind_of(one) != kind_of(Request((), one.sampling, Grammar("choice", ("b",))))
