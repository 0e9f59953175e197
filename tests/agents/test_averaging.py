"""Weights that members send are averaged by examples: as numbers, and as adapters in files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shoal.agents import Agent, Protocol, Script, Team, TeamResult, run
from shoal.agents.averaging import averaged
from shoal.core.log import EventLog
from shoal.engine.scripted import ScriptedEngine


def sends(text: str) -> Script:
    return Script(lambda messages, seed: text)


async def ran(folder: Path, words: dict[str, str], log: EventLog | None = None) -> TeamResult:
    """Clients that say these words, averaged in this folder."""
    members = tuple(Agent(name, model=sends(text)) for name, text in words.items())
    protocol = Protocol("all", f"fedavg(folder={json.dumps(str(folder))})")
    team = Team("federation", members, protocol, channels="mesh(carry=weights)")
    return await run(team, "Train.", engine=ScriptedEngine(), log=log or EventLog())


def adapter(folder: Path, name: str, seed: int, rank: int = 2) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(seed)
    tensors = {
        "q.lora_A": draws.normal(size=(rank, 6)).astype(np.float32),
        "q.lora_B": draws.normal(size=(4, rank)).astype(np.float32),
    }
    save_file(tensors, folder / f"{name}.safetensors")
    return tensors


async def test_adapters_are_averaged_by_examples_into_a_file_named_by_its_content(
    tmp_path: Path,
) -> None:
    north, south = adapter(tmp_path, "north", 1), adapter(tmp_path, "south", 2)
    words = {
        "n": '{"file": "north.safetensors", "examples": 30}',
        "s": 'Done: {"file": "south.safetensors", "examples": 10}',
    }
    first, second = await ran(tmp_path, words), await ran(tmp_path, words)
    assert first.result == second.result
    said = json.loads(str(first.result))
    assert said["examples"] == 40
    mean = load_file(tmp_path / said["file"])
    for key in north:
        assert mean[key].dtype == np.float32
        np.testing.assert_allclose(mean[key], 0.75 * north[key] + 0.25 * south[key], atol=1e-7)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ('{"file": "../secret.safetensors"}', "String should match pattern"),
        ('{"file": "absent.safetensors"}', "cannot be read: FileNotFoundError"),
        ('{"file": "damaged.safetensors"}', "cannot be read: SafetensorError"),
        ('{"file": "endless.safetensors"}', "not finite"),
        ("I have no weights.", "Field required"),
    ],
)
async def test_what_cannot_be_read_is_left_out_and_logged(
    tmp_path: Path, word: str, reason: str
) -> None:
    adapter(tmp_path, "north", 1)
    save_file({"q.lora_A": np.array([np.inf])}, tmp_path / "endless.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x09" * 40)
    with EventLog() as log:
        result = await ran(tmp_path, {"n": '{"file": "north.safetensors"}', "x": word}, log)
        (note,) = (event.body for event in log.events("note"))
    assert reason in note["refused"]["x"]
    assert json.loads(str(result.result))["examples"] == 1


async def test_adapters_of_other_shapes_have_no_mean(tmp_path: Path) -> None:
    adapter(tmp_path, "north", 1)
    adapter(tmp_path, "south", 2, rank=3)
    words = {name: f'{{"file": "{name}.safetensors"}}' for name in ("north", "south")}
    assert (await ran(tmp_path, words)).outcome == "undecided"


def test_numbers_are_averaged_by_examples() -> None:
    words = [
        ("a", '{"weights": {"w": [1, 2]}, "examples": 3}'),
        ("b", '{"weights": {"w": [5, 6]}}'),
    ]
    assert json.loads(str(averaged(words).result)) == {"weights": {"w": [2.0, 3.0]}, "examples": 4}


async def test_shared_pools_are_averaged_and_load_as_an_adapter(tmp_path: Path) -> None:
    import torch

    from shoal.models.adapters.files import load, save
    from shoal.models.adapters.registry import new

    model = torch.nn.ModuleDict(
        {str(k): torch.nn.ModuleDict({"fc": torch.nn.Linear(8, 8)}) for k in range(3)}
    )
    sizes = {"e": 2, "r": 3, "p": 1, "l": 2, "targets": ["fc"]}
    made = {}
    for number, (name, seed) in enumerate((("north", 5), ("south", 5), ("other", 6))):
        made[name] = new("mos", model, seed=seed, **sizes)
        with torch.no_grad():
            made[name].tensors["fc.B"].fill_(float(number + 1))
        save(made[name], tmp_path / f"{name}.safetensors")
    words = {name: f'{{"file": "{name}.safetensors"}}' for name in ("north", "south")}
    said = json.loads(str((await ran(tmp_path, words)).result))
    mean = load(tmp_path / said["file"], model)
    assert torch.equal(mean.tensors["fc.B"], torch.full((12, 4), 1.5))
    assert mean.options == made["north"].options
    words = {name: f'{{"file": "{name}.safetensors"}}' for name in ("north", "other")}
    assert (await ran(tmp_path, words)).outcome == "undecided"
