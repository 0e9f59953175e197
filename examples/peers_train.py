"""Three processes train one small model; one is killed and another comes in its place.

python examples/peers_train.py [--rounds 6]

Each reads other parts of the same text, trains alone for twenty steps, and shares how far it came.
At the end all hold the same bits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from shoal.collectives import Communicator, MasterThread
from shoal.training.diloco import Round
from shoal.training.together import train_together

TEXTS = Path(__file__).parent / "documents" / "jargon"
TOKEN = "shown to all who may join"


def main(rounds: int) -> None:
    with MasterThread(TOKEN) as master:
        command = [sys.executable, __file__, "--master", master.address, "--rounds", str(rounds)]
        peers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        victim = peers.pop()
        for line in victim.stdout or ():
            print("the third peer:", line.strip())
            if line.startswith("round 2"):
                break
        victim.kill()
        victim.wait()
        print("the third peer is killed, a fourth joins")
        peers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        ends = [peer.communicate()[0].strip().splitlines()[-1] for peer in peers]
        print(*ends, sep="\n")
        print(f"{len(set(ends))} result among {len(ends)} peers")


def take_part(master: str, rounds: int) -> None:
    text = b"\n".join(path.read_bytes() for path in sorted(TEXTS.iterdir()))

    def show(found: Round, loss: float) -> None:
        print(
            f"round {found.number}: {loss:.3f} nats a byte, averaged over {found.worlds}",
            flush=True,
        )

    with Communicator(master, token=TOKEN) as peer:
        peer.gather(2)
        loss = train_together(peer, text, rounds=rounds, on_round=show)
        print(f"in the end {loss:.4f} nats a byte held out")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train one model with peers that come and go.")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--master", default="")
    options = parser.parse_args()
    if options.master:
        take_part(options.master, options.rounds)
    else:
        main(options.rounds)
