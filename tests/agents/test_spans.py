"""One trace a run, a span a turn, with the names OpenTelemetry has for them."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from test_tools import add, in_turn, solo
from traces import members, numbered, protocol

from shoal.agents import Agent, Protocol, Team, run
from shoal.agents.spans import Spans
from shoal.core.log import EventLog
from shoal.engine.scripted import ScriptedEngine


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Spans(provider.get_tracer("test"))


async def test_turns_are_spans_inside_their_run_and_their_team(
    spans: Spans, exporter: InMemorySpanExporter
) -> None:
    panel = Team("panel", members("x", "y"), protocol(reduce="concat"))
    team = Team("house", (Agent("a"), panel), protocol("chain"), channels="chain")
    result = await run(team, "Secret?", engine=numbered(), on_event=spans)
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert set(found) == {f"invoke_agent {name}" for name in ("house", "a", "panel", "x", "y")}
    root = found["invoke_agent house"]
    parents = {
        name.removeprefix("invoke_agent "): span.parent.span_id
        for name, span in found.items()
        if span.parent is not None
    }
    inner = found["invoke_agent panel"].context.span_id
    assert parents == {
        "a": root.context.span_id, "panel": root.context.span_id, "x": inner, "y": inner,
    }  # fmt: skip
    assert len({span.context.trace_id for span in found.values()}) == 1
    said = dict(found["invoke_agent a"].attributes or {})
    step = result.episode.steps[0]
    assert said["gen_ai.operation.name"] == "invoke_agent"
    assert said["gen_ai.agent.name"] == "a"
    assert said["gen_ai.usage.input_tokens"] == step.usage.prompt_tokens
    assert said["gen_ai.usage.output_tokens"] == 1
    assert said["gen_ai.response.finish_reasons"] == ("stop",)
    about = dict(root.attributes or {})
    assert about["gen_ai.conversation.id"] == result.episode.id
    assert about["shoal.outcome"] == "done"
    assert "Secret" not in "".join(span.to_json() for span in found.values())


async def test_failures_and_tools_are_marked(spans: Spans, exporter: InMemorySpanExporter) -> None:
    engine = ScriptedEngine("ok", failures={0: "no power", 2: "again"})
    team = Team("t", members("a", "b"), Protocol(on_failure="retry"))
    await run(team, "?", engine=engine, on_event=spans)
    failed = {span.name: span for span in exporter.get_finished_spans()}["invoke_agent a"]
    assert [event.name for event in failed.events] == ["failure", "failure"]
    assert failed.status.status_code is StatusCode.ERROR
    exporter.clear()
    engine = in_turn("add", '{"a": 2}', "answer", "3")
    await run(solo(add), "?", engine=engine, on_event=spans)
    (turn,) = [s for s in exporter.get_finished_spans() if s.name == "invoke_agent a"]
    assert [event.name for event in turn.events] == ["execute_tool add"]


async def test_turns_read_from_the_log_are_no_spans(
    spans: Spans, exporter: InMemorySpanExporter
) -> None:
    with EventLog() as log:
        await run(Team("t", members("a")), "?", engine=numbered(), log=log)
        await run(Team("t", members("a")), "?", engine=numbered(), log=log, on_event=spans)
    assert [span.name for span in exporter.get_finished_spans()] == ["invoke_agent t"]
