"""The worked claim: its closed forms against brute force, its topologies against what was heard."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal import agents
from shoal.agents import Agent, Protocol, Team
from shoal.cli import app
from shoal.core.claims import find_system, runner
from shoal.engine.scripted import ScriptedEngine


@pytest.fixture(scope="module")
def claim():
    checkout = runner.find_checkout()
    assert checkout is not None
    runner.load_claim(find_system("collaboration-mechanisms"), checkout)
    return sys.modules["shoal_benchmarks.collaboration_mechanisms"]


@pytest.mark.parametrize(("size", "cause"), [(1, 0.0), (3, 0.0), (5, 0.3), (7, 1.0)])
def test_the_closed_form_equals_the_sum_over_all_outcomes(claim, size, cause):
    p = 0.6
    alone = 0.0
    for votes in itertools.product((0, 1), repeat=size):
        weight = p ** sum(votes) * (1 - p) ** (size - sum(votes))
        alone += weight * (2 * sum(votes) > size)
    assert claim.voting.Cell(size, p, cause).law == pytest.approx(cause * p + (1 - cause) * alone)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("place", range(3))
async def test_each_topology_carries_exactly_as_many_messages_as_its_law_says(claim, place, size):
    topology = claim.growth.TOPOLOGIES[place]
    team = Team(
        "group",
        tuple(Agent(f"a{i}") for i in range(1, size + 1)),
        Protocol(until="rounds(4)"),
        channels=topology.channels,
    )
    result = await agents.run(team, "Talk.", engine=ScriptedEngine(claim.growth.talk))
    for r in range(1, 5):
        heard = sum(len(s.seen) for s in result.episode.steps if s.superstep == r - 1)
        assert heard == topology.messages(size, r)


def test_the_smoke_run_of_the_real_claim_holds(tmp_path: Path):
    command = ["reproduce", "collaboration-mechanisms", "--smoke", "--json", "--check"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path)])
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert all(verdict["holds"] for verdict in result["verdicts"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "result.json",
        "report.md",
        "voting.png",
        "growth.png",
        "overhead.png",
    }
