"""Digests are right, remembered, and forgotten when a file changes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from shoal.core.errors import ModelError
from shoal.models import digests
from shoal.models.digests import combined, digest


def test_a_file_is_read_once(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"fish")
    assert digest(path) == hashlib.sha256(b"fish").hexdigest()
    monkeypatch.setattr(digests, "sha256", None)
    assert digest(path) == hashlib.sha256(b"fish").hexdigest()


@pytest.mark.parametrize("content", [b"fowl", b"fishes"])
def test_a_changed_file_is_read_again(content: bytes, tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"fish")
    os.utime(path, ns=(0, 0))
    digest(path)
    path.write_bytes(content)
    assert digest(path) == hashlib.sha256(content).hexdigest()


def test_a_damaged_record_does_not_matter(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"fish")
    digest(path)
    for record in own_cache.rglob("*.json"):
        record.write_text("{")
    assert digest(path) == hashlib.sha256(b"fish").hexdigest()


def test_several_files_have_one_digest_whatever_their_order(
    tmp_path: Path, own_cache: Path
) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text(path.name)
    whole = combined(paths)
    assert whole == combined(paths[::-1])
    paths[1].write_text("other")
    assert combined(paths) != whole


def test_a_missing_file_is_named(tmp_path: Path, own_cache: Path) -> None:
    with pytest.raises(ModelError, match="absent"):
        digest(tmp_path / "absent")
