"""Learning whom to hire while hiring: explore then commit, and optimism.

"Online Information Acquisition: Hiring Multiple Agents" (arXiv 2307.06210): signals and costs are
unknown; rules that surely make agents work (Assumption 1) are. Exploring T^(2/3) rounds under them
and committing to the solved contract, mixed with the known rules until nobody gains by deviating,
has regret of order T^(2/3). :class:`UCBLP` keeps learning under its own contracts, as the
single-agent algorithms of arXiv 2303.08613 and 2505.17379 do.

Departures: the share of known rules is the least under which no deviation gains in any of a number
of draws from the posterior of what was seen, and half as much again. The closed form, from a
uniform bound on all probabilities, asks for shares near 1 below 10^8 rounds: ``draws=0`` takes it.
The program is not loosened: what that saves in pay, a larger share would have to pay again.

Legend as in :mod:`shoal.mechanisms.hiring.problem`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from shoal.core.errors import ConfigError, InputError, nearest
from shoal.core.rng import generator
from shoal.mechanisms.hiring.costs import Search, cost_differences, searches
from shoal.mechanisms.hiring.estimates import (
    Counts,
    estimate,
    least_share,
    own_signals,
    posterior,
    worst_case_share,
)
from shoal.mechanisms.hiring.lp import best_contract
from shoal.mechanisms.hiring.oracle import Oracle, robustify
from shoal.mechanisms.hiring.problem import Contract, Floats

SAFETY = 1.5
"""How many times the least share of known rules is mixed in. The solved contract is tight where the
estimates flatter it most, and one that can be gamed costs more than all that a smaller share saves:
at 1, one of eight runs of 10^5 rounds committed to a contract that an agent gained 0.0003 by
breaking."""


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What the principal knows before it hires anybody.

    shape            [*efforts, T, *signals], how many there are of each
    observe_efforts  whether efforts are seen afterwards; if not, they are guessed from reports
    """

    shape: tuple[int, ...]
    utility: Floats
    cap: float
    oracle: Oracle
    rounds: int
    observe_efforts: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"Learning takes at least one round, not {self.rounds}.")
        if not (self.oracle.margin > 0 and self.oracle.likelihood > 0):
            raise InputError(
                f"The known rules have margin {self.oracle.margin:g} and likelihood "
                f"{self.oracle.likelihood:g}: both must be above 0 to learn under them."
            )

    @property
    def agents(self) -> int:
        """How many agents there are, n."""
        return (len(self.shape) - 1) // 2

    @property
    def efforts(self) -> tuple[int, ...]:
        """How many efforts each agent has."""
        return self.shape[: self.agents]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What to play for so many rounds, or for fewer: a contract, or one rule an agent.

    efforts  told to the agents where ``rules`` judge each alone
    probed   the agent whose effort is to be found out, if any
    """

    phase: str
    rounds: int
    contract: Contract | None = None
    efforts: tuple[int, ...] = ()
    rules: tuple[Floats, ...] = ()
    probed: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """What came of a plan: reports by efforts told, and efforts where they are observed.

    counts  rounds by [*efforts told, T, *signals reported]
    """

    counts: Counts
    efforts: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LearnerState:
    """All a learner has learnt, in plain values: it goes on from here in another process.

    counts    rounds by [*efforts told, T, *signals], flat; those of searches are not in it
    probe     reports of the probed agent during one step of a search, [s_i, T], flat
    mu        of the contract in force, flat, with the payments in ``gamma``; empty before
    """

    done: int = 0
    counts: tuple[int, ...] = ()
    open: tuple[Search, ...] = ()
    found: tuple[Search, ...] = ()
    probe: tuple[int, ...] = ()
    mu: tuple[float, ...] = ()
    gamma: tuple[float, ...] = ()
    policy: tuple[int, ...] = ()
    share: float = 0.0
    left: int = 0


class ExploreThenCommit:
    """Every profile of efforts for T^(2/3) rounds in all, then costs, then one contract for ever.

    explore    rounds of exploration in units of T^(2/3)
    draws    from the posterior, under none of which a deviation may gain; 0 takes the closed form
    """

    def __init__(
        self,
        setting: Setting,
        state: LearnerState | None = None,
        *,
        explore: float = 4.0,
        draws: int = 200,
    ) -> None:
        self.setting = setting
        self.draws = draws
        size = math.prod(setting.shape)
        self.state = state or LearnerState(counts=(0,) * size, open=searches(setting.efforts))
        if len(self.state.counts) != size:
            raise InputError(
                f"The state counts {len(self.state.counts)} outcomes, but this setting has {size}."
            )
        profiles = math.prod(setting.efforts)
        self.each = max(1, math.ceil(explore * setting.rounds ** (2 / 3) / profiles))
        self._known = setting.oracle.payments(setting.shape)

    @property
    def counts(self) -> Counts:
        """Rounds by what was told, the state and the reports, [*efforts, T, *signals]."""
        return np.array(self.state.counts, dtype=np.int64).reshape(self.setting.shape)

    def recommend(self) -> Plan | None:
        """What to play next; None when all rounds are played."""
        left = self.setting.rounds - self.state.done
        if left == 0:
            return None
        plan = self._explore() or self._search() or self._commit()
        return replace(plan, rounds=min(plan.rounds, left))

    def settle(self, plan: Plan, tally: Tally) -> None:
        """Learn from rounds of the plan last recommended, all of them or a part."""
        rounds = int(tally.counts.sum())
        if not 0 < rounds <= plan.rounds:
            raise InputError(f"The plan was for 1 to {plan.rounds} rounds, not {rounds}.")
        state = replace(self.state, done=self.state.done + rounds)
        if plan.probed is not None:
            self.state = self._answered(state, plan, tally)
            return
        counts = tuple(int(c) for c in (self.counts + tally.counts).ravel())
        self.state = replace(state, counts=counts, left=max(0, state.left - rounds))

    def _explore(self) -> Plan | None:
        n = self.setting.agents
        missing = self.each - self.counts.sum(axis=tuple(range(n, 2 * n + 1)))
        if not (missing > 0).any():
            return None
        efforts = tuple(int(b) for b in np.argwhere(missing > 0)[0])
        rules = tuple(self.setting.oracle.rules[i][b] for i, b in enumerate(efforts))
        return Plan("signals", int(missing[efforts]), efforts=efforts, rules=rules)

    def _search(self) -> Plan | None:
        if not self.state.open:
            return None
        search = self.state.open[0]
        efforts = tuple(search.left if i == search.agent else 0 for i in range(self.setting.agents))
        rules = tuple(
            search.offer(self.setting.oracle.rules) if i == search.agent else known[0]
            for i, known in enumerate(self.setting.oracle.rules)
        )
        rounds = 1 if self.setting.observe_efforts else self._tests(search) - sum(self.state.probe)
        return Plan("costs", rounds, efforts=efforts, rules=rules, probed=search.agent)

    def _tests(self, search: Search) -> int:
        """Rounds after which reports tell two efforts apart, 2 ln(2 T) / TV^2."""
        p = self._own()[search.agent]
        apart = float(np.abs(p[search.left] - p[search.right]).sum() / 2)
        if apart <= 1e-6:
            raise InputError(
                f"Reports of agent {search.agent} do not tell effort {search.left} from "
                f"{search.right}: costs can be learnt only where efforts are observed."
            )
        return math.ceil(2 * math.log(2 * self.setting.rounds) / apart**2)

    def _answered(self, state: LearnerState, plan: Plan, tally: Tally) -> LearnerState:
        search, *rest = state.open
        i = search.agent
        if self.setting.observe_efforts:
            if tally.efforts is None:
                raise InputError("Efforts are observed in this setting, but the tally has none.")
            seen = tally.efforts[i]
        else:
            n = self.setting.agents
            others = tuple(j for j in range(2 * n + 1) if j not in (n, n + 1 + i))
            fresh = tally.counts.sum(axis=others).T.ravel()
            probe = fresh + (np.array(state.probe, dtype=np.int64) if state.probe else 0)
            if tally.counts.sum() < plan.rounds:
                return replace(state, probe=tuple(int(c) for c in probe))
            p = self._own()[i].reshape(self.setting.efforts[i], -1)
            seen = int((np.log(p + 1e-12) @ probe).argmax())
        again = search.step(seen)
        steps = math.ceil(math.log2(self.setting.rounds)) + 1
        open_ = [one for one in again if one.steps < steps]
        found = [one for one in again if one.steps >= steps]
        return replace(state, open=(*open_, *rest), found=(*state.found, *found), probe=())

    def _commit(self) -> Plan:
        if not self.state.mu:
            self._solve(None)
        return Plan("commit", self.setting.rounds, contract=self.contract)

    @property
    def contract(self) -> Contract:
        """The contract in force."""
        n, shape = self.setting.agents, self.setting.shape
        return Contract(
            np.array(self.state.mu).reshape(shape[:n]),
            np.array(self.state.gamma).reshape(n, *shape),
            np.array(self.state.policy, dtype=np.int64).reshape(*shape[:n], *shape[n + 1 :]),
        )

    def _own(self) -> tuple[Floats, ...]:
        return own_signals(self.counts, self.setting.oracle.silence)

    def _solve(self, bonus: Floats | None) -> None:
        setting, known = self.setting, self._known
        P = estimate(self.counts)
        differences = self._differences(self.counts)
        solved = best_contract(
            P,
            differences,
            setting.utility,
            setting.cap,
            silence=setting.oracle.silence,
            bonus=bonus,
        )
        share = self._share(solved) if self.draws else self._worst_case()
        final = robustify(solved, known, share)
        self.state = replace(
            self.state,
            mu=tuple(final.mu.ravel().tolist()),
            gamma=tuple(final.gamma.ravel().tolist()),
            policy=tuple(final.policy.ravel().tolist()),
            share=share,
        )

    def _differences(self, counts: Counts | Floats) -> tuple[Floats, ...]:
        oracle = self.setting.oracle
        own = own_signals(counts, oracle.silence)
        return cost_differences(self.state.found, own, oracle.rules, self.setting.efforts)

    def _share(self, solved: Contract) -> float:
        rng = generator(self.setting.seed, "draws", self.state.done)
        sure = robustify(solved, self._known, 1.0)
        least = max(
            least_share(solved, sure, estimate(drawn), self._differences(drawn))
            for drawn in (posterior(self.counts, rng) for _ in range(self.draws))
        )
        return min(1.0, SAFETY * least)

    def _worst_case(self) -> float:
        n, oracle = self.setting.agents, self.setting.oracle
        least = int(self.counts.sum(axis=tuple(range(n, 2 * n + 1))).min())
        outcomes = math.prod(self.setting.shape[n:])
        return worst_case_share(
            least, math.prod(self.setting.efforts), outcomes, self.setting.cap, oracle.margin,
            1 / self.setting.rounds,
        )  # fmt: skip


class UCBLP(ExploreThenCommit):
    """A few rounds of every profile and costs, then the contract of an optimistic program.

    The value of profile b is raised by sqrt(ln(2 |B| T) / (2 N_b)); the program is solved again
    when the profile that doubles first should have doubled its rounds.

    start  rounds of each profile under the known rules, N_0
    """

    def __init__(
        self,
        setting: Setting,
        state: LearnerState | None = None,
        *,
        start: int = 20,
        draws: int = 200,
    ) -> None:
        super().__init__(setting, state, draws=draws)
        self.each = start

    def _commit(self) -> Plan:
        if not (self.state.mu and self.state.left):
            n = self.setting.agents
            seen = self.counts.sum(axis=tuple(range(n, 2 * n + 1)))
            self._solve(np.sqrt(math.log(2 * seen.size * self.setting.rounds) / (2 * seen)))
            mu = self.contract.mu
            often = mu > 0
            left = math.ceil(float((seen[often] / mu[often]).min()))
            self.state = replace(self.state, left=left)
        return Plan("optimism", self.state.left, contract=self.contract)


LEARNERS: dict[str, type[ExploreThenCommit]] = {
    "explore-then-commit": ExploreThenCommit,
    "ucb-lp": UCBLP,
}


def find_learner(name: str) -> type[ExploreThenCommit]:
    """A learner by name; raises :class:`ConfigError` for an unknown one."""
    if name not in LEARNERS:
        known, hint = ", ".join(LEARNERS), nearest(name, LEARNERS)
        raise ConfigError(f"There is no learner {name!r}; there are {known}.{hint}")
    return LEARNERS[name]
