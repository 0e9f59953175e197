"""Names: packaged models, files, folders, the hub; and what each wrong one is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shoal.core.errors import ModelError
from shoal.models.catalog import find
from shoal.models.loading import load


def test_a_folder_is_called_by_its_name(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find(str(tiny_model))
    assert (source.name, source.kind) == ("tiny", "folder")
    monkeypatch.chdir(tiny_model)
    assert find(".").name == "tiny"


def test_a_gguf_file_is_called_by_its_stem(tmp_path: Path) -> None:
    (tmp_path / "Some-Model.Q4_K.gguf").touch()
    source = find(str(tmp_path / "Some-Model.Q4_K.gguf"))
    assert (source.name, source.kind) == ("Some-Model.Q4_K", "gguf")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pkl"])
def test_pickles_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.touch()
    with pytest.raises(ModelError, match="pickle"):
        find(str(path))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ModelError, match="give the folder"):
        find(str(path))


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"Did you mean 'smollm2-135m'\?"):
        find("smolm2-135")


@pytest.mark.parametrize("name", ["missing.gguf", "./missing", "/no/such/folder", "~/no-such"])
def test_a_missing_path_is_not_taken_for_a_hub_name(name: str) -> None:
    with pytest.raises(ModelError, match="no model file or folder"):
        find(name)


def test_an_unknown_number_format_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="bf16 or fp32"):
        load(str(tiny_model), dtype="int3")


@pytest.fixture
def hub_cache(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache folder with one model in it, and no way out."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--shoal--tiny"
    shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository / "snapshots" / commit


def test_a_cached_hub_model_needs_no_network(hub_cache: Path) -> None:
    model = load("shoal/tiny")
    assert model.name == "shoal/tiny"
    assert model.path == hub_cache


def test_a_half_fetched_hub_model_is_not_used(hub_cache: Path) -> None:
    (hub_cache / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load("shoal/tiny")


def test_a_hub_that_cannot_be_reached_is_said(hub_cache: Path) -> None:
    with pytest.raises(ModelError, match="other/model cannot be fetched from the hub") as raised:
        find("other/model")
    assert "\n" not in str(raised.value)
