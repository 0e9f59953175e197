"""Catalogues: what is written is read back, names are unique, damage is set aside."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from described import SHOP, library_folder, museum_folder

from shoal.core.errors import InputError
from shoal.core.records import ToolSpec
from shoal.tools import sources
from shoal.tools.catalogue import Catalogue, DamagedCatalogue, write

ADD = ToolSpec("a.b.Add", "Adds.", {"type": "object", "properties": {"x": {}}}, origin="first")
DROP = ToolSpec("a.b.Drop", "Drops.", side_effect="destroy", origin="first", served=False)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tools"


def test_tools_come_back_as_they_were(tmp_path: Path) -> None:
    made = write([ADD, DROP], tmp_path / "x.sqlite")
    again = Catalogue([tmp_path / "x.sqlite"])
    for one in (made, again):
        assert list(one) == [ADD, DROP]
        assert one[DROP.name] == DROP and one.names == (ADD.name, DROP.name)
        assert (len(one), one.served, "a.b.Add" in one) == (2, 1, True)
        assert one.versions == {ADD.name: ADD.version, DROP.name: DROP.version}


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    made = write([ADD, DROP], tmp_path / "x.sqlite")
    with pytest.raises(InputError, match=r"no tool 'a\.b\.Dorp'\. Did you mean 'a\.b\.Drop'"):
        made["a.b.Dorp"]


def test_of_two_tools_with_one_name_the_first_is_kept_and_both_origins_are_told(
    tmp_path: Path,
) -> None:
    other = replace(ADD, description="Subtracts.", origin="second")
    one = write([ADD, other], tmp_path / "x.sqlite")
    two = write([other, DROP], tmp_path / "y.sqlite")
    for made in (one, Catalogue([tmp_path / "x.sqlite"])):
        assert [made[name].description for name in made.names] == ["Adds."]
        (refusal,) = made.refused
        assert str(refusal) == (
            "There are two tools 'a.b.Add': the one of first is kept, the one of second is refused."
        )
    both = Catalogue.joined([one, two])
    assert [spec.description for spec in both] == ["Adds.", "Drops."]
    assert len(both.refused) == 2


def test_the_digest_is_of_what_tools_are(tmp_path: Path) -> None:
    one = write([ADD, DROP], tmp_path / "1.sqlite")
    swapped = write([DROP, replace(ADD, origin="elsewhere")], tmp_path / "2.sqlite")
    changed = write([replace(ADD, description="Adds two."), DROP], tmp_path / "3.sqlite")
    assert one.digest == swapped.digest != changed.digest


def test_an_import_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> object:
        yield ADD
        raise InputError("The line went dead.")

    with pytest.raises(InputError):
        write(broken(), tmp_path / "x.sqlite")  # type: ignore[arg-type]
    assert list(tmp_path.glob("*.sqlite*")) == [] and list(tmp_path.glob(".*")) == []


def test_a_catalogue_is_imported_once_and_again_when_its_source_changes(
    tmp_path: Path, cache: Path
) -> None:
    place = tmp_path / "shop.json"
    place.write_text(json.dumps(SHOP))
    first = sources.load("shop", str(place))
    assert len(first) == 3
    written = first.paths[0].stat().st_mtime_ns
    assert sources.load("shop", str(place)).paths[0].stat().st_mtime_ns == written
    shop = json.loads(json.dumps(SHOP))
    del shop["paths"]["/orders"]
    place.write_text(json.dumps(shop))
    second = sources.load("shop", str(place))
    assert len(second) == 2 and list(cache.glob("*.sqlite")) == list(second.paths)


@pytest.mark.parametrize("damage", ["text", "empty", "format"])
def test_a_damaged_file_is_set_aside_and_made_anew(
    tmp_path: Path, cache: Path, damage: str
) -> None:
    place = tmp_path / "shop.json"
    place.write_text(json.dumps(SHOP))
    (path,) = sources.load("shop", str(place)).paths
    if damage == "format":
        with sqlite3.connect(path) as file:
            file.execute("UPDATE facts SET value = '0' WHERE name = 'format'")
    else:
        path.write_bytes(b"not a database" * 100 if damage == "text" else b"")
    with pytest.raises(DamagedCatalogue):
        Catalogue([path])
    assert len(sources.load("shop", str(place))) == 3
    assert path.with_suffix(".damaged").exists()


def test_catalogues_of_folders_and_all_of_them_together(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No tools are imported yet"):
        sources.everything()
    sources.load("aws", str(museum_folder(tmp_path / "boto")))
    sources.load("google", str(library_folder(tmp_path / "discovery")))
    assert set(sources.imported()) == {"aws", "google"}
    assert len(sources.everything()) == 3 + 4


@pytest.mark.parametrize(
    ("name", "place", "says"),
    [
        ("My Shop", None, "A catalogue's name is like"),
        ("githup", None, r"What is 'githup'.*Did you mean 'github'"),
        ("aws", "/nowhere", "neither a folder nor a wheel"),
        ("google", "/nowhere", "no file or folder /nowhere"),
    ],
)
def test_sources_nobody_can_read(name: str, place: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        sources.load(name, place)


def test_a_source_without_a_tool_is_no_catalogue(tmp_path: Path, cache: Path) -> None:
    place = tmp_path / "empty.json"
    place.write_text('{"paths": {}}')
    with pytest.raises(InputError, match=r"describes no tool: check .*empty\.json"):
        sources.load("empty", str(place))
    assert list(cache.glob("*")) == []
