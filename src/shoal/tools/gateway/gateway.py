"""The gateway: thousands of tools behind find, describe and call.

TheMCPCompany (arXiv 2510.19286): an agent sees no tools but a way to find them, and searches again
as it learns what it needs. Beyond the paper, a call is checked whole before anything is sent: the
tool exists, was found by this agent, has not changed since, is served, is permitted and approved,
its arguments fit, and the budget covers it. One session is one agent; sessions share the catalogue
and the search, never what was found.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.core.budget import Budget
from shoal.core.errors import BudgetExhausted, ConfigError, InputError
from shoal.core.ids import new_id
from shoal.core.records import ToolSpec
from shoal.tools.gateway.arguments import fault_in
from shoal.tools.gateway.backends import Backend, BackendFault
from shoal.tools.gateway.marking import as_data
from shoal.tools.gateway.records import Access, Fault, Reply, Span
from shoal.tools.gateway.results import Results
from shoal.tools.gateway.shelf import Tools, close_names
from shoal.tools.retrieval.prompt import shortened
from shoal.tools.text import brief

Find = Callable[[str, int], Sequence[str]]
"""Names of the tools nearest to a query, at most so many, best first."""

ABOUT = 400
"""Characters of a tool's documentation that finding shows."""

WIDER = (4, 40, 400)
"""Finding asks for so many times as many as it shows, one after the other, until enough of them are
permitted."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A catalogue, a search and who answers; sessions are opened on it.

    backends  by prefix of names: ``{"aws": ..., "": ...}``; the longest that fits answers
    timeout   seconds a backend may take
    most      characters of a result that are taken at all
    """

    tools: Tools
    find: Find
    backends: Mapping[str, Backend]
    timeout: float = 30.0
    most: int = 32 << 20

    def session(
        self,
        access: Access = Access(),
        *,
        budget: Budget | None = None,
        results: Results | None = None,
        on_span: Callable[[Span], None] | None = None,
    ) -> GatewaySession:
        """A session for one agent."""
        return GatewaySession(self, access, budget, results or Results(), on_span)

    def backend(self, name: str) -> Backend | None:
        """Who answers calls of this tool."""
        parts = name.split(".")
        for count in range(len(parts), -1, -1):
            found = self.backends.get(".".join(parts[:count]))
            if found is not None:
                return found
        return None

    @property
    def counts(self) -> dict[str, int]:
        """Tools in the catalogue, and how many of them are served here."""
        served = sum(self.backend(name) is not None for name in self.tools.names)
        return {"tools": len(self.tools), "with_backend": served}


