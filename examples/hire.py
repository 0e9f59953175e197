"""Two workers who would rather guess are hired so that neither gains by guessing.

python examples/hire.py [--cost 0.06] [--rounds 300]

Work shows the answer to a yes-or-no question with accuracy 0.7, the same answer to both. Checking
one against the other now and then is cheaper than paying each for being right. The workers are
simulated: one pair does as it is told, one pair guesses.
"""

from __future__ import annotations

import argparse

import numpy as np

from shoal.core.log import EventLog
from shoal.core.rng import generator
from shoal.mechanisms import Round
from shoal.mechanisms.hiring.examples import common_noise
from shoal.mechanisms.hiring.information_acquisition import (
    InformationAcquisition,
    solve_correlated,
    solve_uncorrelated,
    worth,
)


def main(cost: float, rounds: int) -> None:
    case = common_noise(cost=cost)
    contract = solve_correlated(case)
    print(f"each judged alone: {solve_uncorrelated(case).terms.utility:.4f} a question")
    print(f"checked at random: {worth(contract, case).utility:.4f} a question")
    for who, how_often in zip(
        ("the second", "the first", "both"), contract.mu.ravel()[1:], strict=True
    ):
        print(f"  {who} told to work: {how_often:.1%}")
    mechanism = InformationAcquisition(case, contract)
    with EventLog() as log:
        for guessing in (False, True):
            earned = np.zeros(2)
            for k in range(rounds):
                rng = generator("questions", guessing, k)
                round = Round(mechanism, ["anna", "ben"], id=f"{guessing} {k}", log=log)
                told = [round.message(worker)["effort"] for worker in ("anna", "ben")]
                played = (0, 0) if guessing else tuple(told)
                p = case.P[played]
                drawn = np.unravel_index(rng.choice(p.size, p=p.ravel()), p.shape)
                state, *seen = map(int, drawn)
                for worker, signal in zip(("anna", "ben"), seen, strict=True):
                    round.report(worker, signal)
                paid = round.settle(observed=state).decision.payments
                earned += [paid["anna"], paid["ben"]]
                earned -= cost * np.array(played)
            kind = "guess" if guessing else "work as told"
            print(f"two who {kind} earn {earned.mean() / rounds:.4f} each a question")
        print(f"{len(list(log.events('settlement')))} settlements are in the log")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Hire two workers who would rather guess.")
    parser.add_argument("--cost", type=float, default=0.06)
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    main(options.cost, options.rounds)
