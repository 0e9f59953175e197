"""`shoal peers`: a master that serves, peers that join it, and what it says of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.collectives import Communicator, MasterLost, MasterThread, Refused
from shoal.core.errors import ConfigError, InputError, ShoalError

TOKEN = "of the tests"
ENV = {**os.environ, "SHOAL_PEERS_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}


def shoal(*arguments: str, token: str = TOKEN) -> Any:
    done = CliRunner().invoke(app, ["peers", *arguments], env={"SHOAL_PEERS_TOKEN": token})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shoal", "peers", *arguments]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True)


def test_a_master_serves_until_it_is_interrupted_and_keeps_a_log_and_a_journal(tmp_path: Path):
    log, journal = tmp_path / "log.sqlite", tmp_path / "journal.json"
    master = start("master", "--port", "0", "--log", str(log), "--journal", str(journal))
    assert master.stdout is not None
    address = master.stdout.readline().split()[1].rstrip(",")
    join = ["join", address, "--mib", "0.1", "--steps", "3", "--json"]
    peers = [start(*join) for _ in range(2)]
    found = [json.loads(peer.communicate(timeout=100)[0]) for peer in peers]
    for one in found:
        assert (one["steps"], one["worlds"], one["wrong"]) == (3, [2], 0)
    master.send_signal(signal.SIGINT)
    assert master.wait(30) == 0
    assert log.stat().st_size > 0 and json.loads(journal.read_text())["run"]


def test_peers_train_a_model_on_a_text_together(tmp_path: Path):
    text = tmp_path / "text"
    text.write_bytes(b"what several peers read, all of them learn. " * 200)
    with MasterThread(TOKEN) as master:
        join = ["join", master.address, "--text", str(text), "--steps", "2", "--json"]
        peers = [start(*join) for _ in range(2)]
        found = [json.loads(peer.communicate(timeout=100)[0]) for peer in peers]
    assert found[0] == found[1] and found[0]["rounds"] == 2
    assert found[0]["held_out_nats"] < 4.5  # 5.55 before the first step


def test_the_status_shows_rings_and_peers():
    with MasterThread(TOKEN) as master, Communicator(master.address, token=TOKEN, pool=3) as peer:
        found = json.loads(shoal("status", master.address, "--json"))
        assert found["groups"]["0"]["ring"] == [peer.id]
        assert found["groups"]["0"]["peers"][peer.id]["phase"] == "PEER_ACCEPTED"
        assert found["groups"]["0"]["peers"][peer.id]["pool"] == 3
        assert "epoch 1" in shoal("status", master.address)
        assert master.state.seq == 0


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (["status", "127.0.0.1:1"], MasterLost, "No master answers"),
        (["status", "nowhere"], InputError, "host:port"),
        (["join", "127.0.0.1:1", "--text", "/no/such/text"], InputError, "Cannot read"),
    ],
)
def test_wrong_calls_are_one_sentence(arguments: list[str], error: type[ShoalError], sentence: str):
    with pytest.raises(error, match=sentence):
        shoal(*arguments)


def test_the_token_is_needed_and_checked():
    with pytest.raises(ConfigError, match="SHOAL_PEERS_TOKEN"):
        shoal("status", "127.0.0.1:1", token="")
    with MasterThread(TOKEN) as master, pytest.raises(Refused, match="the same token"):
        shoal("status", master.address, token="another")


RUN = """
iterations = 2
[environment]
name = "arithmetic"
[groups]
tasks = 2
episodes = 2
[policy]
hidden = 16
layers = 1
heads = 2
"""


def test_two_processes_train_one_run_file_with_each_other(tmp_path: Path):
    (tmp_path / "run.toml").write_text(RUN)
    with MasterThread(TOKEN) as master:
        command = [
            sys.executable, "-m", "shoal", "train", "run.toml", "--peers", master.address, "--json",
        ]  # fmt: skip
        trainers = [
            subprocess.Popen(command, env=ENV, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        found = [json.loads(trainer.communicate(timeout=100)[0]) for trainer in trainers]
    for one in found:
        assert one["finished"] and one["metrics"]["peers"] == one["metrics"]["peers.rounds"] == 2
    assert len({one["run"] for one in found}) == 2


def test_training_with_peers_needs_their_token(tmp_path: Path):
    (tmp_path / "run.toml").write_text(RUN)
    done = CliRunner().invoke(
        app, ["train", str(tmp_path / "run.toml"), "--peers", "127.0.0.1:1"],
        env={"SHOAL_PEERS_TOKEN": ""},
    )  # fmt: skip
    assert isinstance(done.exception, ConfigError) and "token" in str(done.exception)
