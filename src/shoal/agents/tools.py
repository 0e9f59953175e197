"""Tools that members call: by name in team files, and how a call survives a crash.

A call is written to the log before it is made and again when it has returned. A run that goes on
takes what returned from the log. A call that was under way when the process died is made again
where that is harmless: the tool only reads, or takes the call's ``idempotency_key`` (a parameter
models do not see) and so can tell a repetition. Else it is not repeated, and the model is told
that nobody knows whether it took effect.
"""

from __future__ import annotations

import asyncio
import inspect
import json

from pydantic import ValidationError

from shoal.agents.rules import Registry
from shoal.core.log import EventLog
from shoal.tools.functions import KEY, Tool, from_function

UNKNOWN = "The run was interrupted during this call: nobody knows whether it took effect."


tool = from_function
"""A tool out of a function: the importer under the name it has in a program."""

tools: Registry[Tool] = Registry("tool", "shoal.tools")
"""Tools by name, for team files: an entry point ``shoal.tools`` names a function that returns a
:class:`Tool`."""


async def call(tool: Tool, arguments: str, key: str, log: EventLog, cost: dict[str, int]) -> str:
    """Make a call once, however often it is asked for under this ``key``; what it returned.

    A tool that raises or is called wrongly returns a sentence about that. ``cost`` is what it
    took to decide on the call; it is logged with it.
    """
    returned = log.get(f"{key}/returned")
    if returned is not None:
        return str(returned.body["result"])
    begun = log.get(key) is not None
    if begun and not tool.repeatable:
        result = UNKNOWN
    else:
        body = {"name": tool.name, "arguments": arguments, "cost": cost}
        log.append("call", body, key=key)
        result = await _made(tool, arguments, key)
    log.append("returned", {"result": result}, key=f"{key}/returned")
    return result


async def _made(tool: Tool, arguments: str, key: str) -> str:
    try:
        checked = tool.arguments.model_validate_json(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"Wrong arguments: {where}: {first['msg']}."
    given = {name: getattr(checked, name) for name in tool.arguments.model_fields}
    if tool.keyed:
        given[KEY] = key
    try:
        if inspect.iscoroutinefunction(tool.fn):
            value = await tool.fn(**given)
        else:
            value = await asyncio.to_thread(tool.fn, **given)
    except Exception as error:  # the model may do better knowing what went wrong
        return f"{tool.name} failed: {type(error).__name__}: {error}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
