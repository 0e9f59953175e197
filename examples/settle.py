"""Advisers set one number by sealed reports; a greedy one moves the mean, hardly the rest.

python examples/settle.py [--model NAME]

Each adviser chooses by likelihood how much of a budget should go into checking answers: the
question is read once for all of them. Then one more arrives who always says 100%.
"""

from __future__ import annotations

import argparse
import asyncio

from shoal.core.log import EventLog
from shoal.core.protocols import Segment
from shoal.engine.local import LocalEngine
from shoal.mechanisms import Round
from shoal.mechanisms.location.facility_location import FacilityLocation
from shoal.mechanisms.location.rules import RULES

QUESTION = "How much of our token budget should we spend on checking answers, in percent?\n"
ADVISERS = {
    "accountant": "An accountant who saves every cent says:",
    "engineer": "A software engineer who loves tests says:",
    "inspector": "A safety inspector who trusts nobody says:",
    "poet": "A poet who never reads a line twice says:",
}


async def main(model: str) -> None:
    engine = LocalEngine.open(model)
    wanted: dict[str, float] = {}
    for name, voice in ADVISERS.items():
        prefix = (Segment(QUESTION), Segment(f"{voice} we should spend"))
        scores = await engine.score(prefix, [f" {percent} percent" for percent in range(5, 100, 5)])
        best = max(scores, key=lambda score: score.logprob)
        wanted[name] = float(best.text.split()[0])
    await engine.close()
    print(", ".join(f"{name} {percent:g}%" for name, percent in wanted.items()))
    with EventLog() as log:
        for rule in ("mean", "median", "uniform-phantom"):
            before, after = (
                settled(rule, reports, log) for reports in (wanted, {**wanted, "greedy": 100.0})
            )
            print(f"{rule:>15}: {before:.4g}% before the greedy one came, {after:.4g}% after")
        print(f"{len(list(log.events('settlement')))} settlements are in the log")


def settled(rule: str, reports: dict[str, float], log: EventLog) -> float:
    """The outcome of one round; nobody sees another's report before it is settled."""
    with Round(FacilityLocation(RULES[rule], 0, 100), list(reports), log=log) as round:
        for adviser, percent in reports.items():
            round.report(adviser, percent)
        return float(round.settle().decision.outcome)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Settle a percentage among advisers.")
    parser.add_argument("--model", default="smollm2-135m")
    asyncio.run(main(parser.parse_args().model))
