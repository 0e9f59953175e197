"""Rules a principal knows beforehand, under which one agent surely works and tells the truth.

Assumption 1 of "Online Information Acquisition: Hiring Multiple Agents" (arXiv 2307.06210): for
each effort of each agent there is a rule under which that effort with a true report beats all else
by a margin. Efforts whose signals say nothing have rules that pay nothing: such reports are not
asked for (see ``silence`` in :mod:`shoal.mechanisms.hiring.problem`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.core.errors import InputError
from shoal.mechanisms.hiring.information_acquisition import alone, spread
from shoal.mechanisms.hiring.lp import agent_rule
from shoal.mechanisms.hiring.problem import AcquisitionProblem, Contract, Floats, Silence

_MARGIN = 1e-9

Rules = tuple[tuple[Floats, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Oracle:
    """One known rule for each effort of each agent.

    rules       [agent][effort], payments [s_i, T]
    silence     [agent][effort], whether that rule ignores the report
    margin      what every other effort, and every lie after a signal, loses at least (l)
    likelihood  the least probability of a signal about which a rule keeps agents honest (iota)
    """

    rules: Rules
    silence: Silence
    margin: float
    likelihood: float

    def payments(self, shape: tuple[int, ...]) -> Floats:
        """Each agent's known rule for what it is told, [n, *efforts, T, *signals]."""
        gamma = np.zeros((len(self.rules), *shape))
        for i, by_effort in enumerate(self.rules):
            for effort, rule in enumerate(by_effort):
                np.moveaxis(gamma[i], i, 0)[effort] = np.moveaxis(spread(rule, shape, i), i, 0)[0]
        return gamma


def check_oracle(problem: AcquisitionProblem, rules: Sequence[Sequence[Floats]]) -> Oracle:
    """Rules with their margins; raises :class:`InputError` for one without, by how much it fails.

    A rule that pays the same for every report is silent: lies do not count under it.
    """
    margins, likelihoods, silence = [], [], []
    for i, by_effort in enumerate(rules):
        p_bsT, silent_b = alone(problem, i), []
        for told, gamma in enumerate(by_effort):
            silent = bool((gamma == gamma[0]).all())
            margin, likelihood = _margin(p_bsT, gamma, problem.costs[i], told, silent)
            if margin <= _MARGIN or likelihood <= 0:
                raise InputError(
                    f"The rule of agent {i} for effort {told} has margin {margin:.4g} and its "
                    f"rarest signal probability {likelihood:.4g}: both must be above 0, or nothing "
                    "can be learnt under it."
                )
            silent_b.append(silent)
            margins.append(margin)
            likelihoods.append(likelihood)
        silence.append(tuple(silent_b))
    known = tuple(tuple(map(np.asarray, by_effort)) for by_effort in rules)
    return Oracle(known, tuple(silence), min(margins), min(likelihoods))


def _margin(
    p_bsT: Floats, gamma_sT: Floats, cost_b: Floats, told: int, silent: bool
) -> tuple[float, float]:
    """How much the next best answer loses, and the least probability of a signal that counts."""
    pay_bss = np.einsum("bst,rt->bsr", p_bsT, gamma_sT)  # effort, seen, reported
    truth = pay_bss[told].trace()
    other_b = np.delete(pay_bss.max(axis=2).sum(axis=1) - cost_b, told)
    margin = float((truth - cost_b[told] - other_b).min(initial=np.inf))
    if silent:
        return margin, 1.0
    loss_ss = np.diag(pay_bss[told])[:, None] - pay_bss[told]
    lies = ~np.eye(len(loss_ss), dtype=bool)
    return min(margin, float(loss_ss[lies].min())), float(p_bsT[told].sum(axis=1).min())


def widest_rules(problem: AcquisitionProblem) -> Oracle:
    """The rules of the largest margin, for simulations in which the problem is known.

    Where no payments keep a report honest, the rule for that effort is silent and pays nothing.
    Raises as :func:`check_oracle` does.
    """
    rules = []
    for i, count in enumerate(problem.efforts):
        p_bsT, C = alone(problem, i), problem.differences[i]
        by_effort = []
        for told in range(count):
            found = agent_rule(p_bsT, C, told, problem.cap, widest=True)
            usable = found is not None and found[1] > _MARGIN
            by_effort.append(found[0] if found and usable else np.zeros(p_bsT.shape[1:]))
        rules.append(by_effort)
    return check_oracle(problem, rules)


def robustify(contract: Contract, known: Floats, share: float) -> Contract:
    """The contract with a share of its payments made by the known rules instead."""
    return Contract(contract.mu, (1 - share) * contract.gamma + share * known, contract.policy)
