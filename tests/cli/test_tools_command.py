"""`shoal tools`: import a description, find a tool in it, look at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.errors import ConfigError, InputError

PATHS = {
    "/pets": {
        "get": {"operationId": "listPets", "description": "Lists the pets of the shop."},
        "post": {
            "operationId": "addPet",
            "description": "Adds a pet to the shop.",
            "parameters": [{"name": "name", "in": "query", "required": True, "type": "string"}],
        },
    },
    "/owners": {"delete": {"operationId": "removeOwner", "description": "Removes an owner."}},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    document = {"openapi": "3.1.0", "info": {"title": "Pets", "version": "1"}, "paths": PATHS}
    (tmp_path / "pets.json").write_text(json.dumps(document))


def shoal(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["tools", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def as_json(*arguments: object) -> Any:
    return json.loads(shoal(*arguments, "--json"))


def test_import_search_and_show(tmp_path: Path) -> None:
    (row,) = as_json("import", "pets", "--from", tmp_path / "pets.json")
    assert (row["name"], row["tools"], row["served"], row["refused"]) == ("pets", 3, 0, [])
    assert "3 tools, 0 served" in shoal("import", "pets", "--from", tmp_path / "pets.json")
    found = as_json("search", "list the pets and remove the owner", "-k", 2)
    assert found["steps"] == ["list the pets", "remove the owner"]
    assert [tool["name"] for tool in found["tools"]] == ["pets.listPets", "pets.removeOwner"]
    shown = as_json("show", "pets.addPet")
    assert shown["side_effect"] == "write" and shown["parameters"]["required"] == ["name"]
    assert shown["version"] == as_json("search", "add a pet", "-k", 1)["tools"][0]["version"]
    assert "name*: string" in shoal("show", "pets.addPet")
    printed = shoal("search", "list the pets and remove the owner", "--embedder", "none")
    assert "pets.listPets" in printed and "2. " in printed


def test_stages_can_be_left_out_and_budgets_kept(tmp_path: Path) -> None:
    shoal("import", "pets", "--from", tmp_path / "pets.json")
    whole = "list the pets and remove the owner"
    found = as_json("search", whole, "--without", "decompose", "--embedder", "none")
    assert found["steps"] == [whole]
    tight = as_json("search", whole, "--budget", 1, "--embedder", "none")
    assert tight["tools"] == [] and len(tight["over"]) >= 2
    assert "do not fit" in shoal("search", whole, "--budget", 1, "--embedder", "none")
    assert "No tool matches" in shoal("search", "the of", "--embedder", "none")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["search", "x"], InputError, "No tools are imported yet"),
        (["show", "x"], InputError, "No tools are imported yet"),
        (["import", "pets"], InputError, "What is 'pets'"),
        (["import", "a", "b", "--from", "x"], ConfigError, "one name"),
        (["search", "x", "--without", "searching"], ConfigError, "Did you mean 'search'"),
        (["search", "x", "--embedder", "word2vec"], ConfigError, "no embedding model 'word2vec'"),
    ],
)
def test_what_a_user_gets_wrong(arguments: list[str], error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        shoal(*arguments)
