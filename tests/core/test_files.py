"""Files are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from shoal.core import files


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with files.atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"
    assert os.listdir(target.parent) == ["file.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    files.write_text(target, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(target, "new, but \ud800 is no text")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_files_are_readable_by_others_as_usual(tmp_path: Path) -> None:
    files.write_text(tmp_path / "file.txt", "ä")
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "file.txt").read_bytes() == "ä".encode()


def test_sha256_reads_the_whole_file(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "blob").write_bytes(content)
    assert files.sha256(tmp_path / "blob") == hashlib.sha256(content).hexdigest()


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path
