"""Linear programs for hiring: the best correlated contract, and the cheapest rule for one agent.

"Online Information Acquisition: Hiring Multiple Agents" (arXiv 2307.06210), Theorem 3.1: with
x_i(b, s, T) = mu(b) gamma_i(b, s, T) the product of probability and pay becomes linear, and
z_i(b, b', s), the best lie after s, stands for exponentially many deviations. The paper's text was
not at hand: the rows follow its public reviews, and tests hold them against all deviations.

Legend as in :mod:`shoal.mechanisms.hiring.problem`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import ConfigError, MissingExtra, ShoalError
from shoal.mechanisms.hiring.problem import (
    Contract,
    Floats,
    Silence,
    agent_view,
    best_policy,
    talkative,
)

LARGEST = 2_000_000
"""Payments |B| |S| |T| n beyond which a correlated contract is refused."""

_NEVER = 1e-9  # recommendations less likely than the solver's tolerance are none
_TOLERANCE = 1e-9

Block = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


class SolverError(ShoalError):
    """A linear program that the solver did not solve; the sentence has its status."""


def variables(efforts: Sequence[int], states: int, signals: Sequence[int]) -> int:
    """|B| (1 + n |S| |T|) + sum |b_i|^2 |s_i|, the size of the correlated program."""
    joint = len(efforts) * math.prod(signals) * states
    lies = sum(b * b * s for b, s in zip(efforts, signals, strict=True))
    return math.prod(efforts) * (1 + joint) + lies


def best_contract(
    P: Floats,
    differences: Sequence[Floats],
    utility: Floats,
    cap: float,
    *,
    silence: Silence | None = None,
    bonus: Floats | None = None,
) -> Contract:
    """The contract that maximises the principal's utility while nobody gains by deviating.

    differences  C_i(b, b') = c_i(b) - c_i(b'), n of [b_i, b_i]
    silence      when reports are neither asked for nor paid for; always asked where left out
    bonus        added to the value of each profile of efforts, [*efforts]

    Raises :class:`ConfigError` for more than :data:`LARGEST` payments, :class:`SolverError` for
    any status but optimal, and :class:`MissingExtra` without scipy.
    """
    n = len(differences)
    if n * P.size > LARGEST:
        size = variables(P.shape[:n], P.shape[n], P.shape[n + 1 :])
        raise ConfigError(
            f"A correlated contract among these {n} agents has {size:,} variables, more than "
            f"{LARGEST:,}: solve for an uncorrelated one, which looks at each agent alone."
        )
    silence = silence or talkative(P.shape[:n])
    value, policy = best_policy(P, utility, silence)
    profiles, kept = value.size, _distinct(P.shape, silence)
    count = int(kept.max()) + 1
    z_start = (
        profiles
        + n * count
        + np.cumsum([0, *(d.shape[0] ** 2 * P.shape[n + 1 + i] for i, d in enumerate(differences))])
    )
    objective = np.zeros(int(z_start[-1]))
    objective[:profiles] = -(value if bonus is None else value + bonus).ravel()
    blocks: list[Block] = []
    rows = 0
    for i, C in enumerate(differences):
        x = profiles + i * count
        objective[x : x + count] = np.bincount(kept.ravel(), P.ravel(), count)
        for block, height in _agent_rows(P, kept, C, i, x, int(z_start[i])):
            blocks.append((block[0] + rows, block[1], block[2]))
            rows += height
        block, height = _cap_rows(kept, n, x, cap)
        blocks.append((block[0] + rows, block[1], block[2]))
        rows += height
    equal = np.zeros((1, objective.size))
    equal[0, :profiles] = 1
    bounds = np.zeros((objective.size, 2))
    bounds[:, 1] = np.inf
    bounds[z_start[0] :, 0] = -np.inf
    found = _solve(objective, _sparse(blocks, rows, objective.size), np.zeros(rows), bounds, equal)
    return _contract(found, P.shape, n, kept, policy, cap)


def _distinct(shape: tuple[int, ...], silence: Silence) -> NDArray[np.int64]:
    """Which payment each outcome gets, [*efforts, T, *signals]: one for all unasked reports."""
    index = np.arange(math.prod(shape)).reshape(shape)
    n = len(silence)
    for i, by_effort in enumerate(silence):
        for effort, silent in enumerate(by_effort):
            if silent:
                part = np.moveaxis(index, i, 0)[effort]
                part[...] = part.min(axis=n + i, keepdims=True)
    return np.unique(index, return_inverse=True)[1].reshape(shape).astype(np.int64)


def _agent_rows(
    P: Floats, kept: NDArray[np.int64], C: Floats, i: int, x: int, z: int
) -> Iterator[tuple[Block, int]]:
    """Rows "at most 0" of agent i, whose payments begin at column x and best lies at z.

    (IC)   sum_s z(b, b', s) + mu_i(b) C(b, b') - sum x(b, .) P(. | b) <= 0
    (lie)  sum x(b, s', .) P(s, . | b') - z(b, b', s) <= 0
    """
    n = (P.ndim - 1) // 2
    p, column = agent_view(P, i), x + agent_view(kept, i)
    b, s = p.shape[:2]
    profiles = np.arange(math.prod(P.shape[:n])).reshape(P.shape[:n])
    profile = np.moveaxis(profiles, i, 0).reshape(b, -1)
    lie = z + np.arange(b * b * s).reshape(b, b, s)
    row: NDArray[Any] = np.arange(b * b).reshape(b, b)
    obey = _entries(row[:, :, None, None], column[:, None], -p[:, None])
    told = _entries(row[:, :, None], profile[:, None], C[:, :, None])
    lies = _entries(row[:, :, None], lie, np.ones(1))
    yield _joined(obey, told, lies), b * b
    row = np.arange(b * b * s * s).reshape(b, b, s, s)  # told, played, seen, reported
    paid = _entries(row[..., None], column[:, None, None], p[None, :, :, None])
    best = _entries(row, lie[..., None], -np.ones(1))
    yield _joined(paid, best), b * b * s * s


def _cap_rows(kept: NDArray[np.int64], n: int, x: int, cap: float) -> tuple[Block, int]:
    """x_i(b, s, T) - M mu(b) <= 0."""
    payment, first = np.unique(kept, return_index=True)
    profile = first // math.prod(kept.shape[n:])
    pay = (payment, x + payment, np.ones(payment.size))
    return _joined(pay, (payment, profile, np.full(payment.size, -cap))), payment.size


def _entries(row: NDArray[Any], column: NDArray[Any], value: NDArray[Any]) -> Block:
    row, column, value = np.broadcast_arrays(row, column, value)
    return row.ravel(), column.ravel(), value.ravel()


def _joined(*blocks: Block) -> Block:
    row, column, value = zip(*blocks, strict=True)
    return np.concatenate(row), np.concatenate(column), np.concatenate(value)


def _contract(
    found: Floats,
    shape: tuple[int, ...],
    n: int,
    kept: NDArray[np.int64],
    policy: NDArray[np.int64],
    cap: float,
) -> Contract:
    """mu, and gamma = x / mu where anything is recommended at all, else 0."""
    mu = found[: math.prod(shape[:n])].reshape(shape[:n])
    mu = np.where(mu > _NEVER, mu, 0.0)
    count = int(kept.max()) + 1
    x = found[mu.size : mu.size + n * count].reshape(n, count)[:, kept]
    each = mu.reshape(mu.shape + (1,) * (n + 1))
    gamma = np.divide(x, each, out=np.zeros_like(x), where=each > 0)
    return Contract(mu / mu.sum(), gamma.clip(0, cap), policy)


def agent_rule(
    p: Floats, C: Floats, told: int, cap: float, *, widest: bool = False, silent: bool = False
) -> tuple[Floats, float] | None:
    """The cheapest payments that make one agent do as told and tell the truth, and their mean.

    p       P(signal, evidence | effort), [b_i, s_i, e], the others doing as told
    C       C(b, b') of this agent, [b_i, b_i]
    widest  instead, the payments under which every other effort, and every single lie, loses
            most for sure; the second number is that margin
    silent  payments do not depend on the report, and lies do not count

    Payments are [s_i, e] in [0, cap]; None where no payments below the cap suffice. Raises
    :class:`SolverError` and :class:`MissingExtra` as :func:`best_contract` does.
    """
    b, s, e = p.shape
    pay = np.arange(s * e).reshape(s, e)
    if silent:
        pay = np.broadcast_to(np.arange(e), (s, e))
    lie = s * e + np.arange(b * s).reshape(b, s)
    margin = s * e + b * s
    row = np.arange(b)
    obey = _entries(row[:, None, None], pay[None], -p[told][None])
    lies = _entries(row[:, None], lie, np.ones(1))
    strict = (row, np.full(b, margin), (row != told).astype(float))
    row = b + np.arange(b * s * s).reshape(b, s, s)  # played, seen, reported
    paid = _entries(row[..., None], pay[None, None], p[:, :, None])
    best = _entries(row, lie[..., None], -np.ones(1))
    rows = b + b * s * s
    blocks = [obey, lies, strict, paid, best]
    if not silent:  # telling s' instead of s, when obeying, loses the margin too
        seen, said = np.nonzero(~np.eye(s, dtype=bool))
        row = rows + np.arange(seen.size)
        blocks.append(_entries(row[:, None], pay[said], p[told][seen]))
        blocks.append(_entries(row[:, None], pay[seen], -p[told][seen]))
        blocks.append((row, np.full(seen.size, margin), np.ones(seen.size)))
        rows += seen.size
    objective = np.zeros(margin + 1)
    np.add.at(objective, pay, 0.0 if widest else p[told])
    objective[margin] = -1.0 if widest else 0.0
    bounds = np.tile([-np.inf, np.inf], (margin + 1, 1))
    bounds[: s * e] = 0, cap
    bounds[margin] = 0, np.inf if widest else 0
    limit = np.zeros(rows)
    limit[:b] = -C[told]
    found = _solve(objective, _sparse(blocks, rows, margin + 1), limit, bounds, None)
    if found is None:
        return None
    gamma = found[pay].clip(0, cap)
    return gamma, float(found[margin] if widest else (gamma * p[told]).sum())


def _sparse(blocks: Sequence[Block], rows: int, columns: int) -> Any:
    try:
        from scipy.sparse import coo_array
    except ImportError as error:
        raise MissingExtra("Solving for a contract", "mechanisms") from error
    row, column, value = _joined(*blocks)
    used = value != 0
    return coo_array((value[used], (row[used], column[used])), shape=(rows, columns)).tocsr()


def _solve(
    objective: Floats, at_most: Any, limit: Floats, bounds: Floats, equal: Floats | None
) -> Any:
    """The minimising columns; None where a program without equalities cannot be satisfied."""
    from scipy.optimize import linprog

    for method in ("highs-ds", "highs-ipm"):  # probabilities of 1e-11 are hard on the simplex
        found = linprog(
            objective,
            A_ub=at_most,
            b_ub=limit,
            A_eq=equal,
            b_eq=None if equal is None else np.ones(1),
            bounds=bounds,
            method=method,
            options={
                "primal_feasibility_tolerance": _TOLERANCE,
                "dual_feasibility_tolerance": _TOLERANCE,
            },
        )
        if found.status in (0, 2):
            break
    if found.status == 2 and equal is None:
        return None
    if found.status != 0:
        raise SolverError(f"The contract was not solved: status {found.status}, {found.message}")
    return found.x
