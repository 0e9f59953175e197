"""Simulated agents for hire that answer every offer by their best response, found by enumeration.

Under a rule that judges an agent alone, that is its best effort with its best lies. Under a joint
contract all obey if nobody gains by deviating. If somebody does, nobody can foresee what happens:
the principal is charged the worst a round can bring, and reports are those of agents that each
deviate as suits them best while they expect the others to obey.
Ties go to the principal: to what was told, and to the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shoal.core.rng import generator
from shoal.mechanisms.hiring.information_acquisition import InformationAcquisition, alone
from shoal.mechanisms.hiring.learners import ExploreThenCommit, Plan, Tally
from shoal.mechanisms.hiring.problem import (
    AcquisitionProblem,
    Contract,
    Floats,
    agent_view,
    largest_gain,
    terms,
)
from shoal.mechanisms.round import Round

TIE = 1e-9


@dataclass(frozen=True, slots=True)
class Spell:
    """Rounds under one plan: what each was worth in expectation, and what a deviation gained."""

    phase: str
    rounds: int
    utility: float
    gain: float


def play(learner: ExploreThenCommit, case: AcquisitionProblem, *, seed: int = 0) -> Spell | None:
    """One plan of a learner among best-responding agents; None when all rounds are played."""
    plan = learner.recommend()
    if plan is None:
        return None
    rng = generator(seed, "hired agents", learner.state.done)
    spell, tally = _under_contract(plan, case, rng) if plan.contract else _alone(plan, case, rng)
    learner.settle(plan, tally)
    return spell


def play_all(
    learner: ExploreThenCommit,
    case: AcquisitionProblem,
    *,
    seed: int = 0,
    on_spell: Callable[[Spell], None] = lambda spell: None,
) -> list[Spell]:
    """All rounds that are left."""
    spells = []
    while (spell := play(learner, case, seed=seed)) is not None:
        spells.append(spell)
        on_spell(spell)
    return spells


def regret(spells: list[Spell], optimum: float) -> float:
    """What the rounds were short of the optimum, in expectation."""
    return sum(spell.rounds * (optimum - spell.utility) for spell in spells)


def best_response(
    p_bsT: Floats, gamma_sT: Floats, cost_b: Floats, told: int
) -> tuple[int, tuple[int, ...]]:
    """The effort of an agent paid by its own report and the state, and what it says, by signal."""
    pay_bss = np.einsum("bst,rt->bsr", p_bsT, gamma_sT)
    pay_bss = pay_bss + TIE * np.eye(pay_bss.shape[1])  # the truth where nothing is lost
    worth_b = pay_bss.max(axis=2).sum(axis=1) - cost_b
    worth_b[told] += TIE
    effort = int(worth_b.argmax())
    return effort, tuple(int(r) for r in pay_bss[effort].argmax(axis=1))


def _alone(plan: Plan, case: AcquisitionProblem, rng: np.random.Generator) -> tuple[Spell, Tally]:
    n = case.agents
    answers = [
        best_response(alone(case, i), plan.rules[i], case.costs[i], plan.efforts[i])
        for i in range(n)
    ]
    efforts = tuple(effort for effort, _ in answers)
    p = case.P[efforts]  # [T, *signals]
    for i, (_, say) in enumerate(answers):
        p = _renamed(p, say, axis=1 + i)
    pay = sum(float(np.einsum("st,st->", _report(p, i), rule)) for i, rule in enumerate(plan.rules))
    value = float(np.tensordot(case.utility, p, (1, 0)).max(axis=0).sum())
    counts = np.zeros(case.P.shape, dtype=np.int64)
    counts[plan.efforts] = rng.multinomial(plan.rounds, p.ravel() / p.sum()).reshape(p.shape)
    return Spell(plan.phase, plan.rounds, value - pay, 0.0), Tally(counts, efforts)


def _report(p: Floats, i: int) -> Floats:
    """Reports of agent i with the state, [s_i, T], out of [T, *signals]."""
    return np.asarray(p.sum(axis=tuple(1 + j for j in range(p.ndim - 1) if j != i)).T)


def _renamed(p: Floats, say: tuple[int, ...], axis: int) -> Floats:
    """P of reports where signal s is reported as ``say[s]``."""
    said = np.zeros_like(p)
    target, source = np.moveaxis(said, axis, 0), np.moveaxis(p, axis, 0)
    for seen, reported in enumerate(say):
        target[reported] += source[seen]
    return said


def _under_contract(
    plan: Plan, case: AcquisitionProblem, rng: np.random.Generator
) -> tuple[Spell, Tally]:
    assert plan.contract is not None
    contract = plan.contract
    gain = largest_gain(contract, case.P, case.differences)
    obeyed = gain <= TIE
    p = case.P if obeyed else deviating(contract, case)
    utility = terms(contract, case.P, case.utility).utility
    worst = float(case.utility.min()) - case.agents * case.cap
    weighted = p * contract.mu.reshape(contract.mu.shape + (1,) * (case.agents + 1))
    counts = rng.multinomial(plan.rounds, weighted.ravel() / weighted.sum())
    spell = Spell(plan.phase, plan.rounds, utility if obeyed else worst, gain)
    return spell, Tally(counts.reshape(p.shape), None)


def deviating(contract: Contract, case: AcquisitionProblem) -> Floats:
    """P of reports by what was told when each deviates as suits it best, [*efforts, T, *signals].

    Each agent expects all others to obey.
    """
    n = case.agents
    mu = contract.mu.reshape(contract.mu.shape + (1,) * (n + 1))
    played = case.P
    for i in range(n):
        x, p = agent_view(contract.gamma[i] * mu, i), agent_view(case.P, i)
        pay = np.einsum("are,bse->absr", x, p) + TIE * np.eye(p.shape[1])
        told = contract.mu.sum(axis=tuple(j for j in range(n) if j != i))
        worth = pay.max(axis=3).sum(axis=2) + told[:, None] * case.differences[i]
        worth += TIE * np.eye(len(worth))
        effort_b = worth.argmax(axis=1)
        moved = np.moveaxis(played, i, 0)[effort_b]  # as if told what it plays
        for b, effort in enumerate(effort_b):
            say = tuple(int(r) for r in pay[b, effort].argmax(axis=1))
            moved[b] = _renamed(moved[b], say, axis=n + i)
        played = np.moveaxis(moved, 0, i)
    return played


def obedient_rounds(
    contract: Contract, case: AcquisitionProblem, *, rounds: int, seed: int = 0
) -> tuple[list[float], list[float]]:
    """Rounds as they are settled, with agents that obey: what the principal keeps and what it pays.

    One number a round each, in units of utility.
    """
    mechanism = InformationAcquisition(case, contract)
    agents = [f"agent {i}" for i in range(case.agents)]
    kept, paid = [], []
    for k in range(rounds):
        round = Round(mechanism, agents, id=f"round {k}", seed=seed)
        efforts = tuple(int(round.message(agent)["effort"]) for agent in agents)
        p = case.P[efforts]
        drawn = generator(seed, "obedient", k).choice(p.size, p=p.ravel() / p.sum())
        state, *signals = (int(place) for place in np.unravel_index(drawn, p.shape))
        for agent, signal in zip(agents, signals, strict=True):
            round.report(agent, signal)
        decision = round.settle(observed=state).decision
        kept.append(float(decision.details["kept_by_principal"]))
        paid.append(sum(decision.payments.values()))
    return kept, paid
