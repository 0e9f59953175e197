"""The order of the house: a room imports from rooms above it, never from below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import shoal

ROOMS = (
    "core",
    "models",
    "engine",
    "sandbox",
    "tools",
    "store",
    "memory",
    "agents",
    "synthesis",
    "mechanisms",
    "envs",
    "recsys",
    "collectives",
    "training",
    "diffusion",
    "equivariant",
    "clustering",
    "hub",
    "server",
    "console",
    "cli",
)
HOUSE = Path(shoal.__file__).parent


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports, anywhere in it, for types only or not."""
    package = path.relative_to(HOUSE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_used(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    parts = (module.split(".") for module in imported(path))
    return {part[1] for part in parts if part[0] == "shoal" and len(part) > 1} & set(ROOMS)


def test_every_folder_of_the_house_is_a_known_room() -> None:
    folders = {path.parent.name for path in HOUSE.glob("*/__init__.py")}
    assert folders <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_above(room: str) -> None:
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for path in sorted((HOUSE / room).rglob("*.py")):
        below = rooms_used(path) - allowed
        assert not below, f"{path.relative_to(HOUSE)} imports from {', '.join(sorted(below))}"
