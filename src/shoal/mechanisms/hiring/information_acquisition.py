"""Hiring agents whose work cannot be seen: who works, who checks whom, and what a report earns.

"Online Information Acquisition: Hiring Multiple Agents" (arXiv 2307.06210). The best contract that
makes obeying and telling the truth each agent's best answer is a linear program of polynomial
size. It recommends efforts at random together: where signals share their noise, an agent that may
be checked by a second one needs no wage for being right. With independent signals that buys
nothing, and judging each agent alone is best.

Legend as in :mod:`shoal.mechanisms.hiring.problem`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoal.core.errors import ConfigError, InputError
from shoal.core.rng import uniform
from shoal.mechanisms.hiring.lp import agent_rule, best_contract
from shoal.mechanisms.hiring.problem import (
    AcquisitionProblem,
    Contract,
    Floats,
    Terms,
    agent_view,
    best_policy,
    deviation_gains,
    talkative,
    terms,
)
from shoal.mechanisms.protocol import (
    Audit,
    Counterexample,
    Decision,
    Opening,
    Report,
    ReportError,
)

ASSUMES = (
    "Agents make no side agreements and do not talk to each other.",
    "Agents are neutral to risk, and nobody pays to take part: no payment is below 0.",
    "Recommendations are private, and the state becomes known after the reports.",
    "All share the same beliefs about states, signals and costs, and these are right.",
    "Ties are broken for the principal: who loses nothing by it works and tells the truth.",
    "A language model does as its prompt says: the guarantee is that skipping work or lying "
    "would not pay, not that it happens never.",
)
PROMISE = "obedient and truthful"
TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True, eq=False)
class Uncorrelated:
    """One profile of efforts, and each agent judged alone.

    rules    what agent i is paid by its report and the state, n of [s_i, T]
    """

    efforts: tuple[int, ...]
    rules: tuple[Floats, ...]
    terms: Terms

    def contract(self, problem: AcquisitionProblem) -> Contract:
        """The same as a joint contract."""
        n, shape = problem.agents, problem.P.shape
        mu = np.zeros(problem.efforts)
        mu[self.efforts] = 1
        gamma = np.zeros((n, *shape))
        for i, rule in enumerate(self.rules):
            gamma[i] = spread(rule, shape, i)
        return Contract(mu, gamma, best_policy(problem.P, problem.utility, talkative(mu.shape))[1])


def spread(rule: Floats, shape: tuple[int, ...], i: int) -> Floats:
    """A rule of agent i, [s_i, T], as payments [*efforts, T, *signals]."""
    n = (len(shape) - 1) // 2
    axes = [1] * len(shape)
    axes[n], axes[n + 1 + i] = shape[n], shape[n + 1 + i]
    return np.broadcast_to(rule.T.reshape(axes), shape)


def solve_correlated(problem: AcquisitionProblem) -> Contract:
    """The best contract of all; raises as :func:`~shoal.mechanisms.hiring.lp.best_contract`."""
    return best_contract(problem.P, problem.differences, problem.utility, problem.cap)


def solve_uncorrelated(problem: AcquisitionProblem) -> Uncorrelated:
    """The best profile of efforts when each agent is paid by its own report and the state alone.

    One small program for each effort of each agent. Raises
    :class:`~shoal.mechanisms.hiring.lp.SolverError` and
    :class:`~shoal.core.errors.MissingExtra`.
    """
    options = [
        [
            agent_rule(alone(problem, i), problem.differences[i], told, problem.cap)
            for told in range(count)
        ]
        for i, count in enumerate(problem.efforts)
    ]
    value = best_policy(problem.P, problem.utility, talkative(problem.efforts))[0]
    best: Uncorrelated | None = None
    for efforts in itertools.product(*map(range, problem.efforts)):
        chosen = [rules[told] for rules, told in zip(options, efforts, strict=True)]
        found = [rule for rule in chosen if rule is not None]
        worth = Terms(float(value[efforts]), math.fsum(pay for _, pay in found))
        if len(found) == len(chosen) and (best is None or worth.utility > best.terms.utility):
            best = Uncorrelated(efforts, tuple(rule for rule, _ in found), worth)
    assert best is not None, "the cheapest efforts need no pay"
    return best


def alone(problem: AcquisitionProblem, i: int) -> Floats:
    """What agent i's effort says about its own signal and the state, [b_i, s_i, T]."""
    others = tuple(j for j in range(problem.agents) if j != i)
    n = problem.agents
    first = tuple(slice(None) if j == i else 0 for j in range(n))
    own = problem.P.sum(axis=tuple(n + 1 + j for j in others))[first]
    return np.swapaxes(own, 1, 2)


