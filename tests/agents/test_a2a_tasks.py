"""A2A tasks with the official client: cancelled while at work, and asking back for a person."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("a2a", reason="the extra 'a2a' is not installed")

from a2a.client import create_client
from a2a.helpers import new_text_message
from a2a.types import CancelTaskRequest, GetTaskRequest, Role, SendMessageRequest, TaskState
from test_interop import a2a, serving
from traces import numbered

from shoal.agents import Agent, Human, Protocol, Remote, Script, Team, run
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine

REVIEW = Team(
    "review",
    (Agent("writer"), Agent("host", model=Human())),
    Protocol("round_robin", "last", "rounds(2)"),
    channels="mesh",
)


async def send(client: Any, text: str, task: str | None = None, context: str | None = None) -> Any:
    """The task as it stands after one message."""
    message = new_text_message(text, role=Role.ROLE_USER, task_id=task, context_id=context)
    found = task
    async for event in client.send_message(SendMessageRequest(message=message)):
        kind = event.WhichOneof("payload")
        found = event.task.id if kind == "task" else getattr(event, kind).task_id
    return await client.get_task(GetTaskRequest(id=str(found)))


def question(task: Any) -> str:
    """What the agent says in its status."""
    return str(task.status.message.parts[0].text)


async def test_a_person_in_the_team_is_the_one_who_asked() -> None:
    engine = numbered()
    with serving(a2a(REVIEW, engine)) as url:
        client = await create_client(url)
        task = await send(client, "Invite them to tea.")
        assert task.status.state == TaskState.TASK_STATE_INPUT_REQUIRED
        assert "Task: Invite them to tea.\n\nwriter said: writer1" in question(task)
        task = await send(client, "Shorter!", task.id, task.context_id)
        assert task.status.state == TaskState.TASK_STATE_INPUT_REQUIRED
        assert "host said: Shorter!\n\nwriter said: writer2" in question(task)
        task = await send(client, "Fine.", task.id, task.context_id)
        await client.close()
    assert task.status.state == TaskState.TASK_STATE_COMPLETED
    assert task.artifacts[0].parts[0].text == "Fine."
    metadata = dict(task.artifacts[0].metadata)
    assert list(metadata["turns"]) == [
        "writer: writer1", "host: Shorter!", "writer: writer2", "host: Fine.",
    ]  # fmt: skip
    assert len(engine.groups) == 2, "what is in the log is not asked again"


async def test_an_answer_that_is_no_choice_is_asked_for_again() -> None:
    vote = Protocol("all", "vote(choices=[yes, no])")
    team = Team("poll", (Agent("me", model=Human()),), vote)
    with serving(a2a(team, numbered())) as url:
        client = await create_client(url)
        task = await send(client, "Shall we?")
        task = await send(client, "I am for it.", task.id, task.context_id)
        assert question(task).endswith("Answer with one of these words only: yes, no.")
        task = await send(client, "perhaps", task.id, task.context_id)
        assert task.status.state == TaskState.TASK_STATE_INPUT_REQUIRED
        task = await send(client, "Yes.", task.id, task.context_id)
        await client.close()
    assert task.status.state == TaskState.TASK_STATE_COMPLETED
    assert task.artifacts[0].parts[0].text == "yes"


async def test_two_people_of_one_superstep_are_asked_one_after_the_other() -> None:
    people = (Agent("a", model=Human()), Agent("b", model=Human()))
    team = Team("pair", people, Protocol("all", "concat"), channels="none")
    with serving(a2a(team, numbered())) as url:
        client = await create_client(url)
        task = await send(client, "Who?")
        assert "You are a." in question(task)
        task = await send(client, "Ann", task.id, task.context_id)
        assert "You are b." in question(task)
        task = await send(client, "Bob", task.id, task.context_id)
        await client.close()
    assert task.artifacts[0].parts[0].text == "a: Ann\n\nb: Bob"


async def test_a_task_that_is_cancelled_stops_its_run() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slow(messages: tuple[Message, ...], seed: int) -> str:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return "late"

    team = Team("sleeper", (Agent("s", model=Script(slow)),))
    with serving(a2a(team, numbered())) as url:
        client = await create_client(url)
        message = new_text_message("Sleep.", role=Role.ROLE_USER)
        stream = client.send_message(SendMessageRequest(message=message))
        first = await anext(stream)
        while not begun.is_set():
            await asyncio.sleep(0.01)
        cancelled = await client.cancel_task(CancelTaskRequest(id=first.task.id))
        assert cancelled.status.state == TaskState.TASK_STATE_CANCELED
        while not ended.is_set():
            await asyncio.sleep(0.01)
        states = [e.status_update.status.state async for e in stream if e.HasField("status_update")]
        assert states[-1] == TaskState.TASK_STATE_CANCELED
        await client.close()


async def test_a_task_that_waits_for_input_can_be_cancelled() -> None:
    with serving(a2a(REVIEW, numbered())) as url:
        client = await create_client(url)
        task = await send(client, "Invite them.")
        task = await client.cancel_task(CancelTaskRequest(id=task.id))
        await client.close()
    assert task.status.state == TaskState.TASK_STATE_CANCELED


async def test_a_remote_member_that_asks_back_fails_its_turn_with_the_question() -> None:
    with serving(a2a(REVIEW, numbered())) as url:
        team = Team("t", (Agent("far", model=Remote(url)), Agent("near")), Protocol())
        result = await run(team, "Tea?", engine=ScriptedEngine("ok"))
    assert result.outcome == "degraded"
    error = result.episode.steps[0].data["error"]
    assert error.startswith(f"The agent at {url} asks back, which no member can answer: ")
    assert "You are host." in error
