"""Two agents read the same problems behind different words; after a few, caches move instead.

    python examples/carried_words.py [MODEL]

The question stands in the middle of each prompt, so no prefix is shared beyond the role. The first
problems are computed exactly and become anchors; later ones are moved, and now and then looked at.
"""

from __future__ import annotations

import asyncio
import sys

from shoal.core.protocols import Request, Sampling, Segment
from shoal.core.records import Message
from shoal.engine.kvcomm import CommPolicy, KVComm
from shoal.engine.local import LocalEngine

ROLES = {
    "solver": "You solve problems step by step and say the result.",
    "checker": "You look for what others overlooked, and trust no arithmetic.",
}
PROBLEMS = (
    "A baker makes 24 rolls every hour from five in the morning until noon, except on Sundays, "
    "when he starts at seven. How many rolls does he make in a week?",
    "A train has 9 cars with 48 seats each. On the way 17 people leave it and 31 come in, after "
    "which every seat is taken. How many people were in it at first?",
    "Three friends share a garden of 240 square metres so that the second has twice as much as "
    "the first, and the third 30 more than the second. How much has each?",
    "A library lends 130 books a day and gets 118 back. How many days until 300 are missing?",
    "Six boxes hold 14 pears each. Nine pears are bad. How many can be sold?",
)


def ask(role: str, problem: str) -> Request:
    """What an agent is asked; the problem is named, so that its cache may move."""
    user = f"The problem of today:\n{problem}\n\nAnswer in one short sentence."
    return Request(
        (Message("system", ROLES[role]), Message("user", user)),
        Sampling(max_tokens=16),
        placeholders=(Segment(problem, name="problem"),),
    )


async def main(model: str) -> None:
    engine = KVComm(LocalEngine.open(model), CommPolicy())
    for problem in PROBLEMS:
        group = [ask(role, problem) for role in ROLES]
        for role, answer in zip(ROLES, await engine.generate(group), strict=True):
            usage = answer.usage
            print(
                f"{role:<8}{usage.prompt_tokens:>4} tokens, {usage.computed_prompt_tokens:>3} "
                f"computed  {usage.first_token_ms:>5.0f} ms  {answer.how}"
            )
    moved = [call for call in engine.calls if call.mode == "moved"]
    await engine.close()
    print(f"{len(moved)} of {len(engine.calls)} prompts were moved instead of computed.")


if __name__ == "__main__":
    asyncio.run(main(*(sys.argv[1:] or ["smollm2-135m"])))
