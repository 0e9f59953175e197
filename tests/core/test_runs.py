"""Run folders: made whole, listed in order, found by beginnings of their ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.core.errors import InputError
from shoal.core.runs import Run, create_run, find_run, list_runs


def test_a_run_has_its_configuration_before_anything_else(tmp_path: Path) -> None:
    run = create_run({"team": "reading-room", "seed": 3}, root=tmp_path)
    assert run.config() == {"team": "reading-room", "seed": 3}
    assert not (run.folder / "log.sqlite").exists()
    with run.log() as log:
        log.append("note", {"text": "here"})
    assert (run.folder / "log.sqlite").is_file()


def test_runs_are_listed_oldest_first_and_found_by_beginning(tmp_path: Path) -> None:
    made = [create_run({"n": n}, root=tmp_path) for n in range(3)]
    (tmp_path / "not-a-run").mkdir()
    assert list(list_runs(root=tmp_path)) == made
    assert find_run("last", root=tmp_path) == made[-1]
    assert find_run(made[1].id, root=tmp_path) == made[1]
    assert find_run(made[1].id[:12], root=tmp_path) == made[1]


def test_unknown_and_ambiguous_ids_are_refused(tmp_path: Path) -> None:
    runs = [create_run({}, root=tmp_path) for _ in range(2)]
    with pytest.raises(InputError, match=r"beginning of 2 run ids"):
        find_run(runs[0].id[:3], root=tmp_path)
    near = runs[0].id[:-1] + "!"
    with pytest.raises(InputError, match=f"no run.*{runs[0].id}"):
        find_run(near, root=tmp_path)
    with pytest.raises(InputError, match=r"no run 'last'"):
        find_run("last", root=tmp_path / "empty")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = ", None])
def test_an_unreadable_configuration_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"no readable config\.toml"):
        Run("r1", tmp_path).config()


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Cannot create the run folder"):
        create_run({}, root=tmp_path / "file")
