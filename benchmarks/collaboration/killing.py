"""Runs with side effects that are killed at random moments: what is lost, what happens twice.

Each of three members calls two tools in each of four rounds. ``write`` appends a line to a file and
cannot tell a repetition; ``book`` takes the call's idempotency key and writes each key once. The
process is killed with SIGKILL, started again on the same log, and so on until it ends.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from shoal.agents import Agent, Protocol, Team, run, tool
from shoal.agents.tools import UNKNOWN
from shoal.core.log import EventLog
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine

MEMBERS, ROUNDS = 3, 4
CALLS = MEMBERS * ROUNDS
"""Calls of each tool in a whole run."""
DELAY = 0.0004
"""Seconds per word an engine of the run takes."""


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What a run left behind that was killed and resumed until it ended."""

    kills: int
    outcome: str
    written: tuple[str, ...]
    booked: tuple[str, ...]
    unknown: int
    steps: int


def work(folder: str) -> None:
    """One process's part of the run in this folder."""
    lines, books = Path(folder, "lines.txt"), Path(folder, "books.sqlite")
    with sqlite3.connect(books) as db:
        db.execute("CREATE TABLE IF NOT EXISTS book (key TEXT PRIMARY KEY, n INTEGER)")

    def write(n: int) -> str:
        """Append a number to the file."""
        with lines.open("ab", buffering=0) as file:
            file.write(f"{n}\n".encode())
        time.sleep(0.001)
        return "written"

    def book(n: int, idempotency_key: str) -> str:
        """Book a number once."""
        with sqlite3.connect(books, timeout=30) as db:
            db.execute("INSERT OR IGNORE INTO book VALUES (?, ?)", (idempotency_key, n))
        time.sleep(0.001)
        return "booked"

    agent_tools = (tool(write, side_effect="write"), tool(book, side_effect="write"))
    team = Team(
        "writers",
        tuple(
            Agent(f"m{i}", strategy="tools(2)", tools=agent_tools) for i in range(1, MEMBERS + 1)
        ),
        Protocol("all", "last", f"rounds({ROUNDS})"),
    )
    with EventLog(Path(folder, "log.sqlite")) as log:
        asyncio.run(
            run(team, "Write.", engine=ScriptedEngine(decide, delay=DELAY), log=log, run_id="r")
        )


def decide(messages: tuple[Message, ...], seed: int) -> str:
    """First write, then book, then answer; numbers follow from the turn's seed."""
    last = messages[-1].content
    done = sum(" returned: " in message.content for message in messages)
    if "What do you do next?" in last:
        return ("write", "book")[done]
    return f'{{"n": {seed}}}' if "Give the arguments" in last else "Done with this round."


def killed(folder: Path, draws: random.Random, seconds: float, most: int) -> Aftermath:
    """Kill the run at up to ``most`` random moments, each within ``seconds``; then let it end."""
    context = multiprocessing.get_context("forkserver")
    kills, held = 0, 0
    while True:
        process = context.Process(target=work, args=(str(folder),))
        process.start()
        last = kills == most
        process.join(None if last else draws.uniform(0, seconds))
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            if (folder / "log.sqlite").exists():
                with EventLog(folder / "log.sqlite") as log:
                    steps = len(list(log.steps()))
                    assert steps >= held, "a turn that was logged is lost"
                    held = steps
            continue
        assert process.exitcode == 0, f"the run ended with exit code {process.exitcode}"
        break
    with EventLog(folder / "log.sqlite") as log:
        episode = log.episode()
        unknown = sum(event.body["result"] == UNKNOWN for event in log.events("returned"))
    with sqlite3.connect(folder / "books.sqlite") as db:
        booked = tuple(str(row[0]) for row in db.execute("SELECT n FROM book"))
    written = tuple((folder / "lines.txt").read_text(encoding="utf-8").split())
    return Aftermath(kills, episode.outcome, written, booked, unknown, len(episode.steps))
