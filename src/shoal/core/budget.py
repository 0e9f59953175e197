"""Budgets: reserve what a turn may cost, settle what it did cost; children can only narrow.

A budget limits tokens, calls and seconds. A child never allows more than its parent has left,
and every reservation is held at all levels at once, so concurrent turns cannot overspend
together.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from shoal.core.errors import BudgetExhausted, ConfigError


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds; None is no bound of one's own (the parent's still holds).

    tokens   prompt and generated tokens together, as asked for
    calls    model calls
    seconds  wall time since the budget was opened
    """

    tokens: int | None = None
    calls: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "calls", "seconds"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"A budget's {name} is {value}, but cannot be negative.")


@dataclass(slots=True)
class Reservation:
    """Tokens held for one call until it is settled (or released with ``settle(0)``)."""

    budget: Budget
    tokens: int
    open: bool = True

    def settle(self, tokens: int) -> None:
        """Replace what was held by what was really used; may be called once."""
        assert self.open, "a reservation is settled once"
        self.open = False
        self.budget._settle(self.tokens, tokens)


class Budget:
    """A ledger of one team or member, under a parent or free."""

    def __init__(
        self, limits: Limits = Limits(), *, name: str = "run", parent: Budget | None = None
    ) -> None:
        self.limits = limits
        self.name = name
        self.parent = parent
        self.used_tokens = 0
        self.used_calls = 0
        self._held = 0
        self._opened = time.monotonic()
        self._lock: threading.RLock = parent._lock if parent else threading.RLock()

    def child(self, limits: Limits, name: str) -> Budget:
        """A narrower budget inside this one."""
        return Budget(limits, name=name, parent=self)

    def _chain(self) -> list[Budget]:
        return [self, *(self.parent._chain() if self.parent else [])]

    def remaining(self) -> Limits:
        """What is left here and in every budget above; None where nothing bounds it."""
        with self._lock:
            left = [budget._own_remaining() for budget in self._chain()]
        return Limits(
            tokens=min((x.tokens for x in left if x.tokens is not None), default=None),
            calls=min((x.calls for x in left if x.calls is not None), default=None),
            seconds=min((x.seconds for x in left if x.seconds is not None), default=None),
        )

    def _own_remaining(self) -> Limits:
        limits = self.limits
        return Limits(
            tokens=None
            if limits.tokens is None
            else max(0, limits.tokens - self.used_tokens - self._held),
            calls=None if limits.calls is None else max(0, limits.calls - self.used_calls),
            seconds=None
            if limits.seconds is None
            else max(0.0, limits.seconds - (time.monotonic() - self._opened)),
        )

    def reserve(self, tokens: int, calls: int = 1) -> Reservation:
        """Hold ``tokens`` and a call (0 for a payment, which calls no model) at every level.

        Raises :class:`BudgetExhausted`, naming the level, where one cannot cover it.
        """
        with self._lock:
            chain = self._chain()
            for budget in chain:
                left = budget._own_remaining()
                for what, need, has in (
                    ("tokens", tokens, left.tokens),
                    ("calls", calls, left.calls),
                    ("seconds", 1e-9, left.seconds),
                ):
                    if has is not None and need > has:
                        raise BudgetExhausted(
                            f"The budget of {budget.name!r} has {has:g} {what} left, "
                            f"but the next turn needs {max(need, 1):g}."
                        )
            return self.hold(tokens, calls)

    def hold(self, tokens: int, calls: int = 1) -> Reservation:
        """Reserve without asking: for a turn that an earlier process was granted."""
        with self._lock:
            for budget in self._chain():
                budget._held += tokens
                budget.used_calls += calls
        return Reservation(self, tokens)

    def spend(self, tokens: int, calls: int = 1, seconds: float = 0.0) -> None:
        """Book what was used without a reservation, for instance by an earlier process."""
        with self._lock:
            for budget in self._chain():
                budget.used_tokens += tokens
                budget.used_calls += calls
                budget._opened -= seconds

    def _settle(self, held: int, used: int) -> None:
        with self._lock:
            for budget in self._chain():
                budget._held -= held
                budget.used_tokens += used
