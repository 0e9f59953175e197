"""A small model solves primitive tasks: tools shown, tools found, and pages with HTTP."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from companybench import company
from shoal.core.claims import Bench as Claim
from shoal.core.errors import EngineError
from shoal.core.protocols import Grammar, Request, Sampling, Segment
from shoal.core.records import ToolSpec
from shoal.core.stats import mean_interval, wilson_interval
from shoal.engine.local import LocalEngine
from shoal.envs.company import web
from shoal.envs.company.deciding import Chooser
from shoal.envs.company.solving import Bench, Bill, K, Solved
from shoal.envs.company.tasks import Task
from shoal.tools.gateway import Access
from shoal.tools.text import brief

TASKS = 8
REQUEST = json.dumps(
    {
        "type": "object",
        "properties": {
            "method": {"enum": ["GET", "POST", "PUT", "DELETE"]},
            "path": {"type": "string", "maxLength": 80},
            "body": {"type": "string", "maxLength": 200},
        },
        "required": ["method", "path", "body"],
        "additionalProperties": False,
    }
)


async def solving(claim: Claim) -> None:
    engine = LocalEngine.open()
    try:
        with company.opened(claim) as place:
            primitive = [task for task in place.tasks if task.kind == "primitive"]
            order = claim.generator("model tasks").permutation(len(primitive))[:TASKS]
            tasks = [primitive[at] for at in sorted(order)]
            bench = Bench(place.account, place.gateway)
            pages = web.Pages(place.tools)

            def specs_of(task: Task, found: bool) -> list[ToolSpec]:
                session = place.gateway.session()
                if found:
                    return session.find(task.text, K)
                return [session.describe(task.steps[0].tool)]

            async def tools(task: Task, bill: Bill, *, found: bool) -> str:
                return await _with_tools(bench, engine, task, bill, specs_of(task, found))

            async def http(task: Task, bill: Bill) -> str:
                return await _with_pages(bench, engine, task, bill, pages)

            arms: dict[str, Callable[[Task, Bill], Awaitable[str]]] = {
                "oracle tools": lambda task, bill: tools(task, bill, found=False),
                "gateway": lambda task, bill: tools(task, bill, found=True),
                "HTTP and pages": http,
            }
            solved: dict[str, list[Solved]] = {name: [] for name in arms}
            for task in claim.track(tasks, "tasks of the model"):
                for name, act in arms.items():
                    solved[name].append(await bench.by(task, act))
    finally:
        await engine.close()
    for name, all_of in solved.items():
        read = np.array([float(one.bill.tokens_in) for one in all_of])
        claim.arm(
            f"SmolLM2-135M: {name}",
            **{
                "primitive done": wilson_interval(sum(one.done for one in all_of), len(all_of)),
                "wrong calls a task": float(np.mean([one.bill.wrong for one in all_of])),
                "tokens read a task": mean_interval(read, seed=claim.seed),
                "tokens written a task": float(np.mean([one.bill.tokens_out for one in all_of])),
                "values changed beside": float(sum(one.damage for one in all_of)),
            },
        )


def asked(task: Task) -> str:
    """The task with the values that it needs, without the names of arguments."""
    values: list[str] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            for part in value.values():
                collect(part)
        elif isinstance(value, list):
            for part in value:
                collect(part)
        else:
            values.append(str(value))

    for step in task.steps:
        collect(step.arguments)
    return f"{task.text} Values: " + ", ".join(f'"{value}"' for value in dict.fromkeys(values))


async def _with_tools(
    bench: Bench, engine: LocalEngine, task: Task, bill: Bill, specs: list[ToolSpec]
) -> str:
    chooser = Chooser(engine)
    text = asked(task)
    bill.finds += 1
    try:
        spec = await chooser.tool(text, specs) if len(specs) > 1 else specs[0]
        arguments = await chooser.arguments(text, spec)
    except EngineError as error:  # a schema that no grammar can hold, or that does not fit
        return str(error)
    bill.tokens_in += chooser.scored + chooser.usage.prompt_tokens
    bill.tokens_out += chooser.usage.decoded_tokens
    bill.calls += 1
    approve = Access(approve=lambda spec, given: True, any_name=True)
    reply = await bench.gateway.session(approve).call(spec.name, arguments)
    if reply.fault is not None:
        bill.wrong += 1
        return f"{reply.fault.kind}: {reply.fault.message}"
    return ""


async def _with_pages(
    bench: Bench, engine: LocalEngine, task: Task, bill: Bill, pages: web.Pages
) -> str:
    """The right page is opened for the model, which writes the request; headers are ours."""
    _, service, operation = task.steps[0].tool.split(".")
    page = brief(pages.operation(task.steps[0].tool), 1500)
    prompt = (
        f"{page}\n\nTask: {asked(task)}\nThe HTTP request for the operation {operation} of "
        f"{service}, as JSON: "
    )
    request = Request((Segment(prompt),), Sampling(max_tokens=160), Grammar("json_schema", REQUEST))
    try:
        (completion,) = await engine.generate([request])
    except EngineError as error:
        return str(error)
    bill.tokens_in += completion.usage.prompt_tokens
    bill.tokens_out += completion.usage.decoded_tokens
    bill.finds, bill.calls = 1, 1
    try:
        written = json.loads(completion.text)
        right = web.request_of(bench.account, service, operation, task.steps[0].arguments)
        status, answer = web.sent(
            bench.account,
            {
                "method": written["method"],
                "url": f"{bench.account.url}/{written['path'].lstrip('/')}",
                "headers": {**right["headers"]},
                "body": written["body"],
            },
        )
    except Exception as error:  # nonsense of whatever kind is a wrong call
        bill.wrong += 1
        return str(error)
    if status >= 400:
        bill.wrong += 1
    return f"{status}: {answer[:100]}"
