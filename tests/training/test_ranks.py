"""Two ranks learn what one process learns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from shoal.core.errors import ConfigError
from shoal.training.config import parse_run
from shoal.training.ranks import Ranks, join
from shoal.training.setup import build

RUN = """
iterations = 3
checkpoint_every = 3
[environment]
name = "arithmetic"
options = { base = 4 }
[groups]
tasks = 5
episodes = 4
[policy]
hidden = 16
layers = 1
heads = 2
[sampler]
max_tokens = 1
[context]
history = 0
[algorithm]
name = "copo"
[optimiser]
lr = 0.01
"""


@given(items=st.lists(st.integers(), max_size=30), world=st.integers(1, 6))
def test_shares_in_order_of_rank_are_the_whole(items: list[int], world: int) -> None:
    parts = [Ranks(rank, world).share(items) for rank in range(world)]
    assert [item for part in parts for item in part] == items
    rows = [Ranks(rank, world).share_rows(np.arange(len(items))) for rank in range(world)]
    assert np.concatenate(rows).tolist() == list(range(len(items)))


def launched(folder: Path, ranks: int) -> dict[str, torch.Tensor]:
    (folder / "run.toml").write_text(RUN)
    own = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
           str(ranks), "-m"] if ranks > 1 else [sys.executable, "-m"]  # fmt: skip
    done = subprocess.run(
        [*own, "shoal", "train", str(folder / "run.toml"), "--json"],
        cwd=folder, capture_output=True, text=True, timeout=250, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "SHOAL_RUNS": str(folder / "runs")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    return load_file(run / "checkpoints" / "iteration-000003" / "weights.safetensors")


def test_two_ranks_end_with_the_weights_of_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = launched(tmp_path / "one", 1), launched(tmp_path / "two", 2)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=2e-5), name


def test_more_ranks_than_tasks_are_refused() -> None:
    config = parse_run({"environment": {"name": "taxi"}, "groups": {"tasks": 2}})
    with pytest.raises(ConfigError, match="2 tasks an iteration cannot be shared by 4 ranks"):
        build(config, ranks=Ranks(0, 4))


def test_half_a_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="RANK is not"):
        join()


def test_alone_nothing_is_asked_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks, device = join("cpu")
    assert (ranks.rank, ranks.world, device) == (0, 1, "cpu")
    assert ranks.sum_metrics({"a": 1.0}) == {"a": 1.0} and ranks.same("x") == "x"
