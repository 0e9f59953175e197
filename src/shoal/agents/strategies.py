"""Strategies of a turn: answer at once, call tools first, or look at one's own draft again.

A strategy may ask its engine several times; that is one turn, one step and one answer. The
budget covers the answer before the turn begins. Each further request is reserved when it comes,
and where it cannot be, the member answers with what it has.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from shoal.agents.rules import Registry
from shoal.agents.tools import call
from shoal.core import rng
from shoal.core.budget import Reservation
from shoal.core.errors import BudgetExhausted, EngineError
from shoal.core.log import EventLog
from shoal.core.protocols import Completion, Engine, Grammar, OnDelta, Request, Sampling
from shoal.core.records import Message, ToolCall, ToolSpec, Usage
from shoal.tools.functions import Tool

if TYPE_CHECKING:
    from shoal.agents.answering import Job

ANSWER = "answer"
ARGUMENT_TOKENS = 256


@dataclass(slots=True)
class Session:
    """One turn that may take several requests: what was said in it, done in it, and its cost.

    ``again``: this process has tried the turn before, and booked what the log holds of it.
    """

    job: Job
    engine: Engine
    log: EventLog
    tools: tuple[Tool, ...] = ()
    on_delta: OnDelta | None = None
    again: bool = False
    said: list[Message] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    usage: Usage = Usage()
    how: str = "exact"
    _requests: int = 0
    _extra: list[Reservation] = field(default_factory=list)

    async def think(
        self, asked: str, grammar: Grammar | None = None, max_tokens: int | None = None
    ) -> str:
        """Ask for something on the way to the answer.

        Raises :class:`BudgetExhausted` where the answer could not be paid for any more.
        """
        messages = (*self._messages(), Message("user", asked))
        length = max_tokens or self.job.sampling.max_tokens
        need = 0
        if self.job.budget.remaining().tokens is not None:
            need = self.engine.count_tokens(messages) + length
        self._extra.append(self.job.budget.reserve(need))
        completion = await self._ask(messages, grammar, length, None)
        return completion.text

    async def answer(self, asked: str = "") -> Completion:
        """The turn's answer, shortened where the budget does not cover what the turn has grown."""
        messages = self._messages()
        if asked:
            messages = (*messages, Message("user", asked))
        longest = self.job.sampling.max_tokens
        if self.job.budget.remaining().tokens is not None:
            count = self.engine.count_tokens
            grown = count(messages) - count(self.job.prompt)
            try:
                self._extra.append(self.job.budget.reserve(max(0, grown), calls=0))
            except BudgetExhausted:
                longest -= grown
                if longest < 1:
                    return Completion(self.results[-1] if self.results else "", finish="budget")
        return await self._ask(messages, None, longest, self.on_delta)

    async def act(self, offered: Sequence[ToolSpec]) -> Completion:
        """Let the model answer, or call tools in its own way (``tool_calls`` of the completion).

        For engines that know tools. Raises :class:`BudgetExhausted` as :meth:`think` does.
        """
        messages, length = self._messages(), self.job.sampling.max_tokens
        need = 0
        if self.job.budget.remaining().tokens is not None:
            need = self.engine.count_tokens(messages) + length
        self._extra.append(self.job.budget.reserve(need))
        return await self._ask(messages, None, length, None, tuple(offered))

    def note(self, *messages: Message) -> None:
        """Keep what was said for the requests to come."""
        self.said += messages

    async def call(self, tool: Tool, arguments: str, cost: dict[str, int]) -> str:
        """Call a tool, once and for all (see :mod:`shoal.agents.tools`)."""
        key = self._call_key()
        result = await call(tool, arguments, key, self.log, cost)
        self.calls.append(ToolCall(key.rpartition("/")[2], tool.name, arguments))
        self.results.append(result)
        return result

    def made_before(self) -> tuple[Tool, str] | None:
        """The next call as an earlier process decided it, whose cost is booked again."""
        event = self.log.get(self._call_key())
        if event is None:
            return None
        cost = {name: int(value) for name, value in event.body["cost"].items()}
        self._requests += cost["requests"]
        if not self.again:  # else this process has booked it already
            self.job.budget.spend(0, calls=cost["requests"])
            self.usage += Usage(cost["prompt"], cost["shared"], cost["decoded"])
        named = {tool.name: tool for tool in self.tools}
        return named[event.body["name"]], str(event.body["arguments"])

    def cost_since(self, before: Usage, requests: int) -> dict[str, int]:
        """What was spent since then."""
        return {
            "prompt": self.usage.prompt_tokens - before.prompt_tokens,
            "shared": self.usage.shared_tokens - before.shared_tokens,
            "decoded": self.usage.decoded_tokens - before.decoded_tokens,
            "requests": self._requests - requests,
        }

    @property
    def requests(self) -> int:
        """How often the engine was asked."""
        return self._requests

    def release(self) -> None:
        """Give back what was held beside the turn's own reservation, which then settles all."""
        for reservation in self._extra:
            reservation.settle(0)
        self._extra.clear()

    def _call_key(self) -> str:
        return f"{self.job.key}/call/{len(self.calls)}"

    def _messages(self) -> tuple[Message, ...]:
        return (*self.job.prompt, *self.said)

    async def _ask(
        self,
        messages: tuple[Message, ...],
        grammar: Grammar | None,
        max_tokens: int,
        on_delta: OnDelta | None,
        offered: tuple[ToolSpec, ...] = (),
    ) -> Completion:
        seed = self.job.sampling.seed
        if self._requests:
            seed = rng.seed_of(seed, "request", self._requests)
        sampling = replace(self.job.sampling, seed=seed, max_tokens=max_tokens)
        if grammar is not None:
            sampling = held(sampling, grammar.value if grammar.kind == "choice" else ())
        self._requests += 1
        request = Request(messages, sampling, grammar, offered)
        (completion,) = await self.engine.generate([request], on_delta)
        self.usage += completion.usage
        self.how = completion.how if completion.how != "exact" else self.how
        if completion.error is not None or completion.finish in ("error", "cancelled"):
            raise EngineError(completion.error or f"the engine gave up ({completion.finish})")
        return completion


