"""Working in the company: a member finds tools, calls them, and says what has changed.

A model that calls tools in its own way is given the four tools of the gateway. Any other chooses
by likelihood among what is found (:mod:`shoal.envs.company.deciding`), a step of the task at a
time, and the report is written from what happened.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from shoal.agents.rules import Names
from shoal.agents.strategies import Session, Strategy
from shoal.core.errors import BudgetExhausted
from shoal.core.protocols import Completion
from shoal.core.records import Message, ToolSpec
from shoal.envs.company.account import difference
from shoal.envs.company.deciding import Chooser
from shoal.envs.company.office import Office, office
from shoal.tools.functions import Tool, from_function
from shoal.tools.gateway.gateway import GatewaySession
from shoal.tools.gateway.records import Access
from shoal.tools.mcp.server import OWN, answered
from shoal.tools.retrieval.requests import decompose

SHOWN = 300
"""Characters of a result in a report."""

TASK = "Task: "


def cloud(
    most: Annotated[int, Field(ge=1, le=50)] = 8,
    k: Annotated[int, Field(ge=1, le=20)] = 5,
    destroy: bool = False,
    services: Names = (),
) -> Strategy:
    """Work on the task in the local cloud with up to ``most`` calls.

    ``k`` tools are shown for a search; ``destroy`` approves calls that destroy something;
    ``services`` are those whose tools there are, by default all of AWS.
    """

    async def strategy(session: Session) -> Completion:
        place = await asyncio.to_thread(office, services)
        before = await asyncio.to_thread(place.account.state)
        access = Access(approve=(lambda spec, arguments: True) if destroy else None, served=True)
        gateway = place.gateway.session(access)
        try:
            if session.engine.info.knows_tools and session.engine.info.kind == "remote":
                completion = await _freely(session, gateway, most)
            else:
                completion = await _choosing(session, gateway, most, k)
        except BudgetExhausted:
            session.job.data["cut_short"] = True
            completion = Completion("The budget was used up.", finish="budget")
        changed = await asyncio.to_thread(_changed, place, before)
        session.job.data["changed"] = changed
        return Completion(
            f"{completion.text.strip()}\n\n{_told(changed)}", finish=completion.finish
        )

    return strategy


async def _freely(session: Session, gateway: GatewaySession, most: int) -> Completion:
    """The model calls the gateway's tools as it likes, then answers."""
    tools = {spec.name: _tool(spec, gateway) for spec in OWN}
    for _ in range(most):
        before, requests = session.usage, session.requests
        completion = await session.act(OWN)
        if not completion.tool_calls:
            return completion
        session.note(Message("assistant", completion.text, tool_calls=completion.tool_calls))
        for wish in completion.tool_calls:
            tool = tools.get(wish.name)
            if tool is None:
                text = f"There is no tool {wish.name!r}: there are {', '.join(tools)}."
            else:
                cost = session.cost_since(before, requests)
                body = json.dumps({"body": wish.arguments})
                text = await session.call(tool, body, cost)
            session.note(Message("tool", text, tool_call_id=wish.id))
    return await session.answer("Now say what you did.")


def _tool(spec: ToolSpec, gateway: GatewaySession) -> Tool:
    """One of the gateway's tools, whose calls are kept in the run's log."""

    async def call(body: str) -> str:
        try:
            given = json.loads(body or "{}")
        except ValueError as error:
            return f"The arguments are no JSON: {error}."
        if not isinstance(given, dict):
            return "The arguments are an object."
        return (await answered(gateway, spec.name, given))[0]

    return from_function(call, name=spec.name, side_effect=spec.side_effect)


async def _choosing(session: Session, gateway: GatewaySession, most: int, k: int) -> Completion:
    """One call for each step of the task, chosen among what is found for it."""
    task = task_of(session.job.prompt)
    chooser = Chooser(session.engine)
    said: list[str] = []
    for need in decompose(task)[:most]:
        found = gateway.find(need, k)
        if not found:
            said.append(f"Nothing was found for {need!r}.")
            continue
        spec = await chooser.tool(need, found)
        arguments = await chooser.arguments(need, spec)
        tool = _calls(spec, gateway)
        text = await session.call(tool, json.dumps({"given": arguments}), _free())
        said.append(f"I called {spec.name} with {json.dumps(arguments)}: {text[:SHOWN]}")
    session.usage += chooser.usage
    session.job.data["prompt_tokens_scored"] = chooser.scored
    return Completion("\n".join(said) or "There was nothing to do.")


def _calls(spec: ToolSpec, gateway: GatewaySession) -> Tool:
    async def call(given: dict[str, Any]) -> str:
        reply = await gateway.call(spec.name, given)
        return reply.fault.message if reply.fault is not None else reply.text

    return from_function(call, name=spec.name, side_effect=spec.side_effect)


def _free() -> dict[str, int]:
    """A call that was decided on without generating anything."""
    return {"prompt": 0, "shared": 0, "decoded": 0, "requests": 0}


def task_of(prompt: tuple[Message, ...]) -> str:
    """The task in a member's prompt."""
    text = prompt[-1].content
    _, found, rest = text.partition(TASK)
    return (rest if found else text).split("\n\n")[0].strip()


def _changed(place: Office, before: Mapping[str, str]) -> dict[str, Any]:
    found = difference(before, place.account.state())
    return {
        "added": sorted(found.added),
        "removed": sorted(found.removed),
        "changed": {path: list(pair) for path, pair in sorted(found.changed.items())},
        "places": found.places(),
    }


def _told(changed: Mapping[str, Any]) -> str:
    """What changed, in a few lines."""
    if not changed["places"]:
        return "Nothing has changed in the cloud."
    lines = []
    for place, count in changed["places"].items():
        marks = []
        for word in ("added", "removed", "changed"):
            things = {_thing(path, place) for path in changed[word] if path.startswith(place)}
            if things:
                marks.append(f"{word} {', '.join(sorted(things)[:4])}")
        lines.append(f"- {place} ({count} values): {'; '.join(marks)}")
    return "What changed in the cloud:\n" + "\n".join(lines)


def _thing(path: str, place: str) -> str:
    """The name of the thing that a path belongs to."""
    rest = path[len(place) :].lstrip(".")
    return rest.split("._")[0].split(".")[0] or place
