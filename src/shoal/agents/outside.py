"""Members that are no engine here: functions, people, environments, and agents elsewhere.

Each answers the same prompt that an engine would get. What goes wrong with one (a crash, nobody
at the keyboard, a server that is away) fails its turn, and the team's failure policy decides.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from shoal.agents.world import World
from shoal.core.errors import EngineError, RemoteError, ShoalError
from shoal.core.protocols import Completion, Engine, Request
from shoal.core.records import Message

AWAY_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Script:
    """A model that is a Python function of the messages and the turn's seed.

    It may be async; a plain one runs on the event loop, so it should be quick.
    """

    fn: Callable[[tuple[Message, ...], int], str | Awaitable[str]]
    name: str = "script"

    def __repr__(self) -> str:
        return f"Script({self.name!r})"


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is asked: who they are in the team, the prompt, and what they may choose."""

    member: str
    prompt: tuple[Message, ...]
    choices: tuple[str, ...] = ()


Ask = Callable[[Question], "str | Awaitable[str]"]
"""Puts a question to a person; a plain function runs in a thread of its own."""


@dataclass(frozen=True, slots=True)
class Human:
    """A model that is a person, asked through ``ask``, or through the run's own way to ask."""

    ask: Ask | None = None

    def __repr__(self) -> str:
        return "Human()"


@dataclass(frozen=True, slots=True)
class Remote:
    """A model that is an agent elsewhere.

    url      of an A2A agent (its card is found there), or of an OpenAI-compatible endpoint
    name     which model of an endpoint, where it has several
    seconds  to wait for an answer at most
    """

    url: str
    speaks: Literal["a2a", "openai"] = "a2a"
    name: str = ""
    seconds: float = AWAY_SECONDS

    def __str__(self) -> str:
        return f"{self.speaks}:{self.url}" + (f"#{self.name}" if self.name else "")


Model = str | Script | Human | Remote | World
"""The key of an engine, or one of the others."""


def model_from(text: str) -> Model:
    """The model a team file names: ``human``, ``a2a:URL``, ``openai:URL#MODEL``, else a key."""
    if text == "human":
        return Human()
    speaks, colon, rest = text.partition(":")
    if colon and speaks in ("a2a", "openai"):
        url, _, name = rest.partition("#")
        return Remote(url, "a2a" if speaks == "a2a" else "openai", name)
    return text


def named(model: Model) -> str | None:
    """The text that :func:`model_from` reads back; None for functions."""
    if isinstance(model, str | Remote):
        return str(model)
    return "human" if isinstance(model, Human) and model.ask is None else None


@dataclass(slots=True)
class Outside:
    """How a run reaches people and agents elsewhere; connections last as long as the run."""

    ask: Ask | None = None
    _engines: dict[Remote, Engine] = field(default_factory=dict)
    _floor: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def answer(
        self,
        model: Script | Human | Remote | World,
        member: str,
        request: Request,
        heard: tuple[tuple[str, str], ...] = (),
    ) -> Completion:
        """What this model answers; raises :class:`EngineError` where it cannot.

        ``heard`` is who said what, for worlds; the others read it in the prompt.
        """
        prompt = request.prompt
        messages = tuple(part for part in prompt if isinstance(part, Message))
        assert len(messages) == len(prompt), "members are asked in messages"
        if isinstance(model, Script):
            return Completion(await _called(model, messages, request.sampling.seed))
        if isinstance(model, World):
            return Completion(await asyncio.to_thread(_played, model, heard))
        if isinstance(model, Human):
            choices = request.grammar.value if request.grammar else ()
            assert isinstance(choices, tuple)
            return Completion(await self._asked(model, Question(member, messages, choices)))
        try:
            async with asyncio.timeout(model.seconds):
                return await self._fetched(model, messages, request)
        except TimeoutError as error:
            raise RemoteError(f"{model} did not answer within {model.seconds:g} s.") from error

    async def _asked(self, human: Human, question: Question) -> str:
        ask = human.ask or self.ask or at_terminal
        async with self._floor:  # one person, one keyboard
            if inspect.iscoroutinefunction(ask):
                return str(await ask(question))
            answer = await asyncio.to_thread(ask, question)
            return str(await answer if inspect.isawaitable(answer) else answer)

    async def _fetched(
        self, remote: Remote, messages: tuple[Message, ...], request: Request
    ) -> Completion:
        if remote.speaks == "a2a":
            from shoal.agents.a2a import ask_agent

            return Completion(await ask_agent(remote.url, messages))
        if remote not in self._engines:
            from shoal.engine.remote import RemoteEngine

            self._engines[remote] = await asyncio.to_thread(
                RemoteEngine.open, remote.url, remote.name or None, timeout=remote.seconds
            )
        return (await self._engines[remote].generate([request]))[0]

    async def close(self) -> None:
        """Close all connections."""
        for engine in self._engines.values():
            await engine.close()
        self._engines.clear()


async def _called(script: Script, messages: tuple[Message, ...], seed: int) -> str:
    try:
        text = script.fn(messages, seed)
        return await text if inspect.isawaitable(text) else text
    except ShoalError:
        raise
    except Exception as error:  # a member that crashes must not take the team with it
        raise EngineError(f"{script.name} raised {type(error).__name__}: {error}") from error


def _played(world: World, heard: tuple[tuple[str, str], ...]) -> str:
    try:
        return world.answer(heard)
    except ShoalError:
        raise
    except Exception as error:  # an environment that crashes must not take the team with it
        raise EngineError(f"{world} raised {type(error).__name__}: {error}") from error


def nobody(question: Question) -> str:
    """The way to ask where a team is served and no person stands behind the requests."""
    raise EngineError(
        f"{question.member} is a person, but nobody can be asked through this server: run the "
        "team in a terminal, or serve it over A2A."
    )


def at_terminal(question: Question) -> str:
    """Ask at the terminal; raises :class:`EngineError` where nobody can answer there."""
    if not sys.stdin.isatty():
        raise EngineError(
            f"{question.member} is a person, but nobody can answer here: run in a terminal, or "
            "pass a way to ask."
        )
    print(question.prompt[-1].content, file=sys.stderr)
    while True:
        answer = input(f"{question.member}> ").strip()
        if answer and (not question.choices or answer in question.choices):
            return answer
        if question.choices:
            print(f"One of: {', '.join(question.choices)}", file=sys.stderr)
