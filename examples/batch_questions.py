"""Ask questions about several documents in one job; every document is read once.

    python examples/batch_questions.py [--model NAME]

The job is planned over all prompts, runs in little memory, and is compared with what was asked.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from shoal.core.protocols import Request, Sampling, Segment
from shoal.engine.batch.planned import Planned
from shoal.engine.batch.prefixes import saving
from shoal.engine.local import LocalEngine

FOLDER = Path(__file__).parent / "documents" / "constitution"
QUESTIONS = ("Who decides?", "What is forbidden?", "How long?", "Who is named?")


async def main(model: str) -> None:
    engine = LocalEngine.open(model, kv_bytes=24 << 20)
    engine.scheduler.waiting = Planned()
    texts = {path.stem: path.read_text(encoding="utf-8")[:1200] for path in FOLDER.glob("*.md")}
    asked = [(name, question) for question in QUESTIONS for name in sorted(texts)]
    answers = await engine.generate(
        [
            Request(
                (Segment(f"{texts[name]}\n\nQuestion: {question}\nAnswer:"),),
                Sampling(max_tokens=12, stop=("\n",)),
            )
            for name, question in asked
        ]
    )
    for (name, question), answer in zip(asked, answers, strict=True):
        print(f"{name}: {question} {answer.text.strip()}")
    prompt = sum(answer.usage.prompt_tokens for answer in answers)
    meter = engine.scheduler.meter
    print(
        f"{prompt:,} prompt tokens asked for, {meter.prefill_tokens:,} computed "
        f"({saving(meter.prefill_tokens, prompt):.0f} % saved)"
    )
    await engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Many questions about many documents, planned.")
    parser.add_argument("--model", default="smollm2-135m")
    asyncio.run(main(parser.parse_args().model))
