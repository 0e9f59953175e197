"""Three agents answer in a fixed order; everyone is rewarded by what all of them contributed.

python examples/contribute.py [--model NAME]

Each chooses by likelihood what to say, after the words of those before it that it may see. A
contribution is how likely the right answer becomes for a reader of its words. The constants would
make contributing serve agents that weigh them; a small model rather follows who spoke before.
"""

from __future__ import annotations

import argparse
import asyncio
import math

from shoal.core.log import EventLog
from shoal.core.protocols import Segment
from shoal.engine.local import LocalEngine
from shoal.mechanisms import Round
from shoal.mechanisms.goods.alignment import check_game
from shoal.mechanisms.goods.contribution_game import Game
from shoal.mechanisms.goods.public_goods import Observe, PublicGoods

QUESTION = "Question: What is the capital of Australia?\n"
RIGHT = "Canberra"
CITIES = ("Canberra", "Melbourne", "Perth", "Sydney")
VOICES = {
    "hasty": "A surfer from Sydney says: The capital is",
    "careful": "A teacher of geography says: The capital is",
    "last": "An encyclopedia says: The capital is",
}
GAME = Game(bar=1.5)


async def main(model: str) -> None:
    found = check_game(GAME)
    (one,) = found.equilibria
    print(f"in equilibrium they contribute {one.contributions}")
    for sentence in found.objections or ("No reason against these constants.",):
        print(sentence)
    engine = LocalEngine.open(model)
    with EventLog() as log:
        for observe in ("none", "last", "all"):
            await play(engine, observe, log)
        print(f"{len(list(log.events('settlement')))} settlements are in the log")
    await engine.close()


async def play(engine: LocalEngine, observe: Observe, log: EventLog) -> None:
    """One round in which agents see no, the last or all words before theirs."""
    scores: dict[str, float] = {}
    with Round(PublicGoods(GAME, observe), list(VOICES), log=log) as round:
        for agent, voice in VOICES.items():
            before = [one["contribution"] for one in round.message(agent)["earlier"]]
            shares = await likely(engine, QUESTION + "".join(before) + voice)
            words = f"{voice} {max(shares, key=shares.__getitem__)}.\n"
            round.report(agent, words)
            reader = await likely(engine, f"{QUESTION}{words}So the capital is")
            scores[agent] = max(GAME.low, reader[RIGHT])
        decision = round.settle(scores).decision
    total = decision.details["total"]
    print(f"seeing {observe}: {total:.2f} contributed, {GAME.bar:g} wanted")
    for agent, reward in decision.utilities.items():
        print(f"  {agent} contributed {scores[agent]:.2f}, reward {reward:.2f}")
    print(f"  {decision.outcome.strip()}")


async def likely(engine: LocalEngine, text: str) -> dict[str, float]:
    """How likely each city comes next, among the cities."""
    found = await engine.score((Segment(text),), [f" {city}" for city in CITIES])
    weights = {score.text.strip(): math.exp(score.logprob) for score in found}
    return {city: weight / sum(weights.values()) for city, weight in weights.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Contribute in order, and share the reward.")
    parser.add_argument("--model", default="smollm2-135m")
    asyncio.run(main(parser.parse_args().model))
