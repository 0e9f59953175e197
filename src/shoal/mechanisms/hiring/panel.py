"""Agents for hire that are model calls: efforts are ways to ask, their cost the tokens they take.

"Online Information Acquisition: Hiring Multiple Agents" (arXiv 2307.06210) with real signals. What
each agent says at each effort is seen on separate items whose state is known; from that come signal
laws and costs, and from those the contract. On new items agents do as they are told, because their
prompt is all there is: the guarantee is about what would serve somebody who trains or writes them.

Legend: N items, n agents, b efforts of each.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import InputError
from shoal.core.protocols import Prompt, Sampling
from shoal.core.rng import seed_of, uniform
from shoal.mechanisms.generations import Generations
from shoal.mechanisms.hiring.information_acquisition import InformationAcquisition
from shoal.mechanisms.hiring.problem import (
    AcquisitionProblem,
    Contract,
    Floats,
    Silence,
    best_policy,
    erase,
    problem,
    talkative,
)
from shoal.mechanisms.round import Round

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Way:
    """One effort: how to ask about a question, and which signal an answer is.

    ``ask`` None is no call at all: the signal is drawn at random.
    """

    name: str
    ask: Callable[[str], Prompt] | None = None
    read: Callable[[str, str], int] = lambda question, text: 0
    sampling: Sampling = Sampling()


@dataclass(frozen=True, slots=True)
class Worker:
    """An agent for hire; its ways go from the least effort to the most."""

    name: str
    generations: Generations
    ways: tuple[Way, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What every worker said at every effort: signals and tokens generated, [N, n, b] each.

    ``silence`` says which efforts are no work: their signals are draws that say nothing.
    """

    signals: Ints
    tokens: Ints
    silence: Silence = ()


async def look(
    workers: Sequence[Worker], questions: Sequence[str], *, signals: int = 2, seed: int = 0
) -> Seen:
    """Ask every worker in every way about every question.

    Raises :class:`InputError` where workers have different numbers of ways, or a call failed.
    """
    if len({len(worker.ways) for worker in workers}) != 1:
        raise InputError("Workers need the same number of efforts each to be compared here.")
    shape = (len(questions), len(workers), len(workers[0].ways))
    said, tokens = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)

    async def fill(i: int, b: int) -> None:
        worker, way = workers[i], workers[i].ways[b]
        if way.ask is None:
            draws = [uniform(seed, worker.name, "guess", question) for question in questions]
            said[:, i, b] = [int(signals * draw) for draw in draws]
            return
        seeds = [seed_of(seed, worker.name, b, question) for question in questions]
        spoken = await worker.generations.generate(
            [way.ask(question) for question in questions],
            [replace(way.sampling, seed=one) for one in seeds],
        )
        for k, (question, one) in enumerate(zip(questions, spoken, strict=True)):
            if one.text is None:
                raise InputError(f"{worker.name!r} gave no answer to {question!r}.")
            said[k, i, b] = way.read(question, one.text)
            tokens[k, i, b] = one.tokens

    await asyncio.gather(*(fill(i, b) for i in range(shape[1]) for b in range(shape[2])))
    idle = tuple(tuple(way.ask is None for way in worker.ways) for worker in workers)
    return Seen(said, tokens, idle)


def estimated(
    seen: Seen,
    states: Sequence[int],
    utility: Floats,
    *,
    price: float,
    cap: float = 1.0,
    signals: int = 2,
    pseudo: float = 0.5,
) -> AcquisitionProblem:
    """The hiring problem that items of known state describe.

    Every combination of efforts was seen on every item, so its joint law is a count; ``pseudo``
    observations of each outcome (Jeffreys' prior at 0.5) keep what was not seen possible. Where an
    effort is no work its signals are known to say nothing, whatever a few draws look like. An
    effort costs ``price`` (in units of utility) for each token it took on average.
    """
    N, n, b = seen.signals.shape
    if len(states) != N:
        raise InputError(f"There are {N} items, but {len(states)} states.")
    P = np.full((b,) * n + (utility.shape[1],) + (signals,) * n, pseudo)
    for efforts in itertools.product(range(b), repeat=n):
        said = tuple(seen.signals[:, i, effort] for i, effort in enumerate(efforts))
        np.add.at(P[efforts], (np.asarray(states), *said), 1)
    P /= P[(0,) * n].sum()
    if seen.silence:
        P = erase(P, seen.silence)
    costs = price * seen.tokens.mean(axis=0)
    return problem(P, list(costs), utility, cap)


@dataclass(frozen=True, slots=True, eq=False)
class Hired:
    """Settled rounds, one an item, [N] each.

    utility is of the actions, tokens of all who worked, paid what agents got in all.
    """

    utility: Floats
    tokens: Floats
    paid: Floats
    working: Floats
    """How many made more than the least effort."""


def hire(
    case: AcquisitionProblem, contract: Contract, seen: Seen, states: Sequence[int], *, seed: int
) -> Hired:
    """Play a contract on items on which all efforts were seen: each agent does as it is told."""
    mechanism = InformationAcquisition(case, contract)
    names = [f"agent {i}" for i in range(case.agents)]
    rows = []
    for k, state in enumerate(states):
        round = Round(mechanism, names, id=f"item {k}", seed=seed)
        told = [int(round.message(name)["effort"]) for name in names]
        for i, name in enumerate(names):
            round.report(name, int(seen.signals[k, i, told[i]]))
        decision = round.settle(observed=int(state)).decision
        tokens = sum(int(seen.tokens[k, i, effort]) for i, effort in enumerate(told))
        working = sum(effort > 0 for effort in told)
        paid = sum(decision.payments.values())
        rows.append((float(decision.details["utility"]), tokens, paid, working))
    return Hired(*np.array(rows, dtype=np.float64).T)


def polled(case: AcquisitionProblem, efforts: tuple[int, ...]) -> Contract:
    """Everybody told one profile of efforts, unpaid, and the best action on what they say."""
    mu = np.zeros(case.efforts)
    mu[efforts] = 1
    policy = best_policy(case.P, case.utility, talkative(case.efforts))[1]
    return Contract(mu, np.zeros((case.agents, *case.P.shape)), policy)
