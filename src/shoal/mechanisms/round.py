"""A round of a mechanism: reports stay sealed, payments lie in escrow, the settlement is logged.

with Round(mechanism, agents, log=log, budget=budget) as round:
    for agent in agents:
        round.report(agent, answer(agent, round.message(agent)))
    settlement = round.settle()
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from shoal.core.budget import Budget, Reservation
from shoal.core.errors import ConfigError
from shoal.core.ids import new_id
from shoal.core.log import EventLog
from shoal.core.records import from_json, to_json
from shoal.mechanisms.protocol import Mechanism, Opening, Report, ReportError, Settlement, digest


class Round:
    """One round of a mechanism among named agents.

    id               names the round: one settlement a log, however often it is settled
    weights          from a ledger (:func:`stakes`); every agent weighs 1 where left out
    budget           pays; ``most_paid`` is held there until the round is settled or left
    tokens_per_unit  what one unit of payment is worth in the budget's tokens

    Raises :class:`ConfigError` for agents or weights that make no sense and
    :class:`~shoal.core.errors.BudgetExhausted` where the budget cannot cover the escrow.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        agents: Sequence[str],
        *,
        id: str | None = None,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        log: EventLog | None = None,
        budget: Budget | None = None,
        tokens_per_unit: int = 1,
    ) -> None:
        _check_opening(agents, weights or {})
        self.mechanism = mechanism
        self.opening = Opening(id or new_id(), tuple(agents), dict(weights or {}), seed)
        self._log = log
        self._unit = tokens_per_unit
        self._agents = frozenset(agents)
        self._reports: dict[str, Report] = {}
        self._messages: dict[str, Any] = {}
        self._settled = self._recorded()
        self._escrow = self._hold(budget)

    @property
    def key(self) -> str:
        """The key of the settlement in the event log."""
        return f"settlement:{self.opening.id}"

    @property
    def seals(self) -> dict[str, str]:
        """Who has reported, in order, and the seal of what was said."""
        return {agent: report.seal for agent, report in self._reports.items()}

    def message(self, agent: str) -> Any:
        """What the agent is told in private; asking again gives the same answer."""
        self._known(agent)
        if agent not in self._messages:
            earlier = tuple(self._reports.values())
            self._messages[agent] = self.mechanism.message(self.opening, agent, earlier)
        return self._messages[agent]

    def report(self, agent: str, value: Any) -> str:
        """Seal an agent's report; returns the seal.

        Raises :class:`ReportError`, keeping all reports there are, for a stranger, a second
        report, a settled round, or a value the mechanism cannot count.
        """
        self._known(agent)
        if self._settled is not None:
            raise ReportError(f"{agent!r} reports after round {self.opening.id} was settled.")
        if agent in self._reports:
            raise ReportError(f"{agent!r} has reported already, and a sealed report stays.")
        counted = self.mechanism.check(self.opening, agent, value)
        self._reports[agent] = Report(agent, counted)
        return self._reports[agent].seal

    def settle(self, observed: Any = None) -> Settlement:
        """Open the reports, decide, pay and log; settling again returns the first settlement."""
        if self._settled is None:
            settlement = self._decide(observed)
            if self._log is not None:
                body = json.loads(to_json(settlement))
                event = self._log.append("settlement", body, key=self.key)
                settlement = _read(event.body)
            self._settled = settlement
        self._release(self._settled.paid_tokens)
        return self._settled

    def _decide(self, observed: Any) -> Settlement:
        reports = tuple(self._reports.values())
        decision = self.mechanism.settle(self.opening, reports, observed)
        paid = math.fsum(decision.payments.values())
        assert all(payment >= 0 for payment in decision.payments.values())
        assert paid <= self.mechanism.most_paid * (1 + 1e-9), "a round pays what it held at most"
        opening = self.opening
        told = [opening.agents, dict(opening.weights), opening.seed]
        said = [[report.agent, report.value] for report in reports]
        return Settlement(
            id=opening.id,
            mechanism=self.mechanism.name,
            opening=opening,
            reports=reports,
            decision=decision,
            inputs=digest([self.mechanism.name, told, said, observed]),
            messages=dict(self._messages),
            absent=tuple(agent for agent in opening.agents if agent not in self._reports),
            observed=observed,
            paid_tokens=round(paid * self._unit) if self._escrow else 0,
            assumes=self.mechanism.assumes,
        )

    def _recorded(self) -> Settlement | None:
        event = self._log.get(self.key) if self._log is not None else None
        return _read(event.body) if event is not None else None

    def _hold(self, budget: Budget | None) -> Reservation | None:
        if budget is None:
            return None
        if self._settled is not None:  # by an earlier process, which was granted its escrow
            return budget.hold(self._settled.paid_tokens, calls=0)
        return budget.reserve(math.ceil(self.mechanism.most_paid * self._unit), calls=0)

    def _release(self, used: int) -> None:
        if self._escrow is not None and self._escrow.open:
            self._escrow.settle(used)

    def _known(self, agent: str) -> None:
        if agent not in self._agents:
            raise ReportError(f"{agent!r} takes no part in round {self.opening.id}.")

    def __enter__(self) -> Round:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release(0)


def stakes(budgets: Mapping[str, Budget]) -> dict[str, float]:
    """Weights by what each agent has left to spend; raises :class:`ConfigError` if unbounded."""
    left = {agent: budget.remaining().tokens for agent, budget in budgets.items()}
    for agent, tokens in left.items():
        if tokens is None:
            raise ConfigError(f"The budget of {agent!r} has no bound in tokens to weigh it by.")
    return {agent: float(tokens or 0) for agent, tokens in left.items()}


def _check_opening(agents: Sequence[str], weights: Mapping[str, float]) -> None:
    if not agents:
        raise ConfigError("A round needs at least one agent.")
    twice, times = Counter(agents).most_common(1)[0]
    if times > 1:
        raise ConfigError(f"The agent {twice!r} is named twice in one round.")
    known = frozenset(agents)
    for agent, weight in weights.items():
        if agent not in known:
            raise ConfigError(f"There is a weight for {agent!r}, who takes no part in the round.")
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"The weight of {agent!r} is {weight}, but must be finite and >= 0.")
    if not any(weights.get(agent, 1.0) > 0 for agent in agents):
        raise ConfigError("All weights of the round are 0: at least one must be positive.")


def _read(body: Mapping[str, Any]) -> Settlement:
    return from_json(Settlement, json.dumps(body))
