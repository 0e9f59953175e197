"""Deciding with a small model: it chooses by likelihood, and invents nothing.

Which tool, and which value for which argument, are choices among what was found and what the task
names. A choice is scored with the task and without it, and the difference counts: a small model
prefers short and common names whatever is asked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.core.protocols import Engine, Grammar, Request, Sampling, Segment
from shoal.core.records import ToolSpec, Usage
from shoal.tools.text import brief

_VALUES = re.compile(
    r"\"([^\"]+)\"|'([^']+)'|(\b[\w.]*[\w]*[-_/:.@0-9][\w./:@-]*[\w]\b|/[\w/.-]+|\b\d+\b)"
)
MOST_VALUES = 12
ARGUMENT_TOKENS = 96


class Chooser:
    """Chooses with one engine; ``usage`` is what that took."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.usage = Usage()
        self.scored = 0

    async def choice(
        self, context: str, question: str, options: Sequence[str], *, ranked: bool = False
    ) -> str:
        """The option that the context makes likeliest, against the question alone.

        With ``ranked`` options come in an order that counts: the n-th is held n times less likely
        beforehand than the first.
        """
        if len(options) < 2:
            return options[0]
        with_it = await self._scores(f"{context}\n{question}", options)
        alone = await self._scores(question, options)
        before = {o: -math.log(at) if ranked else 0.0 for at, o in enumerate(options, 1)}
        return max(options, key=lambda o: before[o] + with_it[o] - alone[o])

    async def _scores(self, prefix: str, options: Sequence[str]) -> dict[str, float]:
        prompt = (Segment(prefix),)
        scores = await self.engine.score(prompt, [f" {option}" for option in options])
        self.scored += self.engine.count_tokens(prompt)
        return {option: score.logprob for option, score in zip(options, scores, strict=True)}

    async def tool(self, task: str, specs: Sequence[ToolSpec]) -> ToolSpec:
        """One of the tools that were found; they are in order of the search.

        Where some need no more than the task names, the others are left out.
        """
        values = len(values_in(task))
        specs = [spec for spec in specs if len(_required(spec)) <= values] or list(specs)
        listed = "\n".join(f"{spec.name}: {brief(spec.description, 120)}" for spec in specs)
        named = {spec.name: spec for spec in specs}
        question = f"Tools:\n{listed}\nThe right tool is"
        context = f"Task: {brief(task, 600)}"
        return named[await self.choice(context, question, list(named), ranked=True)]

    async def arguments(self, task: str, spec: ToolSpec) -> dict[str, Any]:
        """Arguments of a call: those that are required, and those that the task names."""
        properties: Mapping[str, Any] = spec.parameters.get("properties", {})
        required = _required(spec)
        values = values_in(task)
        chosen: dict[str, Any] = {}
        for name, schema in properties.items():
            if name not in required and name.lower() not in task.lower():
                continue
            left = [value for value in values if value not in chosen.values()] or values
            chosen[name] = await self._value(task, spec, name, schema, left)
        return chosen

    async def _value(
        self, task: str, spec: ToolSpec, name: str, schema: Mapping[str, Any], values: list[str]
    ) -> Any:
        kind = schema.get("type", "string")
        about = brief(str(schema.get("description", "")), 120)
        question = f"{spec.name} has an argument {name} ({about}). Its value here is"
        context = f"Task: {brief(task, 600)}"
        if options := [str(one) for one in schema.get("enum", ())][:MOST_VALUES]:
            return await self.choice(context, question, options)
        if kind in ("integer", "number"):
            numbers = [value for value in values if re.fullmatch(r"\d+(\.\d+)?", value)]
            if numbers:
                number = float(await self.choice(context, question, numbers))
                return int(number) if kind == "integer" else number
        if kind == "boolean":
            return await self.choice(context, question, ["true", "false"]) == "true"
        if kind == "string" and values:
            return await self.choice(context, question, values)
        return await self._written(f"{context}\n{question}", schema)

    async def _written(self, prompt: str, schema: Mapping[str, Any]) -> Any:
        """A value in the form of its schema, written by the model; {} where it has no end."""
        grammar = Grammar("json_schema", json.dumps(dict(schema)))
        request = Request(
            (Segment(f"{prompt} (as JSON): "),), Sampling(max_tokens=ARGUMENT_TOKENS), grammar
        )
        (completion,) = await self.engine.generate([request])
        self.usage += completion.usage
        try:
            return json.loads(completion.text)
        except ValueError:
            return [] if schema.get("type") == "array" else {}


def _required(spec: ToolSpec) -> Sequence[str]:
    found: Sequence[str] = spec.parameters.get("required", ())
    return found


def values_in(task: str) -> list[str]:
    """What a task names: quoted texts, identifiers, paths, addresses and numbers, in order."""
    found = [next(filter(None, match)) for match in _VALUES.findall(task)]
    return list(dict.fromkeys(found))[:MOST_VALUES]
