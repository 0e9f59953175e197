"""Row 28 and the world outside: A2A, MCP and OpenAI clients, each the official one."""

from __future__ import annotations

import asyncio
import builtins
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from test_rows import python_rows
from traces import members, numbered, protocol, trace

from shoal.agents import Agent, Human, Protocol, Question, Remote, Script, Team, run
from shoal.agents.team_engine import TeamEngine
from shoal.core.errors import MissingExtra
from shoal.core.protocols import Grammar, Request, Sampling, Segment
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine

PAIR = Team("pair", members("x", "y"), Protocol("chain", "last"), channels="chain", about="Two.")


@contextmanager
def serving(make: Any) -> Iterator[str]:
    """The URL of an application that ``make(url)`` builds, on a free port of this machine."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(make(url), log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.02)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


def a2a(team: Team, engine: ScriptedEngine) -> Any:
    from shoal.agents.a2a import a2a_app

    return lambda url: a2a_app(team, engine, url)


async def test_a_remote_agent_takes_its_turn_like_any_other() -> None:
    with serving(a2a(PAIR, numbered())) as url:
        result = await run(python_rows().remote(url), "Go.", engine=numbered())
    assert trace(result) == [
        (0, "asker", "", "asker1"),
        (1, "far", "asker1", "y1"),
        (2, "closer", "y1", "closer1"),
    ]
    assert (result.result, result.why, result.outcome) == ("closer1", "1 round", "done")


async def test_the_official_client_talks_to_a_team() -> None:
    from a2a.client import create_client
    from a2a.helpers import new_text_message
    from a2a.types import Role, SendMessageRequest, TaskState

    with serving(a2a(PAIR, numbered())) as url:
        client = await create_client(url)
        message = new_text_message("Go.", role=Role.ROLE_USER)
        events = [e async for e in client.send_message(SendMessageRequest(message=message))]
        await client.close()
    kinds = [event.WhichOneof("payload") for event in events]
    assert kinds[0] == "task"
    artifact = next(e.artifact_update.artifact for e in events if e.HasField("artifact_update"))
    assert artifact.parts[0].text == "y1"
    assert dict(artifact.metadata)["outcome"] == "done"
    assert list(dict(artifact.metadata)["turns"]) == ["x: x1", "y: y1"]
    last = [e.status_update.status.state for e in events if e.HasField("status_update")][-1]
    assert last == TaskState.TASK_STATE_COMPLETED


async def test_the_agents_card_names_its_members() -> None:
    import httpx
    from a2a.client import A2ACardResolver

    with serving(a2a(PAIR, numbered())) as url:
        async with httpx.AsyncClient() as http:
            card = await A2ACardResolver(http, url).get_agent_card()
    assert (card.name, card.description) == ("pair", "Two.")
    assert [skill.name for skill in card.skills] == ["x", "y"]
    assert card.supported_interfaces[0].protocol_version == "1.0"


async def test_a_run_without_a_result_fails_its_task_with_the_reason() -> None:
    failing = ScriptedEngine(failures=dict.fromkeys(range(9), "no power"))
    with serving(a2a(PAIR, failing)) as url:
        far = Agent("far", model=Remote(url))
        result = await run(Team("t", (far,), Protocol(on_failure="skip")), "?", engine=numbered())
    assert result.outcome == "failed"
    assert f"The agent at {url} failed: failed: nobody answered in round 1" in result.why


async def test_an_agent_that_is_away_or_slow_is_an_error_of_its_turn_alone() -> None:
    async def slow(messages: tuple[Message, ...], seed: int) -> str:
        await asyncio.sleep(5)
        return "late"

    sleeper = Team("sleeper", (Agent("s", model=Script(slow)),), Protocol())
    with serving(a2a(sleeper, numbered())) as url:
        team = Team(
            "t",
            (
                Agent("away", model=Remote("http://127.0.0.1:9")),
                Agent("here"),
                Agent("slow", model=Remote(url, seconds=0.5)),
            ),
            Protocol(on_failure="skip"),
        )
        result = await run(team, "?", engine=numbered())
    errors = {step.member: step.data.get("error", "") for step in result.episode.steps}
    assert "cannot be asked" in errors["away"]
    assert errors["here"] == ""
    assert "did not answer within 0.5 s" in errors["slow"]
    assert (result.result, result.outcome) == ("here1", "degraded")


async def test_the_official_client_calls_a_team_as_an_mcp_tool() -> None:
    from mcp import Client

    from shoal.agents.mcp import team_server

    async with Client(team_server(PAIR, numbered())) as client:
        (listed,) = (await client.list_tools()).tools
        assert (listed.name, listed.description) == ("pair", "Two.")
        assert set(listed.input_schema["properties"]) == {"task", "material"}
        done = await client.call_tool("pair", {"task": "Go."})
        assert not done.is_error
        assert done.content[0].text == "y1"  # type: ignore[union-attr]


async def test_a_tool_call_that_finds_no_result_is_an_error_that_says_why() -> None:
    from mcp import Client

    from shoal.agents.mcp import team_server

    failing = ScriptedEngine(failures=dict.fromkeys(range(9), "no power"))
    async with Client(team_server(PAIR, failing)) as client:
        done = await client.call_tool("pair", {"task": "Go."})
    assert done.is_error
    assert "no power" in done.content[0].text  # type: ignore[union-attr]


async def test_the_official_client_asks_a_team_as_a_model() -> None:
    import openai

    from shoal.server.app import create_app

    engine = TeamEngine(PAIR, numbered())

    def app(url: str) -> Any:
        return create_app(engine, model_name=engine.info.model)

    with serving(app) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            done = await client.chat.completions.create(
                model="team:pair", messages=[{"role": "user", "content": "Go."}]
            )
            remote = Agent("far", model=Remote(f"{url}/v1", "openai"))
            result = await run(Team("t", (remote,), Protocol()), "Again.", engine=numbered())
    assert done.choices[0].message.content == "y1"
    assert done.usage is not None
    assert done.usage.completion_tokens == 2
    assert result.result == "y2"


async def test_a_team_as_engine_takes_the_last_message_as_task_and_the_rest_as_material() -> None:
    inner = ScriptedEngine("word " * 9)
    engine = TeamEngine(Team("t", members("a"), Protocol()), inner)
    prompt = (Message("system", "Rules."), Message("user", "Old?"), Message("user", "New?"))
    (done,) = await engine.generate([Request(prompt, Sampling(max_tokens=4))])
    assert (done.text, done.finish) == ("word word word word", "length")
    ((request,),) = inner.groups
    assert "system: Rules.\n\nuser: Old?" in request.prompt[0].content  # type: ignore[union-attr]
    assert "Task: New?" in request.prompt[1].content  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Request((Segment("x"),), grammar=Grammar("choice", ("a",))), "cannot be held to a gram"),
        (Request((Segment("x"),), Sampling(logprobs=1)), "cannot tell log-probabilities"),
        (Request((Message("system", "x"),)), "needs a task"),
    ],
)
async def test_what_a_team_cannot_do_fails_alone(request_: Request, sentence: str) -> None:
    engine = TeamEngine(PAIR, numbered())
    good = Request((Message("user", "Go."),))
    bad, fine = await engine.generate([request_, good])
    assert sentence in str(bad.error)
    assert fine.text == "y1"


async def test_a_person_is_asked_with_prompt_and_choices() -> None:
    asked: list[Question] = []

    async def person(question: Question) -> str:
        asked.append(question)
        return "yes" if question.choices else "I think so."

    team = Team("t", (Agent("a"), Agent("me", model=Human())), protocol(reduce="vote(choices=yes)"))
    result = await run(team, "Ok?", engine=ScriptedEngine("yes"), ask=person)
    assert [question.choices for question in asked] == [(), ("yes",)]
    assert asked[0].member == "me"
    assert result.result == "yes"


async def test_without_anybody_to_ask_a_persons_turn_fails_with_a_reason(monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdin", open("/dev/null", encoding="utf-8"))  # noqa: SIM115
    team = Team("t", (Agent("a"), Agent("me", model=Human())), Protocol(on_failure="skip"))
    result = await run(team, "Ok?", engine=numbered())
    assert result.episode.steps[1].data["error"].startswith("me is a person, but nobody can")
    assert result.outcome == "degraded"


@pytest.mark.parametrize("extra", ["a2a", "mcp"])
def test_a_missing_extra_is_named(extra: str, monkeypatch: Any) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == extra:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    if extra == "a2a":
        from shoal.agents.a2a import team_card

        def make() -> object:
            return team_card(PAIR, "http://x")
    else:
        from shoal.agents.mcp import team_server

        def make() -> object:
            return team_server(PAIR, numbered())

    with pytest.raises(MissingExtra, match=rf"pip install 'shoal\[{extra}\]'"):
        make()
