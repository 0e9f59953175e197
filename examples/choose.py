"""Let a small model choose instead of invent: score candidates under one shared prefix.

    python examples/choose.py [--model NAME]

Every article of the Constitution is read once; each question is then answered by the likelihood
of a few candidates, whose shared beginnings are computed once too.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from shoal.core.protocols import Segment
from shoal.engine.local import LocalEngine

TEXT = Path(__file__).parent / "documents" / "constitution" / "2-bill-of-rights.md"
QUESTIONS = {
    "freedom of speech": "first",
    "the right to bear arms": "second",
    "unreasonable searches": "fourth",
    "a speedy public trial": "sixth",
}
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


async def main(model: str) -> None:
    engine = LocalEngine.open(model)
    text = TEXT.read_text(encoding="utf-8")
    right = 0
    for what, truth in QUESTIONS.items():
        prefix = Segment(f"{text}\n\nWhich amendment is about {what}? It is the")
        scores = await engine.score((prefix,), [f" {ordinal}" for ordinal in ORDINALS])
        best = max(scores, key=lambda score: score.logprob).text.strip()
        right += best == truth
        print(f"{what}: the {best} amendment ({'right' if best == truth else f'no, {truth}'})")
    computed = engine.counters.tokens_computed
    asked = len(QUESTIONS) * engine.count_tokens((prefix,)) * len(ORDINALS)
    print(f"{right} of {len(QUESTIONS)} right; {computed:,} tokens computed of {asked:,} asked for")
    await engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Choose by likelihood under a shared prefix.")
    parser.add_argument("--model", default="smollm2-135m")
    asyncio.run(main(parser.parse_args().model))
