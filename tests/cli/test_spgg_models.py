"""`shoal spgg train` and `run`: a sequence of models learns, goes on, and is reported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.errors import ConfigError, InputError, ShoalError
from shoal.core.log import EventLog
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine


def solve(messages: tuple[Message, ...], seed: int) -> str:
    question = messages[-1].content.rpartition("Question: ")[2].partition("\n")[0]
    a, b = (int(term) for term in re.findall(r"\d+", question)[:2])
    return f"so it is, as we add the two \nAnswer: {a + b}"


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "shoal.engine.open.open_engine", lambda model, progress=None: ScriptedEngine(solve)
    )


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    lines = [
        {"question": f"{a} + 2", "answer": a + 2, "solution": f"{a} + 2 = {a + 2}."}
        for a in range(12)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def shoal(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["spgg", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_policies_are_learnt_kept_and_gone_on_with(tasks: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policies.safetensors"
    command = ["train", tasks, "--policy", policy, "--tokens", "4,24", "--episodes", 6, "--json"]
    first = json.loads(shoal(*command, "--epochs", 2))
    assert (first["updates"], len(first["epochs"])) == (2, 2)
    assert first["held_out"]["plays"] == 4  # 30 % of twelve
    again = json.loads(shoal(*command, "--epochs", 3))
    assert [epoch["number"] for epoch in again["epochs"]] == [2]
    text = shoal("train", tasks, "--policy", policy, "--tokens", "4,24", "--epochs", 4)
    assert "4/4  reward" in text
    assert "riding free" in text


@pytest.mark.parametrize("observe", ["last", "all"])
def test_a_run_reports_contributions_rewards_and_what_each_added(
    tasks: Path, tmp_path: Path, observe: str
) -> None:
    log = tmp_path / "log.sqlite"
    command = ["run", tasks, "--observe", observe, "--tokens", "4,24", "--log", log]
    found = json.loads(shoal(*command, "--leave-one-out", "--json"))
    assert found["plays"] == 12
    assert found["accuracy"]["estimate"] == 1.0
    assert len(found["contributions"]) == len(found["efforts"]) == len(found["rewards"]) == 3
    assert found["leave_one_out"] == dict.fromkeys(("agent 1", "agent 2", "agent 3"), 0.0)
    assert len(list(EventLog(log).events("settlement"))) == 12
    shoal(*command)
    assert len(list(EventLog(log).events("settlement"))) == 24
    assert "of prompts" in shoal("run", tasks, "--shots", 3, "--tokens", "4,24")


def test_what_tokens_cost_is_an_option(tasks: Path) -> None:
    command = ["run", tasks, "--tokens", "4,24", "--json"]
    dear, cheap = (json.loads(shoal(*command, "--linear", cost)) for cost in (1.0, 0.4))
    assert dear["efforts"] == cheap["efforts"]
    for less, more, effort in zip(dear["rewards"], cheap["rewards"], dear["efforts"], strict=True):
        assert more - less == pytest.approx(0.6 * effort)


def test_bad_input_is_named(tasks: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policies.safetensors"
    shoal("train", tasks, "--policy", policy, "--tokens", "4,24", "--epochs", 1)
    cases: list[tuple[type[ShoalError], str, list[object]]] = [
        (InputError, "was trained with max_tokens", ["run", tasks, "--policy", policy]),
        (ConfigError, "for 3 agents, not 4", [
            "run", tasks, "--policy", policy, "--tokens", "4,24", "--agents", 4,
        ]),
        (ConfigError, "two whole numbers", ["run", tasks, "--tokens", "many"]),
        (ConfigError, "Agents observe one of", ["run", tasks, "--observe", "some"]),
        (ConfigError, "bar is unreachable", ["run", tasks, "--bar", 9]),
        (ConfigError, "only 12 tasks have a solution", ["run", tasks, "--shots", 13]),
        (ConfigError, "No task is left", ["run", tasks, "--shots", 12]),
        (InputError, "Cannot read the tasks", ["run", tmp_path / "none.jsonl"]),
    ]  # fmt: skip
    for kind, sentence, command in cases:
        with pytest.raises(kind, match=sentence):
            shoal(*command)
