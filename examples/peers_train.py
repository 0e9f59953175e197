"""Three processes train one small model; one dies and another comes in its place.

python examples/peers_train.py [--rounds 6]

Each reads other parts of the same text, trains alone for twenty steps, and shares how far it came.
The round in which one dies counts with the two that are left, and the next waits for the fourth.
At the end all hold the same bits.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

from shoal.collectives import Communicator, MasterThread
from shoal.training.diloco import Round
from shoal.training.together import train_together

TEXTS = Path(__file__).parent / "documents" / "jargon"
TOKEN = "shown to all who may join"
PEERS = 3


def main(rounds: int) -> None:
    with MasterThread(TOKEN) as master:
        command = [sys.executable, __file__, "--master", master.address, "--rounds", str(rounds)]
        deaths = [(), (), ("--dies-after", "2")]
        first, second, victim = (
            subprocess.Popen([*command, *death], stdout=subprocess.PIPE, text=True)
            for death in deaths
        )
        for line in victim.stdout or ():
            print("the third peer:", line.strip())
        victim.wait()
        print("the third peer is dead, a fourth joins")
        fourth = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        ends = [peer.communicate()[0].strip().splitlines()[-1] for peer in (first, second, fourth)]
        print(*ends, sep="\n")
        print(f"{len(set(ends))} result among {len(ends)} peers")


def take_part(master: str, rounds: int, dies_after: int) -> None:
    torch.set_num_threads(1)  # three processes on one machine: more threads only wait
    text = b"\n".join(path.read_bytes() for path in sorted(TEXTS.iterdir()))

    def show(found: Round, loss: float) -> None:
        print(
            f"round {found.number}: {loss:.3f} nats a byte, averaged over {found.worlds}",
            flush=True,
        )
        if found.number == dies_after:
            os._exit(1)  # as a machine would that lost its power: without a word to the others

    with Communicator(master, token=TOKEN) as peer:
        loss = train_together(peer, text, rounds=rounds, least=PEERS, on_round=show)
        print(f"in the end {loss:.4f} nats a byte held out")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train one model with peers that come and go.")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--master", default="")
    parser.add_argument("--dies-after", type=int, default=0)
    options = parser.parse_args()
    if options.master:
        take_part(options.master, options.rounds, options.dies_after)
    else:
        main(max(options.rounds, 4))  # two with three peers, one with two, one with the fourth