def held(sampling: Sampling, choices: Sequence[str] = ()) -> Sampling:
    """The same for an answer that a grammar holds: nothing may cut it short before its end.

    A token stands for a byte at least, so a choice never has more tokens than bytes.
    """
    longest = max((len(choice.encode()) for choice in choices), default=0)
    most = max(sampling.max_tokens, longest + 1)
    return replace(sampling, max_tokens=most, min_tokens=0, stop=())


Strategy = Callable[[Session], Awaitable[Completion]]

strategies: Registry[Strategy] = Registry("strategy", "shoal.strategies")


@strategies.register("answer")
def answer() -> Strategy:
    """Answer at once."""
    return lambda session: session.answer()


@strategies.register("reflect")
def reflect(n: Annotated[int, Field(ge=1, le=5)] = 1) -> Strategy:
    """Write a draft, say what is wrong with it and write it again, ``n`` times."""

    async def strategy(session: Session) -> Completion:
        drafts: list[str] = []
        try:
            for _ in range(n):
                asked = "Write it again, better." if drafts else "Write a first draft."
                drafts.append(await session.think(asked))
                session.note(Message("user", asked), Message("assistant", drafts[-1]))
                asked = "What is wrong with this, or missing? Say it in one sentence."
                critique = await session.think(asked)
                session.note(Message("user", asked), Message("assistant", critique))
        except BudgetExhausted:
            session.job.data["cut_short"] = True
        session.job.data["drafts"] = drafts
        return await session.answer("Write your final answer." if drafts else "")

    return strategy


@strategies.register("tools")
def use_tools(most: Annotated[int, Field(ge=1, le=50)] = 4) -> Strategy:
    """Call up to ``most`` tools one after the other, then answer.

    Which tool is held to their names, and its arguments to its schema, by grammars.
    """

    async def strategy(session: Session) -> Completion:
        try:
            while len(session.calls) < most and await _one_call(session):
                pass
        except BudgetExhausted:
            session.job.data["cut_short"] = True
        return await session.answer("Now answer." if session.calls else "")

    return strategy


async def _one_call(session: Session) -> bool:
    """Decide on a call and make it; false where the model would rather answer."""
    before, requests = session.usage, session.requests
    decided = session.made_before()
    if decided is None:
        named = {tool.name: tool for tool in session.tools}
        listed = "\n".join(f"{tool.name}: {tool.spec.description}" for tool in session.tools)
        words = ", ".join((*named, ANSWER))
        asked = f"You may call a tool:\n{listed}\nWhat do you do next? One word: {words}."
        chosen = (await session.think(asked, Grammar("choice", (*named, ANSWER)), 16)).strip()
        if chosen not in named:
            return False
        schema = json.dumps(named[chosen].spec.parameters)
        asked = f"Give the arguments of {chosen} as JSON. Their schema: {schema}"
        grammar = Grammar("json_schema", schema)
        decided = named[chosen], await session.think(asked, grammar, ARGUMENT_TOKENS)
    tool, arguments = decided
    result = await session.call(tool, arguments, session.cost_since(before, requests))
    session.note(
        Message("assistant", f"I call {tool.name} with {arguments}."),
        Message("user", f"{tool.name} returned: {result}"),
    )
    return True


def described(session: Session) -> dict[str, Any]:
    """What a step keeps of a turn that took several requests."""
    data: dict[str, Any] = {}
    if session.requests > 1:
        data["requests"] = session.requests
    if session.results:
        data["returned"] = list(session.results)
    return data