def solve_deterministic(problem: AcquisitionProblem) -> tuple[tuple[int, ...], Terms]:
    """The best single profile of efforts when payments may compare all reports, and its worth.

    Raises as :func:`solve_uncorrelated`.
    """
    value = best_policy(problem.P, problem.utility, talkative(problem.efforts))[0]
    best: tuple[tuple[int, ...], Terms] | None = None
    for efforts in itertools.product(*map(range, problem.efforts)):
        pay = 0.0
        for i, told in enumerate(efforts):
            given = tuple(slice(None) if j == i else slice(b, b + 1) for j, b in enumerate(efforts))
            seen = agent_view(problem.P[given], i)
            found = agent_rule(seen, problem.differences[i], told, problem.cap)
            pay += math.inf if found is None else found[1]
        worth = Terms(float(value[efforts]), pay)
        if best is None or worth.utility > best[1].utility:
            best = efforts, worth
    assert best is not None, "there is at least one profile"
    return best


def audit_ic(contract: Contract, problem: AcquisitionProblem) -> Audit:
    """Every disobedience with every lie, of each agent, while the others do as told."""
    gains = deviation_gains(contract, problem.P, problem.differences)
    cases = sum(b**b * s ** (b * s) for b, s in zip(problem.efforts, problem.signals, strict=True))
    broken = []
    for i, gain in enumerate(gains):
        total = float(gain.max(axis=1).sum())
        if total > TOLERANCE:
            told, played = (int(place) for place in np.unravel_index(gain.argmax(), gain.shape))
            broken.append(
                Counterexample(
                    PROMISE,
                    total,
                    f"Agent {i} gains {total:.4g} a round, {gain[told, played]:.4g} of it by "
                    f"effort {played} and the best lies when told effort {told}.",
                    {"agent": i, "told": told, "played": played},
                )
            )
    worst = sorted(broken, key=lambda one: -one.shortfall)[:1]
    return Audit("information_acquisition", {PROMISE: cases}, tuple(worst), exhaustive=True)


