"""Spans for OpenTelemetry, by its conventions for generative AI: one trace a run, a span a turn.

    from shoal.agents.spans import Spans
    result = await run(team, task, engine=engine, on_event=Spans())

Names and counts only: what was asked and answered never leaves the log. Needs the extra ``otel``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.agents.events import (
    OnEvent,
    RunEnded,
    RunStarted,
    TeamEvent,
    TurnEnded,
    TurnFailed,
    TurnStarted,
)
from shoal.core.errors import MissingExtra
from shoal.core.records import Step

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer


class Spans:
    """Turns a run's events into spans; hand it to ``run`` as ``on_event``.

    tracer  whose spans they are; the global provider's where left out
    then    told every event too, for whoever draws the run at the same time
    """

    def __init__(self, tracer: Tracer | None = None, then: OnEvent | None = None) -> None:
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise MissingExtra("Spans", "otel") from error
        self._trace = trace
        self._tracer = tracer or trace.get_tracer("shoal")
        self._then = then
        self._run: Span | None = None
        self._turns: dict[tuple[str, int], Span] = {}

    def __call__(self, event: TeamEvent) -> None:
        """Open, mark or close the span an event belongs to."""
        match event:
            case RunStarted():
                self._begin_run(event)
            case TurnStarted(member=member, superstep=superstep):
                if (member, superstep) not in self._turns:
                    self._turns[member, superstep] = self._begin_turn(member, superstep)
            case TurnFailed(member=member, superstep=superstep, error=error, action=action):
                span = self._turns.get((member, superstep))
                if span is not None:
                    span.add_event("failure", {"error.message": error, "shoal.action": action})
            case TurnEnded(step=step, recorded=False):
                self._end_turn(step)
            case RunEnded(result=result) if self._run is not None:
                self._run.set_attribute("shoal.outcome", result.outcome)
                self._run.set_attribute("shoal.why", result.why)
                if result.outcome == "failed":
                    self._run.set_status(self._trace.StatusCode.ERROR, result.why)
                for span in self._turns.values():
                    span.end()
                self._turns.clear()
                self._run.end()
            case _:
                pass
        if self._then is not None:
            self._then(event)

    def _begin_run(self, event: RunStarted) -> None:
        self._run = self._tracer.start_span(
            f"invoke_agent {event.team}",
            attributes={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.provider.name": "shoal",
                "gen_ai.agent.name": event.team,
                "gen_ai.conversation.id": event.run_id,
                "shoal.members": event.members,
                "shoal.recorded": event.recorded,
            },
        )

    def _begin_turn(self, member: str, superstep: int) -> Span:
        outer = member.rpartition("/")[0]
        parent = next(
            (span for (path, _), span in reversed(self._turns.items()) if path == outer), self._run
        )
        context = self._trace.set_span_in_context(parent) if parent is not None else None
        return self._tracer.start_span(
            f"invoke_agent {member.rpartition('/')[2]}",
            context=context,
            attributes={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.provider.name": "shoal",
                "gen_ai.agent.name": member,
                "shoal.superstep": superstep,
            },
        )

    def _end_turn(self, step: Step) -> None:
        span = self._turns.pop((step.member, step.superstep), None)
        if span is None:
            return
        usage = step.usage
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.decoded_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.shared_tokens,
                "gen_ai.response.finish_reasons": (step.finish,),
                "gen_ai.request.seed": step.seed,
                "shoal.how": step.how,
                "shoal.key": step.key,
            }
        )
        for call in step.tool_calls:
            span.add_event(
                f"execute_tool {call.name}",
                {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": call.name},
            )
        if step.finish == "error":
            span.set_status(self._trace.StatusCode.ERROR, str(step.data.get("error", "")))
        span.end()
