"""Prepared models: made once whoever asks, found again, remade when damaged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.core.errors import ModelError
from shoal.models import prepared
from shoal.models.loading import load

SaveTiny = Callable[..., tuple[Any, Path]]


@pytest.fixture
def tiny_gguf(save_tiny: SaveTiny, save_gguf: Callable[..., Path]) -> Path:
    reference, _ = save_tiny("llama", hidden_size=64, intermediate_size=96)
    return save_gguf(reference)


def test_a_second_load_does_not_read_the_gguf_file(
    tiny_gguf: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(str(tiny_gguf))
    monkeypatch.setattr(prepared, "GGUFFile", None)
    second = load(str(tiny_gguf))
    assert second.fingerprint == first.fingerprint
    assert second.config == first.config
    for name, weight in first.decoder.weights.items():
        assert torch.equal(weight, second.decoder.weights[name])


def test_formats_are_kept_apart(tiny_gguf: Path, own_cache: Path) -> None:
    wide, narrow = load(str(tiny_gguf), dtype="fp32"), load(str(tiny_gguf), dtype="bf16")
    assert wide.decoder.dtype == torch.float32
    assert narrow.decoder.dtype == torch.bfloat16
    assert wide.fingerprint != narrow.fingerprint
    assert len(list(own_cache.rglob("*.safetensors"))) == 2


def test_a_changed_file_is_another_model(tiny_gguf: Path, own_cache: Path) -> None:
    before = load(str(tiny_gguf)).fingerprint
    content = bytearray(tiny_gguf.read_bytes())
    content[-1] ^= 1
    tiny_gguf.write_bytes(content)
    assert load(str(tiny_gguf)).fingerprint != before


@pytest.mark.parametrize("pattern", ["*-v*.json", "*.safetensors"])
def test_damaged_files_are_made_again(tiny_gguf: Path, own_cache: Path, pattern: str) -> None:
    first = load(str(tiny_gguf))
    embed = first.decoder.weights["embed"].clone()
    (damaged,) = own_cache.rglob(pattern)
    content = damaged.read_bytes()
    damaged.unlink()  # the first model still has it mapped
    damaged.write_bytes(content[: len(content) // 2])
    assert torch.equal(load(str(tiny_gguf)).decoder.weights["embed"], embed)


def test_processes_that_load_at_once_prepare_once(tiny_gguf: Path, own_cache: Path) -> None:
    script = (
        "import sys\n"
        "from shoal.models.loading import load\n"
        "seen = []\n"
        "model = load(sys.argv[1], progress=lambda what, done, total: seen.append(what))\n"
        "print(bool(seen), float(model.decoder.weights['embed'].float().sum()))\n"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tiny_gguf)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    answers = [run.communicate(timeout=120)[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert sorted(answer[0] for answer in answers) == ["False", "False", "True"]
    assert len({answer[1] for answer in answers}) == 1
    assert not [path for path in own_cache.rglob(".*") if path.is_file()], "nothing half-made"


def test_a_cache_folder_that_cannot_be_written_is_named(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cache folder"):
        load(str(tiny_gguf))
