"""Stages of Toolshed that ask a language model: hypothetical questions, and reranking by choice.

Both cost model time and are left out unless they are called. A model chooses among candidates by
their likelihood, so what it returns exists; questions are data that is searched and never obeyed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shoal.core.protocols import Engine, Grammar, Request, Sampling
from shoal.core.records import Message, ToolSpec
from shoal.tools.retrieval import prompt
from shoal.tools.retrieval.toolset import ScoredTool
from shoal.tools.text import brief, humanised, quoted

_ASKING = (
    "Below is the documentation of a tool, in quotation marks. Write one short request of a user "
    "who needs this tool. Write the request only."
)
_QUESTION = Grammar("regex", r"[A-Za-z][A-Za-z0-9 ,'-]{8,120}[.?]")


def _described(spec: ToolSpec, characters: int) -> str:
    return f"{spec.name} {quoted(brief(spec.description, characters))}"


@dataclass(frozen=True, slots=True)
class Choice:
    """A tool and the natural log-probability, per token, with which a model names it."""

    tool: ScoredTool
    logprob: float


async def questions(
    engine: Engine, specs: Sequence[ToolSpec], *, seed: int = 0
) -> dict[str, list[str]]:
    """One hypothetical request for each tool (reverse HyDE), by the tools' names.

    A request that fails gives its tool none.
    """
    requests = [
        Request(
            (
                Message("system", _ASKING),
                Message("user", f"{spec.name} {quoted(brief(spec.description, 160))}"),
            ),
            Sampling(max_tokens=24, temperature=0.0, seed=seed),
            _QUESTION,
        )
        for spec in specs
    ]
    answers = await engine.generate(requests)
    return {
        spec.name: [answer.text.strip()] if answer.finish != "error" else []
        for spec, answer in zip(specs, answers, strict=True)
    }


async def rerank(
    engine: Engine, request: str, tools: Sequence[ScoredTool], specs: Sequence[ToolSpec]
) -> list[Choice]:
    """Tools in the order in which a model would name them for a request, best first.

    All candidates are scored under one prefix that lists them. Equal ones keep their order.
    """
    if not tools:
        return []
    names = [humanised(spec.name.split(".", 1)[-1]) for spec in specs]
    listed = "\n".join(
        f"{name}: {quoted(brief(spec.description, 80))}"
        for name, spec in zip(names, specs, strict=True)
    )
    asked = (
        Message("system", f"{prompt.HEADING}\n{listed}"),
        Message("user", f"{request}\nWhich tool does this? Answer with its name."),
    )
    scores = await engine.score(asked, names)
    choices = [
        Choice(tool, score.logprob / max(1, len(score.token_logprobs)))
        for tool, score in zip(tools, scores, strict=True)
    ]
    return sorted(choices, key=lambda choice: -choice.logprob)


def blended(tools: Sequence[ScoredTool], choices: Sequence[Choice]) -> list[ScoredTool]:
    """Tools by the sum of their places in two orders; the search's decides between equal sums."""
    place = {choice.tool.name: row for row, choice in enumerate(choices)}
    pairs = sorted(enumerate(tools), key=lambda pair: (pair[0] + place[pair[1].name], pair[0]))
    return [replace(tool, score=-float(row + place[tool.name])) for row, tool in pairs]