@dataclass(frozen=True, eq=False)
class InformationAcquisition:
    """A round in which hired agents report what they saw, and are paid once the state is known.

    Reports are signals by number. The outcome is the principal's action by number. An agent that
    sends no report, or none that is a signal, is paid nothing and left out of the action; what
    others would get for agreeing with it is then paid in expectation.
    """

    problem: AcquisitionProblem
    contract: Contract
    guarantees: frozenset[str] = field(default=frozenset({PROMISE}), init=False)
    assumes: tuple[str, ...] = field(default=ASSUMES, init=False)

    @property
    def name(self) -> str:
        return f"information_acquisition({self.problem.agents} agents, cap {self.problem.cap:g})"

    @property
    def most_paid(self) -> float:
        return self.problem.agents * self.problem.cap

    def recommendation(self, opening: Opening) -> tuple[int, ...]:
        """The efforts drawn for this round. Raises :class:`ConfigError` for a wrong head count."""
        if len(opening.agents) != self.problem.agents:
            raise ConfigError(
                f"The contract is for {self.problem.agents} agents, not {len(opening.agents)}."
            )
        draw = uniform(opening.seed, opening.id, "recommendation")
        place = int(np.searchsorted(self.contract.mu.cumsum(), draw, side="right"))
        place = min(place, int(self.contract.mu.ravel().nonzero()[0][-1]))
        return tuple(int(b) for b in np.unravel_index(place, self.contract.mu.shape))

    def message(self, opening: Opening, agent: str, earlier: Sequence[Report]) -> dict[str, int]:
        """The agent's own recommended effort; whom else it goes to stays private."""
        return {"effort": self.recommendation(opening)[opening.agents.index(agent)]}

    def check(self, opening: Opening, agent: str, value: Any) -> int:
        """The number of one of the agent's signals."""
        signals = self.problem.signals[opening.agents.index(agent)]
        known = isinstance(value, int) and not isinstance(value, bool)
        if not (known and 0 <= value < signals):
            raise ReportError(
                f"{agent!r} reports {value!r}, which is not one of its signals 0 to {signals - 1}."
            )
        return int(value)

    def act(self, opening: Opening, reports: Mapping[str, int]) -> int:
        """The action on the reports there are, before the state is known."""
        posterior_T = self._seen(opening, reports).sum(
            axis=tuple(range(1, self.problem.agents + 1))
        )
        return int((self.problem.utility @ posterior_T).argmax())

    def settle(self, opening: Opening, reports: Sequence[Report], observed: Any = None) -> Decision:
        """Pay by reports and state; ``observed`` is the state by number.

        Raises :class:`ReportError` while the state is not known: nothing is paid, and the round
        with its escrow stays open. Raises :class:`InputError` for a state there is not.
        """
        if observed is None:
            raise ReportError(
                f"The state of round {opening.id} is not known: the round stays open, unpaid."
            )
        states = self.problem.states
        if not (type(observed) is int and 0 <= observed < states):
            raise InputError(f"The state is {observed!r}, but must be one of 0 to {states - 1}.")
        said = {report.agent: report.value for report in reports}
        efforts = self.recommendation(opening)
        action = self.act(opening, said)
        weight_S = self._seen(opening, said)[observed]
        if not weight_S.any():  # reports the agents cannot have seen: all guesses alike
            weight_S = self._chosen(opening, said)[observed]
        weight_S = weight_S / weight_S.sum()
        payments = {
            agent: float((self.contract.gamma[i][efforts][observed] * weight_S).sum())
            for i, agent in enumerate(opening.agents)
            if agent in said
        }
        utility = float(self.problem.utility[action, observed])
        return Decision(
            action,
            payments,
            how="correlated contract, exact",
            details={
                "efforts": dict(zip(opening.agents, efforts, strict=True)),
                "state": observed,
                "utility": utility,
                "kept_by_principal": utility - math.fsum(payments.values()),
            },
        )

    def audit(self, agents: int) -> Audit:
        """Every deviation of every agent; the contract is for one size of group only."""
        if agents != self.problem.agents:
            raise ConfigError(f"The contract is for {self.problem.agents} agents, not {agents}.")
        return audit_ic(self.contract, self.problem)

    def _seen(self, opening: Opening, said: Mapping[str, int]) -> Floats:
        """P of the state and the reports that were sent, [T, *signals]."""
        given: Floats = self.problem.P[self.recommendation(opening)]
        return given * self._chosen(opening, said)

    def _chosen(self, opening: Opening, said: Mapping[str, int]) -> Floats:
        """1 where the signals are those that were reported, [T, *signals]."""
        chosen = np.ones((self.problem.states, *self.problem.signals))
        for i, agent in enumerate(opening.agents):
            if agent in said:
                own = np.arange(self.problem.signals[i]) == said[agent]
                axes = [1] * chosen.ndim
                axes[1 + i] = own.size
                chosen = chosen * own.reshape(axes)
        return chosen


def worth(contract: Contract, problem: AcquisitionProblem) -> Terms:
    """What a contract is worth when all obey and tell the truth."""
    return terms(contract, problem.P, problem.utility)
