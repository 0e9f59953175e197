"""Budgets: what is reserved is held at every level, children only narrow, nothing overspends."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from shoal.core.budget import Budget, Limits, Reservation
from shoal.core.errors import BudgetExhausted, ConfigError

bounds = st.none() | st.integers(0, 60)


class Ledger(RuleBasedStateMachine):
    """Any order of reserving, settling and booking in a tree of budgets, against plain sums."""

    budgets = Bundle("budgets")
    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.books: list[tuple[Budget, dict[str, int]]] = []

    def _above(self, budget: Budget) -> list[tuple[Budget, dict[str, int]]]:
        chain: list[Budget] = []
        level: Budget | None = budget
        while level is not None:
            chain.append(level)
            level = level.parent
        return [entry for entry in self.books if any(entry[0] is level for level in chain)]

    @rule(target=budgets, tokens=bounds, calls=bounds)
    def open(self, tokens: int | None, calls: int | None) -> Budget:
        budget = Budget(Limits(tokens, calls))
        self.books.append((budget, {"held": 0, "used": 0, "calls": 0}))
        return budget

    @rule(target=budgets, parent=budgets, tokens=bounds, calls=bounds)
    def child(self, parent: Budget, tokens: int | None, calls: int | None) -> Budget:
        budget = parent.child(Limits(tokens, calls), "child")
        self.books.append((budget, {"held": 0, "used": 0, "calls": 0}))
        return budget

    @rule(target=reservations, budget=budgets, tokens=st.integers(0, 30))
    def reserve(self, budget: Budget, tokens: int) -> list[Reservation]:
        fits = all(
            (
                b.limits.tokens is None
                or tokens <= max(0, b.limits.tokens - book["held"] - book["used"])
            )
            and (b.limits.calls is None or book["calls"] < b.limits.calls)
            for b, book in self._above(budget)
        )
        try:
            reservation = budget.reserve(tokens)
        except BudgetExhausted:
            assert not fits
            return []
        assert fits
        for _, book in self._above(budget):
            book["held"] += tokens
            book["calls"] += 1
        return [reservation]

    @rule(reservation=reservations, share=st.floats(0, 1))
    def settle(self, reservation: list[Reservation], share: float) -> None:
        if not reservation or not reservation[0].open:
            return
        used = int(share * reservation[0].tokens)
        for _, book in self._above(reservation[0].budget):
            book["held"] -= reservation[0].tokens
            book["used"] += used
        reservation[0].settle(used)

    @rule(budget=budgets, tokens=st.integers(0, 5))
    def spend(self, budget: Budget, tokens: int) -> None:
        for _, book in self._above(budget):
            book["used"] += tokens
            book["calls"] += 1
        budget.spend(tokens)

    @invariant()
    def the_books_agree(self) -> None:
        for budget, book in self.books:
            assert budget.used_tokens == book["used"]
            assert budget.used_calls == book["calls"]
            left = budget.remaining()
            for level, sums in self._above(budget):
                if level.limits.tokens is not None:
                    assert left.tokens is not None
                    free = level.limits.tokens - sums["used"] - sums["held"]
                    assert left.tokens <= max(0, free)


TestLedger = Ledger.TestCase


@given(st.integers(0, 100), st.lists(st.integers(0, 30), max_size=10))
def test_settled_reservations_never_exceed_the_bound(bound: int, wants: list[int]) -> None:
    budget = Budget(Limits(tokens=bound))
    for want in wants:
        try:
            budget.reserve(want).settle(want)
        except BudgetExhausted:
            assert want > bound - budget.used_tokens
    assert budget.used_tokens <= bound


def test_a_child_cannot_widen_its_parent() -> None:
    parent = Budget(Limits(tokens=10, calls=2))
    child = parent.child(Limits(tokens=1000, calls=1000), "child")
    assert child.remaining() == Limits(tokens=10, calls=2)
    with pytest.raises(BudgetExhausted, match=r"'run' has 10 tokens left.*needs 11"):
        child.reserve(11)


def test_an_exhausted_level_is_named() -> None:
    child = Budget(Limits(tokens=100), name="team").child(Limits(calls=1), "critic")
    child.reserve(1).settle(1)
    with pytest.raises(BudgetExhausted, match=r"'critic' has 0 calls left"):
        child.reserve(1)


def test_a_refused_reservation_holds_nothing_anywhere() -> None:
    parent = Budget(Limits(tokens=10))
    child = parent.child(Limits(tokens=3), "child")
    with pytest.raises(BudgetExhausted):
        child.reserve(4)
    assert parent.remaining() == Limits(tokens=10)
    assert parent.used_calls == 0


def test_what_is_held_is_not_available_to_others_until_settled() -> None:
    parent = Budget(Limits(tokens=10))
    first = parent.child(Limits(), "a").reserve(8)
    with pytest.raises(BudgetExhausted):
        parent.child(Limits(), "b").reserve(3)
    first.settle(2)
    assert parent.remaining().tokens == 8


def test_what_was_granted_before_is_held_without_asking() -> None:
    budget = Budget(Limits(tokens=5, calls=1))
    budget.hold(7).settle(7)
    assert budget.used_tokens == 7
    assert budget.remaining() == Limits(tokens=0, calls=0)


def test_a_payment_holds_tokens_and_no_call() -> None:
    budget = Budget(Limits(tokens=5, calls=0))
    budget.reserve(5, calls=0).settle(3)
    assert (budget.used_tokens, budget.used_calls) == (3, 0)


def test_time_runs_out_and_an_earlier_process_counts() -> None:
    budget = Budget(Limits(seconds=5000.0))
    budget.spend(0, calls=0, seconds=4000.0)
    assert 0 < (budget.remaining().seconds or 0) <= 1000
    budget = Budget(Limits(seconds=5.0))
    budget.spend(0, calls=0, seconds=4.99)
    time.sleep(0.02)
    with pytest.raises(BudgetExhausted, match=r"seconds left"):
        budget.reserve(0)


def test_threads_together_cannot_overspend() -> None:
    budget = Budget(Limits(tokens=1000))

    def work() -> None:
        for _ in range(200):
            try:
                budget.child(Limits(), "t").reserve(7).settle(7)
            except BudgetExhausted:
                return

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.used_tokens == 994  # the largest multiple of 7 below 1000


@pytest.mark.parametrize("field", ["tokens", "calls", "seconds"])
def test_negative_limits_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is -1"):
        Limits(**{field: -1})
