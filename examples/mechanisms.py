"""Any of the thirty mechanisms on a real model, each a team file in examples/teams.

python examples/mechanisms.py [NUMBER ...] [--model NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from teams import python_rows

from shoal.agents import Material, Question, Team, load_team, run
from shoal.core.protocols import Engine
from shoal.engine.open import open_engine

TEAMS = Path(__file__).parent / "teams"
IN_PYTHON = {20: python_rows.game, 25: python_rows.federated, 29: python_rows.town}
PARTS = ("Bees live in hives and make honey.", "Ants live in hills and store seeds.")


def somebody(question: Question) -> str:
    """Stands in for a person."""
    print(f"  ({question.member} is asked)")
    return "Yes, send it."


@contextmanager
def far_away(engine: Engine) -> Iterator[str]:
    """An A2A agent on this machine, for the row with a remote member."""
    from shoal.agents.a2a import a2a_app
    from shoal.server.serve import listen

    with listen("127.0.0.1", 0) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        app = a2a_app(load_team(TEAMS / "01-single.toml"), engine, url)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        while not server.started:
            threading.Event().wait(0.05)
        yield url
        server.should_exit = True
        thread.join()


async def show(number: int, team: Team, engine: Engine) -> None:
    """Let the team work, and print who said what."""
    print(f"\n{number}. {team.name}: {team.task or 'Do your part.'}")
    material = Material("", PARTS if number == 30 else ())
    result = await run(team, "", material, engine=engine, seed=number, ask=somebody)
    for step in result.episode.steps:
        print(f"  {step.superstep} {step.member}: {' '.join(step.output.split())[:90]}")
    usage = result.episode.usage
    print(f"  -> {' '.join((result.result or 'no result').split())[:90]}")
    print(f"  {result.outcome}: {result.why}; {usage.asked_tokens} tokens asked for")


async def main(numbers: list[int], model: str) -> None:
    """All of these mechanisms, one after the other."""
    engine = open_engine(model)
    for number in numbers:
        if number == 28:
            with far_away(engine) as url:
                await show(number, python_rows.remote(url), engine)
        elif number in IN_PYTHON:
            await show(number, IN_PYTHON[number], engine)
        else:
            (path,) = TEAMS.glob(f"{number:02}-*.toml")
            await show(number, load_team(path), engine)
    print(f"\n{len(numbers)} mechanisms ran.")
    await engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Mechanisms of collaboration on a real model.")
    parser.add_argument("numbers", nargs="*", type=int, default=[5, 12, 22], help="rows, 1 to 30")
    parser.add_argument("--model", default="smollm2-135m")
    chosen = parser.parse_args()
    asyncio.run(main(chosen.numbers, chosen.model))
