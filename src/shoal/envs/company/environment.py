"""The company as an environment: find tools, call them, and be paid by what is then true.

An action is one JSON object: ``{"find": "what to do"}``, ``{"call": "aws.sqs.CreateQueue",
"arguments": {...}}`` or ``{"answer": "..."}``, which ends the episode. A return is the share of the
task's predicates that hold at the end, less what was changed beside the task.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Hashable, Mapping
from hashlib import blake2b
from typing import Any

from shoal.core.errors import ConfigError
from shoal.envs.company.account import Called
from shoal.envs.company.office import Office, catalogue, open_office
from shoal.envs.company.solving import Bench, Bill
from shoal.envs.company.tasks import Kind, Task, load_tasks
from shoal.envs.protocol import Transition
from shoal.tools.gateway.gateway import GatewaySession, told
from shoal.tools.gateway.records import Access

DAMAGE = 0.5
"""What a change beside the task costs."""

SHOWN = 2000
"""Characters of a result in an observation."""


class Company:
    """Tasks in a local cloud; a seed is a task. Needs the extra ``company``.

    kind   "primitive" (one call), "composite" (several, with data flow) or "impossible"
    office what to work in; one with the whole AWS catalogue is opened where it is left out
    """

    reward_min, reward_max = 0.0, 1.0
    answers = False
    blocking = True
    final_answer = None

    def __init__(
        self, kind: Kind = "primitive", max_steps: int = 12, office: Office | None = None
    ) -> None:
        self._tasks = [task for task in load_tasks() if task.kind == kind]
        if not self._tasks:
            raise ConfigError(
                f"There are no {kind!r} tasks: take primitive, composite, impossible."
            )
        self.name = f"company-{kind}"
        self.max_steps = max_steps
        self._own = office is None
        self._office = office or open_office(*catalogue())
        self._bench = Bench(self._office.account, self._office.gateway)
        self._steps = 0
        self.task: Task = self._tasks[0]
        self._before: dict[str, str] = {}
        self._session: GatewaySession = self._office.gateway.session()

    @property
    def instructions(self) -> str:
        """The three kinds of actions."""
        return (
            'Work in the company\'s cloud. Answer with one JSON object: {"find": "what to do"}, '
            '{"call": "NAME", "arguments": {...}} for a tool that was found, or {"answer": "..."} '
            "when the task is done or cannot be done."
        )

    def reset(self, seed: int) -> str:
        """The company, and the task of this seed in it."""
        self.task = self._tasks[seed % len(self._tasks)]
        self._before = self._bench.begin(self.task)
        self._steps = 0
        self._session = self._opened()
        return f"Task: {self.task.text}"

    def _opened(self) -> GatewaySession:
        approve = None if self.task.kind == "impossible" else (lambda spec, arguments: True)
        return self._office.gateway.session(Access(approve=approve))

    def step(self, action: str) -> Transition:
        """Find, call or end."""
        self._steps += 1
        cut = self._steps >= self.max_steps
        try:
            wish = json.loads(action)
        except ValueError:
            wish = None
        match wish:
            case {"find": str(query)}:
                shown = "\n\n".join(told(spec) for spec in self._session.find(query))
                return self._after(shown or "Nothing was found.", cut)
            case {"call": str(name), **rest}:
                return self._after(self._called(name, rest.get("arguments", {})), cut)
            case {"answer": str()}:
                return self._ended()
            case _:
                return Transition(self.instructions, 0.0, False, cut, valid=False)

    def _called(self, name: str, arguments: Any) -> str:
        reply = asyncio.run(self._session.call(name, arguments))
        if reply.fault is not None:
            return f"{reply.fault.kind}: {reply.fault.message}"
        return reply.text[:SHOWN]

    def _after(self, observation: str, cut: bool) -> Transition:
        if not cut:
            return Transition(observation, 0.0, False)
        ended = self._ended()
        return Transition(observation, ended.reward, False, True, solved=ended.solved)

    def _ended(self) -> Transition:
        solved = self._bench.end(self.task, self._before, Bill(), "")
        reward = solved.score if solved.done or self.task.kind != "impossible" else 0.0
        if solved.damage:
            reward = max(0.0, reward - DAMAGE)
        return Transition("", reward, True, solved=solved.done and not solved.damage)

    def state_key(self) -> Hashable:
        """The task, what was found, and everything the cloud holds."""
        state = json.dumps(sorted(self._office.account.state().items()))
        digest = blake2b(state.encode(), digest_size=16).hexdigest()
        return self.task.name, tuple(self._session.found), digest

    def admissible_actions(self) -> tuple[str, ...]:
        """They cannot be listed."""
        return ()

    def snapshot(self) -> Any:
        """The task, the calls that were made, and what was found."""
        return (
            self.task,
            self._steps,
            self._office.account.snapshot(),
            dict(self._session.found),
            self._before,
        )

    def restore(self, snapshot: Any) -> None:
        """Make the same calls again in a new account."""
        calls: tuple[Called, ...]
        found: Mapping[str, str]
        self.task, self._steps, calls, found, self._before = snapshot
        self._office.account.restore(calls)
        self._session = self._opened()
        self._session.found.update(found)

    def close(self) -> None:
        """Stop the cloud, if it was opened here."""
        if self._own:
            self._office.account.close()