@dataclass(slots=True)
class _Made:
    """A call under its key: its arguments, and its reply once there is one."""

    tool: str
    arguments: str
    reply: Reply | None = None
    under_way: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class GatewaySession:
    """One agent's way through a gateway: what it found, its permissions, budget and results.

    ``found`` holds the version of each tool as it was found; it only grows, in order, so that a
    prompt that lists it keeps its beginning.
    """

    gateway: Gateway
    access: Access
    budget: Budget | None
    results: Results
    on_span: Callable[[Span], None] | None = None
    found: dict[str, str] = field(default_factory=dict)
    _made: dict[str, _Made] = field(default_factory=dict)
    _id: str = field(default_factory=new_id)
    _calls: int = 0

    def find(self, query: str, k: int = 5) -> list[ToolSpec]:
        """The nearest tools that this agent may call, best first; they may then be called.

        Raises :class:`ConfigError` for a ``k`` below 1.
        """
        if k < 1:
            raise ConfigError(f"k is {k}, but finding shows at least 1 tool.")
        began = time.perf_counter()
        specs: list[ToolSpec] = []
        for width in WIDER:
            names = self.gateway.find(query, k * width)
            specs = self._permitted(names, k)
            if len(specs) == k or len(names) < k * width:
                break
        for spec in specs:
            self.found[spec.name] = spec.version
        self._tell("find", "", "", began, ok=bool(specs), detail=query)
        return specs

    def _permitted(self, names: Sequence[str], k: int) -> list[ToolSpec]:
        """The first ``k`` of these tools that this agent may call."""
        specs: list[ToolSpec] = []
        for name in names:
            if len(specs) == k:
                break
            if name not in self.gateway.tools:
                continue
            spec = self.gateway.tools[name]
            shown = spec.served or not self.access.served
            if shown and self.access.forbids(spec) is None:
                specs.append(spec)
        return specs

    def describe(self, name: str) -> ToolSpec:
        """A tool whole, as it is now; it may then be called.

        Raises :class:`InputError` for one that is not there, or not for this agent.
        """
        began = time.perf_counter()
        if name not in self.gateway.tools:
            close = ", ".join(self.nearest(name))
            raise InputError(f"There is no tool {name!r}. The nearest are: {close or 'none'}.")
        spec = self.gateway.tools[name]
        if why := self.access.forbids(spec):
            raise InputError(f"{why[0].upper()}{why[1:]}.")
        self.found[name] = spec.version
        self._tell("describe", name, spec.version, began, ok=True)
        return spec

    def nearest(self, name: str, count: int = 3) -> tuple[str, ...]:
        """Names of permitted tools that may have been meant."""
        close = close_names(name, self.gateway.tools.names, 4 * count)
        tools = self.gateway.tools
        return tuple(one for one in close if self.access.forbids(tools[one]) is None)[:count]

    async def call(self, name: str, arguments: Mapping[str, Any], key: str = "") -> Reply:
        """Call a tool. Whatever is wrong comes back as a fault; nothing is raised.

        ``key`` names the call for ever: made again under it, the first answer comes back and
        nothing is sent. Without one every call is its own.
        """
        began = time.perf_counter()
        self._calls += 1
        key = key or f"{self._id}/{self._calls}"
        spec, fault = self._checked(name, arguments)
        if spec is None or fault is not None:
            return self._replied(Reply(name, fault=fault, key=key), began)
        reply = Reply(name, spec.version, key=key)
        made = self._made.setdefault(key, _Made(name, _canonical(arguments)))
        if (made.tool, made.arguments) != (name, _canonical(arguments)):
            fault = Fault("bad_key", f"The key {key!r} names another call: take a new one.")
            return self._replied(replace(reply, fault=fault), began)
        async with made.under_way:
            if made.reply is not None:
                return self._replied(replace(made.reply, repeated=True), began)
            reply = await self._allowed(spec, arguments, reply)
            if reply.sent and (reply.fault is None or not reply.fault.retryable):
                made.reply = reply  # a call that may be made again is not over
        return self._replied(reply, began)

    async def _allowed(self, spec: ToolSpec, arguments: Mapping[str, Any], reply: Reply) -> Reply:
        """The last checks, which need somebody's answer, and then the call."""
        fault = await self._approved(spec, arguments)
        if fault is not None:
            return replace(reply, fault=fault)
        if self.access.dry_run and spec.side_effect != "read":
            text = f"Dry run: {spec.name} would {spec.side_effect}; nothing was sent."
            return replace(reply, text=text, size=len(text), dry=True)
        try:
            held = self.budget.reserve(0, spec.cost) if self.budget is not None else None
        except BudgetExhausted as error:
            return replace(reply, fault=Fault("budget", str(error)))
        try:
            return await self._sent(spec, arguments, replace(reply, sent=True))
        finally:
            if held is not None:
                held.settle(0)

    def read(self, handle: str, offset: int = 0, length: int | None = None) -> str:
        """Part of a long result, as data; raises :class:`InputError` where it is gone."""
        piece = self.results.read(handle, offset, length)
        end = f"; go on at {piece.next}" if piece.next is not None else ""
        where = f"{handle}, characters {piece.offset} to {piece.offset + len(piece.text)}"
        return as_data(piece.text, f"{where} of {piece.size}{end}")

    # -- what stands before a call ------------------------------------------------------------

    def _checked(
        self, name: str, arguments: Mapping[str, Any]
    ) -> tuple[ToolSpec | None, Fault | None]:
        """The tool, where nothing stands against calling it; else the fault."""
        tools = self.gateway.tools
        if name not in tools:
            close = self.nearest(name)
            meant = f" The nearest are: {', '.join(close)}." if close else ""
            if name in self.found:
                gone = f"{name} was found before, but is not there any more: find again.{meant}"
                return None, Fault("gone", gone, nearest=close)
            return None, Fault("unknown_tool", f"There is no tool {name!r}.{meant}", nearest=close)
        spec = tools[name]
        if why := self.access.forbids(spec):
            return spec, Fault("not_permitted", f"{why[0].upper()}{why[1:]}.")
        if name not in self.found and not self.access.any_name:
            return spec, Fault("not_found_yet", f"Find or describe {name} before calling it.")
        if self.found.get(name, spec.version) != spec.version:
            changed = f"{name} has changed since it was found: describe it and call it anew."
            return spec, Fault("changed", changed)
        if not spec.served or self.gateway.backend(name) is None:
            return spec, Fault("not_served", f"{name} is described here, but not served.")
        return spec, fault_in(spec, arguments)

    async def _approved(self, spec: ToolSpec, arguments: Mapping[str, Any]) -> Fault | None:
        if spec.side_effect not in self.access.approval or self.access.dry_run:
            return None
        ask = self.access.approve
        if ask is None:
            sentence = f"{spec.name} would {spec.side_effect}, and nobody is there to approve it."
            return Fault("not_approved", sentence)
        answer = ask(spec, arguments)
        if inspect.isawaitable(answer):
            answer = await answer
        return None if answer is True else Fault("not_approved", f"{spec.name} was not approved.")

    # -- the call itself ----------------------------------------------------------------------

    async def _sent(self, spec: ToolSpec, arguments: Mapping[str, Any], reply: Reply) -> Reply:
        backend = self.gateway.backend(spec.name)
        assert backend is not None, "a tool without one is not served"
        again = spec.side_effect == "read" or backend.keyed
        try:
            async with asyncio.timeout(self.gateway.timeout):
                text = await backend.call(spec, arguments, reply.key)
        except TimeoutError:
            late = f"{spec.name} did not answer within {self.gateway.timeout:g} seconds"
            if again:
                return replace(reply, fault=Fault("timeout", f"{late}.", retryable=True, sent=True))
            unsure = f"{late}: nobody knows whether it took effect, so look before calling again."
            return replace(reply, fault=Fault("uncertain", unsure, sent=True))
        except BackendFault as error:
            down = error.kind in ("unavailable", "timeout")
            fault = Fault(
                error.kind, str(error)[:2000], retryable=down and (again or not error.sent),
                sent=error.sent,
            )  # fmt: skip
            if down and error.sent and not again:
                unsure = f"{fault.message} Nobody knows whether it took effect."
                fault = replace(fault, kind="uncertain", message=unsure)
            if error.kind == "gone":
                fault = replace(fault, nearest=self.nearest(spec.name))
            return replace(reply, fault=fault)
        if len(text) > self.gateway.most:
            sentence = f"{spec.name} answered {len(text):,} characters, too many to keep."
            return replace(reply, fault=Fault("too_large", sentence, sent=True))
        shown, handle = self.results.shown(text)
        return replace(reply, text=shown, size=len(text), handle=handle)

    def _replied(self, reply: Reply, began: float) -> Reply:
        detail = reply.fault.kind if reply.fault else ""
        self._tell("call", reply.tool, reply.version, began, ok=reply.ok, detail=detail)
        return replace(reply, seconds=time.perf_counter() - began)

    def _tell(
        self, kind: Any, tool: str, version: str, began: float, *, ok: bool, detail: str = ""
    ) -> None:
        if self.on_span is not None:
            self.on_span(Span(kind, tool, version, time.perf_counter() - began, ok, detail))


def _canonical(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True, default=str)


def told(spec: ToolSpec, *, whole: bool = False) -> str:
    """A tool as an agent is shown it: what the gateway knows, then what others wrote, as data.

    Documentation and schema are shortened where it is not asked for as a ``whole``.
    """
    where = "served" if spec.served else "described only, not served here"
    head = f"{spec.name} ({spec.side_effect}, {where}, version {spec.version})"
    about = spec.description if whole else brief(spec.description, ABOUT)
    parameters = spec.parameters if whole else shortened(spec).parameters
    written = f"{about}\narguments: {json.dumps(dict(parameters))}"
    return f"{head}\n{as_data(written, f'the documentation of {spec.name}')}"
