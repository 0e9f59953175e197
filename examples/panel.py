"""A team in Python: three panellists read one text and vote; prefixes are shared by themselves.

python examples/panel.py [--model NAME]
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from shoal.agents import Agent, Protocol, Team, run, sharing_report
from shoal.core.protocols import Sampling
from shoal.engine.local import LocalEngine

TEXT = Path(__file__).parent / "documents" / "constitution" / "2-bill-of-rights.md"

panel = Team(
    "panel",
    (
        Agent(
            "panellist",
            role="Answer the question with yes or no, then one reason.",
            copies=3,
            sampling=Sampling(max_tokens=40, temperature=0.8),
        ),
    ),
    Protocol(turn="all", reduce="vote(plurality)", until="rounds(2)"),
    channels="mesh",
)


async def main(model: str) -> None:
    engine = LocalEngine.open(model)
    question = "May soldiers be quartered in a house without the consent of the owner?"
    result = await run(panel, question, TEXT.read_text(encoding="utf-8"), engine=engine, seed=1)
    for step in result.episode.steps:
        print(f"{step.member} ({step.superstep}): {step.output.strip()}")
    total = sharing_report(result.episode).total
    print(f"The vote: {result.result}")
    print(f"{total.asked_tokens:,} tokens asked for, {total.computed_tokens:,} computed")
    await engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A panel that reads one text and votes.")
    parser.add_argument("--model", default="smollm2-135m")
    asyncio.run(main(parser.parse_args().model))
