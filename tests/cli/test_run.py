"""``shoal run`` and ``shoal runs`` as a user meets them, on a tiny random model."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from shoal.cli import main

Shoal = Callable[..., tuple[int, str, str]]
TEXT = "A shoal is a group of fish that stay together. It is not always a school. " * 6


@pytest.fixture
def shoal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shoal:
    """Run a command line in this process: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shoal", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        code = left.value.code
        return (code if isinstance(code, int) else 0), printed.out, printed.err

    return run


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    path = tmp_path / "paper.md"
    path.write_text(f"# On shoals\n\n{TEXT}")
    return path


def told(shoal: Shoal, *arguments: object) -> dict[str, Any]:
    code, out, err = shoal(*arguments, "--json")
    assert code == 0, err
    told: dict[str, Any] = json.loads(out)
    return told


def spoken(report: dict[str, Any]) -> list[tuple[str, int, str]]:
    return [(step["member"], step["superstep"], step["text"]) for step in report["steps"]]


def test_a_team_reads_a_file_and_reports_what_sharing_saved(
    shoal: Shoal, tiny_model: Path, paper: Path
) -> None:
    report = told(shoal, "run", "reading-room", "--input", paper, "--model", tiny_model)
    assert [(m, s) for m, s, _ in spoken(report)] == [
        ("critic", 0), ("fact-checker", 0), ("reader", 0),
        ("critic", 1), ("fact-checker", 1), ("reader", 1), ("editor", 2),
    ]  # fmt: skip
    total = report["sharing"]["total"]
    usage = [step["usage"] for step in report["steps"]]
    prompts = sum(each["prompt_tokens"] for each in usage)
    assert total["asked_tokens"] == prompts + total["decoded_tokens"]
    assert total["computed_tokens"] + total["shared_tokens"] == total["asked_tokens"]
    assert total["shared_tokens"] > 6 * len(TEXT) * 0.9  # six of seven turns found the text
    assert "fit into" in report["notes"][0]


def test_compare_runs_the_same_job_without_sharing_and_checks_the_texts(
    shoal: Shoal, tiny_model: Path, paper: Path
) -> None:
    arguments = ("run", "reading-room", "-i", paper, "-m", tiny_model, "--dtype", "fp32")
    report = told(shoal, *arguments, "--compare")
    comparison = report["comparison"]
    assert comparison["identical"] is True
    assert comparison["computed_ratio"] > 1.5
    unshared = comparison["unshared"]["total"]
    assert unshared["shared_tokens"] == 0
    assert unshared["asked_tokens"] == unshared["computed_tokens"]
    assert unshared["asked_tokens"] == comparison["shared"]["total"]["asked_tokens"]
    code, out, _ = shoal(*arguments, "--compare")
    assert code == 0
    assert "identical" in out


def test_the_seed_decides_everything(shoal: Shoal, tiny_model: Path, paper: Path) -> None:
    team = paper.with_name("team.toml")
    team.write_text(
        'shoal = 1\nname = "poets"\n[[member]]\nname = "poet"\ncopies = 3\ntemperature = 1.0\n'
        'max_tokens = 12\n[protocol]\nreduce = "concat"\n'
    )
    arguments = ("run", team, "sing", "-m", tiny_model, "--dtype", "fp32", "--seed")
    first, again, other = (told(shoal, *arguments, seed) for seed in (1, 1, 2))
    assert spoken(first) == spoken(again) != spoken(other)


