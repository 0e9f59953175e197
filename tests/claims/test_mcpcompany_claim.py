"""The claim's parts: which tasks a smoke run has, what a model is told, and its whole smoke run."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.claims import Bench, find_system, runner
from shoal.core.protocols import Prompt, Score
from shoal.engine.scripted import ScriptedEngine
from shoal.envs.company.tasks import find_task, load_tasks
from shoal.tools.functions import from_function
from shoal.tools.gateway import Functions, Shelf

pytest.importorskip("moto")
pytest.importorskip("mcp")


@pytest.fixture(scope="module")
def parts():
    checkout = runner.find_checkout()
    assert checkout is not None
    runner.load_claim(find_system("mcpcompany"), checkout)
    return sys.modules["shoal_benchmarks.mcpcompany"]


def test_a_smoke_run_has_ten_tasks_of_few_services(parts):
    services = frozenset(("sqs", "sns", "iam", "s3", "dynamodb", "events"))
    small, whole = Bench(smoke=True), Bench()
    chosen = parts.scripts.tasks_for(small, load_tasks(), services)
    assert [task.kind for task in chosen].count("composite") == 4
    assert len(chosen) == 10
    assert len(parts.scripts.tasks_for(whole, load_tasks(), services)) == 90


def test_a_model_is_told_values_and_not_the_names_of_arguments(parts):
    text = parts.models.asked(find_task("colleague-leaves"))
    assert text.endswith('Values: "media", "media-lead"')
    assert "UserName" not in text


def test_both_servers_answer_the_same(parts):
    functions = [parts.starting._function(number) for number in range(10)]
    made = [from_function(fn, name=fn.__name__) for fn in functions]
    specs = Shelf(tool.spec for tool in made)
    costs = asyncio.run(
        parts.starting._calls(
            parts.starting.official(functions), parts.starting.ours(specs, Functions(made)), 2
        )
    )
    assert {name: len(values) for name, values in costs.items()} == {"official": 2, "gateway": 2}


@dataclass(slots=True)
class Chooses(ScriptedEngine):
    """Scores options by their length, and writes nothing that is JSON."""

    async def score(self, prefix: Prompt, candidates: Sequence[str], salt: str = "") -> list[Score]:
        return [Score(text, -float(len(text)), ()) for text in candidates]


def test_the_models_arms_run_with_any_engine(parts, monkeypatch):
    monkeypatch.setattr(parts.models.LocalEngine, "open", lambda: Chooses())
    monkeypatch.setattr(parts.models, "TASKS", 2)
    claim = Bench(smoke=True)
    asyncio.run(parts.models.solving(claim))
    assert [arm.name for arm in claim.arms] == [
        "SmolLM2-135M: oracle tools",
        "SmolLM2-135M: gateway",
        "SmolLM2-135M: HTTP and pages",
    ]


@pytest.mark.slow
def test_the_smoke_run(tmp_path: Path):
    command = ["reproduce", "mcpcompany", "--smoke", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "result.json").read_text())
    held = {verdict["claim"]: verdict["holds"] for verdict in result["verdicts"]}
    assert held["with the right tools the script does every task"]
    assert held["impossible tasks are refused, and nothing changes"]
