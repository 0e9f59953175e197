"""Solving tasks with a script that knows the goal: what finding, checking and doing are worth.

The script knows what to call and with what, and may call only what it was shown. So an arm that
completes less has shown it less; what a model would get wrong beside that is not measured here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.core import rng
from shoal.core.errors import InputError
from shoal.envs.company.account import Account, Difference, difference
from shoal.envs.company.seed import seed_calls
from shoal.envs.company.tasks import Step, Task, filled, gold, score
from shoal.tools.gateway.gateway import Gateway, GatewaySession, told
from shoal.tools.gateway.records import Access
from shoal.tools.retrieval.prompt import tokens
from shoal.tools.text import words_of

K = 5
REFUSALS = frozenset(("not_served", "not_permitted", "not_approved", "unknown_tool"))


@dataclass(slots=True)
class Bill:
    """What an attempt took: searches, calls, those that were refused, tokens read and written."""

    finds: int = 0
    calls: int = 0
    wrong: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class Solved:
    """What became of a task.

    score   share of its predicates that hold
    done    all of them do; of an impossible task, that it was refused and nothing has changed
    damage  leaves of the state that changed and would not have by the task's own calls
    """

    task: str
    kind: str
    done: bool
    score: float
    bill: Bill
    damage: int = 0
    why: str = ""


Look = Callable[[GatewaySession, Task, Step, Bill], bool]
"""Whether an arm is shown the tool of a step; whatever it was shown is on the bill."""


def queries(step: Step) -> tuple[str, ...]:
    """What one would search for: the need, then with the service, then with arguments, too."""
    names = " ".join(" ".join(words_of(name)) for name in step.arguments)
    return (step.need, *step.hints, f"{' '.join(step.hints[-1:]) or step.need} {names}")


def gateway_look(most: int) -> Look:
    """Search up to ``most`` times for a step."""

    def look(session: GatewaySession, task: Task, step: Step, bill: Bill) -> bool:
        for query in queries(step)[:most]:
            bill.finds += 1
            bill.tokens_out += tokens(query)
            specs = session.find(query, K)
            bill.tokens_in += sum(tokens(told(spec)) for spec in specs)
            if any(spec.name == step.tool for spec in specs):
                return True
        return False

    return look


def oracle_look(session: GatewaySession, task: Task, step: Step, bill: Bill) -> bool:
    """The right tool is shown."""
    try:
        bill.tokens_in += tokens(told(session.describe(step.tool)))
    except InputError:  # not permitted, which calling it will say
        return True
    return True


def once_look(plan: Callable[[str, int], Sequence[str]]) -> Look:
    """One search with the whole task, before it begins; nothing is shown later."""
    shown: dict[str, frozenset[str]] = {}

    def look(session: GatewaySession, task: Task, step: Step, bill: Bill) -> bool:
        if task.name not in shown:
            names = list(plan(task.text, K))
            shown[task.name] = frozenset(names)
            bill.finds += 1
            bill.tokens_out += tokens(task.text)
            specs = [session.gateway.tools[name] for name in names]
            bill.tokens_in += sum(tokens(told(spec)) for spec in specs)
            for spec in specs:
                if session.access.forbids(spec) is None:
                    session.describe(spec.name)
        return step.tool in shown[task.name]

    return look


def random_look(seed: int) -> Look:
    """``K`` tools at random."""

    def look(session: GatewaySession, task: Task, step: Step, bill: Bill) -> bool:
        names = session.gateway.tools.names
        for number in range(K):
            at = int(rng.uniform(seed, task.name, step.tool, number) * len(names))
            bill.tokens_in += tokens(told(session.gateway.tools[names[at]]))
            if names[at] == step.tool:
                session.describe(step.tool)
                return True
        return False

    return look


@dataclass(slots=True)
class Bench:
    """Where tasks are solved: the account, and what each task's own calls change."""

    account: Account
    gateway: Gateway
    _golds: dict[str, Difference] = field(default_factory=dict)

    def begin(self, task: Task) -> dict[str, str]:
        """The company as the task finds it; its state.

        It is made anew also where the last attempt changed nothing: whatever was read since has
        drawn from what identifiers are made of, and the same calls would make others.
        """
        if task.name not in self._golds and task.kind != "impossible":
            self.account.reset((*seed_calls(), *task.setup))
            before = self.account.state()
            gold(task, self.account)
            self._golds[task.name] = difference(before, self.account.state())
        self.account.reset((*seed_calls(), *task.setup))
        return self.account.state()

    def end(self, task: Task, before: Mapping[str, str], bill: Bill, why: str) -> Solved:
        """Judge what was done: the difference is taken before predicates read anything."""
        changed = difference(before, self.account.state()).paths
        if task.kind == "impossible":
            return Solved(task.name, task.kind, not changed, 1.0, bill, len(changed), why)
        damage = len(changed - self._golds[task.name].paths)
        made = self.account.snapshot()
        reached = score(task, self.account)
        self.account.made[:] = made  # what predicates read is no part of the attempt
        return Solved(task.name, task.kind, reached == 1.0, reached, bill, damage, why)

    def session(self) -> GatewaySession:
        """One agent's session: what destroys needs an approval, which nobody gives to tasks that
        are impossible."""
        return self.gateway.session(Access(approve=lambda spec, arguments: True))

    async def scripted(self, task: Task, look: Look) -> Solved:
        """Let the script solve a task in one arm."""
        before, bill = self.begin(task), Bill()
        session = self.session()
        if task.kind == "impossible":
            session.access = Access()
        answers: dict[str, Any] = {}
        why = ""
        for step in task.steps:
            if not look(session, task, step, bill):
                why = f"{step.tool} was not found"
                break
            arguments = filled(step.arguments, answers)
            why = await _called(session, step, arguments, answers, bill)
            if why:
                break
        return self.end(task, before, bill, why)

    async def by(self, task: Task, act: Callable[[Task, Bill], Awaitable[str]]) -> Solved:
        """Let anything else work on a task; ``act`` says why it stopped."""
        before, bill = self.begin(task), Bill()
        why = await act(task, bill)
        return self.end(task, before, bill, why)


async def _called(
    session: GatewaySession,
    step: Step,
    arguments: Mapping[str, Any],
    answers: dict[str, Any],
    bill: Bill,
) -> str:
    import json

    bill.calls += 1
    bill.tokens_out += tokens(json.dumps(arguments)) + tokens(step.tool)
    reply = await session.call(step.tool, arguments)
    if reply.fault is not None:
        bill.wrong += 1
        bill.tokens_in += tokens(reply.fault.message)
        return f"{reply.fault.kind}: {reply.fault.message}"
    bill.tokens_in += tokens(reply.text)
    whole = reply.text
    if reply.handle is not None:
        whole = session.results.read(reply.handle, 0, reply.size).text
    answers[step.name] = json.loads(whole)
    return ""
