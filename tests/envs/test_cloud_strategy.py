"""A team in the company: by choosing, as a small model does, and by calling tools freely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from shoal.agents import load_team, run
from shoal.core.errors import ConfigError
from shoal.core.protocols import Completion, EngineInfo, OnDelta, Prompt, Request, Score
from shoal.core.records import ToolCall, Usage
from shoal.engine.scripted import ScriptedEngine
from shoal.envs.company import office
from shoal.envs.company.office import open_office
from shoal.tools import sources
from shoal.tools.gateway import Shelf
from shoal.tools.importers.botocore import from_botocore
from shoal.tools.retrieval.index import ToolIndex

pytest.importorskip("moto")

SERVICES = ("sqs", "sns", "s3", "iam", "dynamodb", "lambda", "logs", "events", "ssm", "kms")
"""As the example has them."""

TEAM = Path(__file__).parents[2] / "examples" / "cloud-team.toml"


@pytest.fixture(scope="module", autouse=True)
def place() -> Iterator[None]:
    shelf = Shelf(from_botocore(sources.botocore_data(), services=("sqs", "sns", "iam")))
    index = ToolIndex()
    index.add(shelf)
    made = open_office(shelf, lambda query, k: [one.name for one in index.search(query, k)])
    office._open[SERVICES] = made
    yield
    office.close()


@dataclass(slots=True)
class Chooses(ScriptedEngine):
    """Scores an option by how often its words stand in what it is asked."""

    async def score(self, prefix: Prompt, candidates: Sequence[str], salt: str = "") -> list[Score]:
        said = " ".join(part.text for part in prefix if hasattr(part, "text")).lower()
        return [
            Score(text, 10.0 * said.split("\n")[0].count(text.strip().lower()), ())
            for text in candidates
        ]


@dataclass(slots=True)
class Calls(ScriptedEngine):
    """A remote model that finds, calls and answers, in this order."""

    wishes: list[tuple[ToolCall, ...]] = field(default_factory=list)
    seen: list[Request] = field(default_factory=list)

    @property
    def info(self) -> EngineInfo:
        return replace(EngineInfo("scripted", "remote"), knows_tools=True)

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        self.seen += requests
        calls = self.wishes.pop(0) if self.wishes else ()
        text = "" if calls else "I made the queue."
        return [Completion(text, usage=Usage(10, 0, 5), tool_calls=calls)]


async def test_a_model_that_only_chooses_makes_a_queue() -> None:
    result = await run(load_team(str(TEAM)), "Create a queue named audit-jobs.", engine=Chooses())
    assert result.result is not None
    assert 'aws.sqs.CreateQueue with {"QueueName": "audit-jobs"}' in result.result
    assert "added audit-jobs" in result.result
    (step,) = result.episode.steps
    assert [call.name for call in step.tool_calls] == ["aws.sqs.CreateQueue"]
    assert any("queues.audit-jobs" in path for path in step.data["changed"]["added"])


async def test_a_model_that_calls_tools_makes_one_too() -> None:
    engine = Calls(
        wishes=[
            (ToolCall("1", "find_tools", '{"query": "create a new queue"}'),),
            (
                ToolCall("2", "no_such_tool", "{}"),
                ToolCall("3", "call_tool", "not json"),
                ToolCall(
                    "4",
                    "call_tool",
                    '{"name": "aws.sqs.CreateQueue", "arguments": {"QueueName": "free-jobs"}}',
                ),
            ),
        ]
    )
    result = await run(load_team(str(TEAM)), "Create a queue named free-jobs.", engine=engine)
    assert result.result is not None
    assert result.result.startswith("I made the queue.")
    assert "added free-jobs" in result.result
    assert engine.seen[0].tools[0].name == "find_tools"
    answers = {m.tool_call_id: m.content for m in engine.seen[-1].prompt if m.role == "tool"}
    assert "aws.sqs.CreateQueue (" in answers["1"]
    assert answers["2"].startswith("There is no tool 'no_such_tool'")
    assert "no JSON" in answers["3"]
    assert "QueueUrl" in answers["4"]


def test_a_service_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="no service 'sqz'"):
        office.catalogue(("sqs", "sqz"))


async def test_what_destroys_is_refused_and_the_report_says_that_nothing_changed() -> None:
    wish = ToolCall(
        "1",
        "call_tool",
        '{"name": "aws.iam.DeleteRole", "arguments": {"RoleName": "media-worker"}}',
    )
    describe = ToolCall("0", "describe_tool", '{"name": "aws.iam.DeleteRole"}')
    engine = Calls(wishes=[(describe, wish)])
    result = await run(load_team(str(TEAM)), "Delete the role media-worker.", engine=engine)
    assert result.result is not None
    assert result.result.endswith("Nothing has changed in the cloud.")
    answers = [m.content for m in engine.seen[-1].prompt if m.role == "tool"]
    assert '"fault": "not_approved"' in answers[1]