def test_long_documents_are_mapped_in_parts_and_reduced(
    shoal: Shoal, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "library"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(TEXT * 8)
    report = told(shoal, "run", "map-reduce", "--input", folder, "--model", tiny_model)
    mappers = [member for member, _, _ in spoken(report) if member.startswith("mapper")]
    assert len(mappers) >= 5
    assert f"are read in {len(mappers)} parts" in report["notes"][0]
    assert spoken(report)[-1][0] == "editor"


def test_what_does_not_fit_is_cut_and_said(shoal: Shoal, tiny_model: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(TEXT * 20)
    report = told(shoal, "run", "reading-room", "-i", long, "-m", tiny_model)
    assert "long.txt was cut to" in report["notes"][0]
    assert "map-reduce" in report["notes"][1]


def test_runs_can_be_listed_shown_replayed_and_told_apart(
    shoal: Shoal, tiny_model: Path, paper: Path
) -> None:
    first = told(shoal, "run", "reading-room", "-i", paper, "-m", tiny_model)
    second = told(shoal, "run", "reading-room", "another task", "-i", paper, "-m", tiny_model)
    code, listing, _ = shoal("runs", "list", "--json")
    assert [row["run"] for row in json.loads(listing)] == [first["run"], second["run"]]
    _, shown, _ = shoal("runs", "show", "last")
    assert "sharing report" in shown
    _, replayed, _ = shoal("runs", "replay", first["run"])
    assert "fact-checker (1)" in replayed
    code, _, _ = shoal("runs", "replay", "last", "--diff", second["run"])
    assert code == 0
    code, parted, _ = shoal("runs", "replay", first["run"], "--diff", second["run"])
    assert code == 1
    assert "part at turn 0" in parted


def test_an_exhausted_budget_hands_back_and_is_never_called_done(
    shoal: Shoal, tiny_model: Path, paper: Path
) -> None:
    code, out, _ = shoal(
        "run", "reading-room", "-i", paper, "-m", tiny_model, "--tokens", 3000, "--json"
    )
    assert json.loads(out)["outcome"] == "budget_exhausted"
    assert code in (0, 1)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "shoal", *map(str, arguments)]


def finished_turns(folder: Path) -> int:
    logs = list(folder.glob("runs/*/log.sqlite"))
    if not logs:
        return 0
    with sqlite3.connect(logs[0]) as log:
        try:
            return int(log.execute("SELECT count(*) FROM event WHERE kind='step'").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def wait_for(turns: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    while process.poll() is None and finished_turns(folder) < turns:
        time.sleep(0.01)


@pytest.mark.parametrize("turns", [0, 3, 4])
def test_kill_9_at_any_moment_leaves_a_run_that_resumes(
    shoal: Shoal, tiny_model: Path, paper: Path, tmp_path: Path, turns: int
) -> None:
    arguments = ("run", "reading-room", "-i", paper, "-m", tiny_model, "--dtype", "fp32")
    whole = told(shoal, *arguments)
    workplace = tmp_path / "killed"
    workplace.mkdir()
    process = subprocess.Popen(command(*arguments), cwd=workplace, stdout=subprocess.DEVNULL)
    while not list(workplace.glob("runs/*/log.sqlite")) and process.poll() is None:
        time.sleep(0.01)
    wait_for(turns, process, workplace)
    time.sleep(random.Random(turns).uniform(0, 0.15))
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.environ["SHOAL_RUNS"] = str(workplace / "runs")
    try:
        done = finished_turns(workplace)
        resumed = told(shoal, "runs", "resume", "last")
        assert spoken(resumed) == spoken(whole)
        assert resumed["result"] == whole["result"]
        assert finished_turns(workplace) == 7
        assert done <= 7
    finally:
        del os.environ["SHOAL_RUNS"]


def test_a_run_that_goes_on_elsewhere_is_not_resumed(
    shoal: Shoal, tiny_model: Path, paper: Path
) -> None:
    report = told(shoal, "run", "reading-room", "-i", paper, "-m", tiny_model)
    with FileLock(Path(report["folder"]) / "lock"):
        code, _, err = shoal("runs", "resume", "last")
    assert code == 2
    assert "is going on in another process" in err


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(
    tiny_model: Path, paper: Path, tmp_path: Path
) -> None:
    team = tmp_path / "slow.toml"
    team.write_text(
        'shoal = 1\nname = "slow"\nchannels = "none"\n'
        '[protocol]\nturn = "all"\nuntil = "rounds(1)"\n'
        + "".join(f'[[member]]\nname = "talker-{i}"\nmax_tokens = 1500\n' for i in range(400))
    )
    process = subprocess.Popen(
        command("run", team, "talk", "-m", tiny_model),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not list(tmp_path.glob("runs/*/log.sqlite")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"shoal runs resume" in err
    assert b"Traceback" not in err


def test_two_runs_at_once_do_not_disturb_each_other(
    shoal: Shoal, tiny_model: Path, paper: Path, tmp_path: Path
) -> None:
    arguments = ("run", "reading-room", "-i", paper, "-m", tiny_model, "--dtype", "fp32", "--json")
    alone = told(shoal, *arguments[:-1])
    pair = [
        subprocess.Popen(command(*arguments), cwd=tmp_path, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    reports = [json.loads(process.communicate(timeout=120)[0]) for process in pair]
    assert spoken(reports[0]) == spoken(reports[1]) == spoken(alone)
    assert reports[0]["run"] != reports[1]["run"]


def test_a_log_that_cannot_be_written_stops_with_one_sentence_and_can_be_resumed(
    shoal: Shoal, tiny_model: Path, paper: Path, tmp_path: Path
) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from shoal.cli import main; main()"
    )
    arguments = ("run", "reading-room", "-i", paper, "-m", tiny_model, "--dtype", "fp32")
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert "LogError: Cannot write to the event log" in process.stderr
    assert "Traceback" not in process.stderr
    resumed = told(shoal, "runs", "resume", "last")
    assert len(resumed["steps"]) == 7


BAD = {
    "a missing file": (["run", "-i", "nowhere.txt"], "There is no file or folder nowhere.txt"),
    "an empty folder": (["run", "-i", "{empty}"], "empty"),
    "a binary file": (["run", "-i", "{binary}"], "binary"),
    "an unknown team": (["run", "reading-rom"], "Did you mean 'reading-room'?"),
    "an unknown field": (["run", "{typo}"], "Did you mean 'max_tokens'?"),
    "an endless team": (["run", "{endless}"], "may never stop"),
    "an unknown model": (["run", "-m", "smollm2-135"], "smollm2-135m"),
    "a truncated GGUF": (["run", "-m", "{gguf}"], "GGUF"),
    "an unknown run": (["runs", "show", "zzz"], "There is no run 'zzz'"),
    "an unknown number format": (["run", "-m", "{model}", "--dtype", "fp8"], "fp8"),
    "an endpoint that is down": (
        ["run", "-m", "http://127.0.0.1:9/v1", "--model-name", "x"],
        "127.0.0.1:9",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_sentence(
    shoal: Shoal, tiny_model: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    places = {name: tmp_path / name for name in ("empty", "binary", "typo", "endless", "gguf")}
    places["empty"].mkdir()
    places["binary"].write_bytes(bytes(range(256)) * 10)
    member = '[[member]]\nname = "a"\n'
    places["typo"] = tmp_path / "typo.toml"
    places["typo"].write_text(f'shoal = 1\nname = "t"\n{member}max_token = 3\n')
    places["endless"] = tmp_path / "endless.toml"
    places["endless"].write_text(
        f'shoal = 1\nname = "t"\n{member}[protocol]\nuntil = "consensus(0.5)"\n'
    )
    places["gguf"] = tmp_path / "broken.gguf"
    places["gguf"].write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x01" * 40)
    arguments, sentence = BAD[case]
    values = {**{name: str(path) for name, path in places.items()}, "model": str(tiny_model)}
    code, out, err = shoal(*(argument.format(**values) for argument in arguments))
    assert code != 0
    assert sentence in " ".join((out + err).split())
    assert "Traceback" not in err
    if not case.startswith("an endpoint"):
        assert not list(tmp_path.glob("runs/*"))


def test_a_team_runs_through_our_own_server(
    shoal: Shoal, tiny_model: Path, paper: Path, tmp_path: Path
) -> None:
    server = subprocess.Popen(
        command("serve", "--model", tiny_model, "--port", 0, "--dtype", "fp32"),
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stderr is not None
        words = server.stderr.readline().split()
        url = next(word for word in words if word.startswith("http://"))
        report = told(shoal, "run", "reading-room", "-i", paper, "--model", url)
    finally:
        server.terminate()
        server.communicate(timeout=120)
    assert len(report["steps"]) == 7
    assert report["outcome"] == "done"
    assert report["sharing"]["total"]["shared_tokens"] > 5 * len(TEXT) * 0.9


def test_a_dry_run_foresees_the_tokens_and_generates_nothing(
    shoal: Shoal, tiny_model: Path, paper: Path, tmp_path: Path
) -> None:
    team = tmp_path / "pair.toml"
    team.write_text(
        'channels = "chain"\nprotocol = {turn = "chain"}\nlimits = {tokens = 100000}\n'
        'member = [{name = "a", max_tokens = 8}, {name = "b", max_tokens = 8}]\n'
    )
    arguments = ("run", team, "Say it.", "--input", paper, "--model", tiny_model)
    foreseen = told(shoal, *arguments, "--dry-run")
    assert not (tmp_path / "runs").exists()
    real = told(shoal, *arguments)
    assert foreseen["edges"] == [{"from": "a", "to": "b", "carry": "text"}]
    assert [step["members"] for step in foreseen["supersteps"]] == [["a"], ["b"]]
    usage = [step["usage"] for step in real["steps"]]
    assert foreseen["supersteps"][0]["prompt_tokens"] == usage[0]["prompt_tokens"]
    assert foreseen["requests"] == 2
    code, out, _ = shoal(*arguments, "--dry-run")
    assert code == 0
    assert "○ a" in out
    assert "The budget (100,000 tokens) suffices." in out


def test_watching_draws_the_team_and_who_is_speaking() -> None:
    from io import StringIO

    from rich.console import Console

    from shoal.agents import Agent, Team
    from shoal.agents.events import RunStarted, TurnDelta, TurnStarted
    from shoal.cli.live import LiveView

    team = Team("t", (Agent("ann"), Agent("bob", copies=2)))
    console = Console(file=StringIO(), force_terminal=True, width=100, legacy_windows=False)
    with LiveView(console, team=team) as view:
        view(RunStarted("r", "t", "Go.", ("ann", "bob"), 0))
        view(TurnStarted("bob-1", 0))
        view(TurnDelta("bob-1", 0, "hello"))
        plain = Console(file=StringIO(), width=100)
        plain.print(view._draw())
        text = plain.file.getvalue()  # type: ignore[attr-defined]
    assert "○ ann" in text
    assert "● bob" in text
    assert "hello" in text
