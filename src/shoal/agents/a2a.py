"""A2A (protocol 1.0): a team served as an agent, and agents elsewhere as members.

A task is a run, and its artifact the run's result; the members' turns are told as updates of its
status. What a run cannot do (no result, a failed engine) ends its task as failed, with the reason.
A member who is a person is the one who asked: the task waits for input, with the question, and the
next message in it is the answer. The run then goes on from its log. Needs the extra ``a2a``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shoal.agents.events import TeamEvent, TurnEnded
from shoal.agents.outside import Question
from shoal.agents.scheduler import run
from shoal.agents.team import Agent, Member, Team
from shoal.agents.votes import chosen
from shoal.core.errors import MissingExtra, RemoteError, ShoalError
from shoal.core.ids import new_id
from shoal.core.log import EventLog
from shoal.core.protocols import Engine
from shoal.core.records import Message

if TYPE_CHECKING:
    from a2a.types import AgentCard
    from starlette.applications import Starlette

RPC_PATH = "/a2a"


def team_card(team: Team, url: str) -> AgentCard:
    """What the team says of itself: its line as description, a skill for each member."""
    _need()
    from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill

    import shoal

    about = team.about or team.objective or team.task or f"The team {team.name}."
    return AgentCard(
        name=team.name,
        description=about,
        version=shoal.__version__,
        supported_interfaces=[
            AgentInterface(
                url=f"{url.rstrip('/')}{RPC_PATH}", protocol_binding="JSONRPC",
                protocol_version="1.0",
            )
        ],
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[
            AgentSkill(
                id=member.name, name=member.name, description=_about(member), tags=["member"]
            )
            for member in team.members
        ],
    )  # fmt: skip


def _about(member: Member) -> str:
    if isinstance(member, Agent):
        return member.role or member.objective or f"The member {member.name}."
    return member.about or member.objective or f"The team {member.name}."


def a2a_app(team: Team, engine: Engine | Mapping[str, Engine], url: str) -> Starlette:
    """An application that serves the team as an A2A agent; ``url`` is where it will be found."""
    _need()
    from a2a.server.agent_execution import AgentExecutor, RequestContext
    from a2a.server.events import EventQueue
    from a2a.server.request_handlers import DefaultRequestHandler
    from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
    from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
    from starlette.applications import Starlette

    class TeamExecutor(AgentExecutor):
        """Runs the team once for each task."""

        def __init__(self) -> None:
            self._visits: dict[str, _Visit] = {}

        async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
            """One message of a task: it is submitted, at work, then waits, completes or fails."""
            from a2a.helpers import new_task_from_user_message

            assert context.message is not None, "the handler refuses requests without a message"
            task = context.current_task or new_task_from_user_message(context.message)
            if context.current_task is None:
                await event_queue.enqueue_event(task)
            updater = TaskUpdater(event_queue, task.id, task.context_id)
            text = context.get_user_input().strip()
            visit = self._visits.setdefault(task.id, _Visit(text))
            if visit.pending is not None and not visit.answer(text):
                await updater.requires_input(_said(updater, _asked(visit.pending)))
                return
            await updater.start_work()
            try:
                result = await run(
                    team, visit.task, engine=engine, log=visit.log, on_event=visit.hear,
                    ask=visit.ask,
                )  # fmt: skip
            except _InputRequired as wanted:
                visit.pending = wanted.question
                await updater.requires_input(_said(updater, _asked(wanted.question)))
                return
            except ShoalError as error:
                self._leave(task.id)
                await updater.failed(_said(updater, str(error)))
                return
            self._leave(task.id)
            if result.result is None:
                await updater.failed(_said(updater, f"{result.outcome}: {result.why}"))
                return
            metadata = {
                "run": result.episode.id,
                "outcome": result.outcome,
                "why": result.why,
                "tokens": result.episode.usage.asked_tokens,
                "turns": visit.turns,
            }
            await updater.add_artifact([_text(result.result)], name="result", metadata=metadata)
            await updater.complete()

        async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
            """The handler has cancelled the run; the task ends so."""
            assert context.task_id is not None
            assert context.context_id is not None
            self._leave(context.task_id)
            await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()

        def _leave(self, task_id: str) -> None:
            visit = self._visits.pop(task_id, None)
            if visit is not None:
                visit.log.close()

    card = team_card(team, url)
    handler = DefaultRequestHandler(TeamExecutor(), InMemoryTaskStore(), card)
    routes = [*create_agent_card_routes(card), *create_jsonrpc_routes(handler, RPC_PATH)]
    return Starlette(routes=routes)


class _InputRequired(Exception):
    """A person must answer before the run can go on."""

    def __init__(self, question: Question) -> None:
        super().__init__(question.member)
        self.question = question


@dataclass(slots=True)
class _Visit:
    """One task at work or waiting: its log, and what the person has answered since the last turn.

    A superstep that waits is not logged, so it is taken again as a whole with the answer there.
    """

    task: str
    log: EventLog = field(default_factory=EventLog)
    turns: list[str] = field(default_factory=list)
    pending: Question | None = None
    answers: dict[Question, str] = field(default_factory=dict)

    async def ask(self, question: Question) -> str:
        """The answer that is there, or else a question to the one who asked."""
        if question not in self.answers:
            raise _InputRequired(question)
        return self.answers[question]

    def answer(self, text: str) -> bool:
        """Keep an answer to the pending question; false where it is none of the choices."""
        assert self.pending is not None
        choices = self.pending.choices
        found = chosen(text, choices) if choices else text
        if not found:
            return False
        self.answers[self.pending] = found
        self.pending = None
        return True

    def hear(self, event: TeamEvent) -> None:
        """Keep what a member has said, and forget the answer it was made of."""
        if isinstance(event, TurnEnded) and not event.recorded:
            step = event.step
            self.answers = {q: a for q, a in self.answers.items() if q.member != step.member}
            if step.output.strip():
                self.turns.append(f"{step.member}: {step.output.strip()}")


def _asked(question: Question) -> str:
    """What the one who asked is asked back: the words that member would have read."""
    return question.prompt[-1].content


async def ask_agent(url: str, messages: tuple[Message, ...], *, seconds: float = 120.0) -> str:
    """What an A2A agent answers to a prompt.

    Whatever it streams first (a message, a task, an update) is taken; text counts from its
    artifacts, else from its last message. Raises :class:`RemoteError` where it is away, fails, says
    nothing, or asks back.
    """
    _need()
    import httpx
    from a2a.client import ClientConfig, create_client
    from a2a.types import SendMessageRequest
    from a2a.utils.errors import A2AError

    text = "\n\n".join(message.content for message in messages)
    message = _user_message(text)
    heard = _Heard()
    try:
        async with httpx.AsyncClient(timeout=seconds) as http:
            client = await create_client(url, ClientConfig(httpx_client=http))
            async for event in client.send_message(SendMessageRequest(message=message)):
                heard.take(event)
            await client.close()
    except (A2AError, httpx.HTTPError, OSError) as error:
        raise RemoteError(f"The agent at {url} cannot be asked: {error}.") from error
    if heard.asks_back:
        raise RemoteError(f"The agent at {url} asks back, which no member can answer: {heard.last}")
    if heard.failed:
        raise RemoteError(f"The agent at {url} failed: {heard.last or 'it gave no reason'}.")
    answer = "".join(heard.artifacts.values()) or heard.last
    if not answer.strip():
        raise RemoteError(f"The agent at {url} ended without an answer.")
    return answer


class _Heard:
    """What an agent's stream has said so far."""

    def __init__(self) -> None:
        self.artifacts: dict[str, str] = {}
        self.last = ""
        self.failed = False
        self.asks_back = False

    def take(self, event: Any) -> None:
        """One response of the stream, of whatever kind."""
        kind = event.WhichOneof("payload")
        if kind == "message":
            self.last = _texts(event.message.parts)
        elif kind == "task":
            for artifact in event.task.artifacts:
                self.artifacts[artifact.artifact_id] = _texts(artifact.parts)
            self._status(event.task.status)
        elif kind == "status_update":
            self._status(event.status_update.status)
        elif kind == "artifact_update":
            update = event.artifact_update
            before = self.artifacts.get(update.artifact.artifact_id, "") if update.append else ""
            self.artifacts[update.artifact.artifact_id] = before + _texts(update.artifact.parts)

    def _status(self, status: Any) -> None:
        from a2a.types import TaskState

        if status.HasField("message"):
            self.last = _texts(status.message.parts)
        self.failed = status.state in (
            TaskState.TASK_STATE_FAILED,
            TaskState.TASK_STATE_REJECTED,
            TaskState.TASK_STATE_CANCELED,
        )
        self.asks_back = status.state in (
            TaskState.TASK_STATE_INPUT_REQUIRED,
            TaskState.TASK_STATE_AUTH_REQUIRED,
        )


def _texts(parts: Any) -> str:
    from a2a.helpers import get_text_parts

    return "".join(get_text_parts(parts))


def _text(text: str) -> Any:
    from a2a.helpers import new_text_part

    return new_text_part(text)


def _said(updater: Any, text: str) -> Any:
    return updater.new_agent_message([_text(text)])


def _user_message(text: str) -> Any:
    from a2a.types import Message as A2AMessage
    from a2a.types import Role

    return A2AMessage(message_id=new_id(), role=Role.ROLE_USER, parts=[_text(text)])


def _need() -> None:
    try:
        import a2a.client  # noqa: F401
        import sse_starlette  # noqa: F401  (the server side needs it)
    except ImportError as error:
        raise MissingExtra("Serving or asking A2A agents", "a2a") from error
