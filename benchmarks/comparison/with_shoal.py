"""The task in shoal."""

from __future__ import annotations

import asyncio

from task import EDITOR, PREAMBLE, READERS, TASK, TOKENS, document

from shoal.agents import Agent, Protocol, Team, run
from shoal.core.protocols import Sampling
from shoal.engine.open import open_engine


async def team(url: str, model: str) -> str:
    """The result of the team's run."""
    short = Sampling(max_tokens=TOKENS)
    readers = [Agent(name, role, sampling=short) for name, role in READERS.items()]
    readers_and_editor = Team(
        "readers",
        (*readers, Agent("editor", EDITOR, sampling=short)),
        Protocol(turn="all(but=editor)", reduce="judge(editor)"),
        channels="none",
        preamble=PREAMBLE,
    )
    engine = open_engine(url, model_name=model)
    result = await run(readers_and_editor, TASK, document(), engine=engine)
    await engine.close()
    return str(result.result)


def work(url: str, model: str) -> str:
    """The team's answer."""
    return asyncio.run(team(url, model))
