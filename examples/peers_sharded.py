"""Two nodes of two ranks: FSDP inside a node, peers between nodes, shard by shard.

python examples/peers_sharded.py [--rounds 3]

Rank i of every node holds shard i, and joins group i: each shard is averaged with its likes, and
nothing but shards crosses between nodes. On GPUs the only differences are "cuda" and "nccl"; shards
then pass through pinned memory. Here both nodes are this machine, and ranks meet by gloo.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from shoal.collectives import Communicator, MasterThread
from shoal.collectives.backends import ShoalBackend
from shoal.training.diloco import DiLoCo
from shoal.training.staging import trainable

TOKEN = "shown to all who may join"
NODES, RANKS = 2, 2


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, MasterThread(TOKEN) as master:
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, "--rounds", str(rounds), "--master", master.address,
                 "--node", str(node), "--rank", str(rank), "--meet", f"{folder}/node{node}"],
                stdout=subprocess.PIPE, text=True,
            )
            for node in range(NODES)
            for rank in range(RANKS)
        ]  # fmt: skip
        said = [rank.communicate()[0].strip().splitlines() for rank in ranks]
    print(*(line for lines in said for line in lines), sep="\n")
    ends = {lines[-1] for lines in said}
    print(f"{len(ends)} model on {NODES} nodes of {RANKS} ranks")


def take_part(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{options.meet}", rank=options.rank, world_size=RANKS
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    fully_shard(model)
    with Communicator(options.master, token=TOKEN, group=options.rank) as peer:
        peer.gather(NODES)
        run = DiLoCo(trainable(model), ShoalBackend(peer))
        adam = torch.optim.AdamW(model.parameters(), 1e-2)

        def train() -> None:
            for step in range(20):  # every rank of every node sees other examples
                seed = 1000 * run.rounds + 10 * step + RANKS * options.node + options.rank
                x = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
                adam.zero_grad()
                F.mse_loss(model(x), x.sum(1, keepdim=True).sin()).backward()
                adam.step()

        for _ in range(options.rounds):
            found = run.round(train)
            print(
                f"node {options.node} rank {options.rank}, round {found.number}: "
                f"{found.tx} bytes sent, averaged over {found.worlds}"
            )
    whole = [parameter.full_tensor().detach() for parameter in model.parameters()]
    print(f"in the end the weights sum to {sum(float(w.abs().sum()) for w in whole):.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="FSDP inside a node, peers between nodes.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--master", default="")
    parser.add_argument("--node", type=int, default=0)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--meet", default="")
    options = parser.parse_args()
    if options.master:
        take_part(options)
    else:
        main(options.rounds)
