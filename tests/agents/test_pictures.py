"""Topologies as edges, on a terminal, and as the pictures in the documentation."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from test_rows import ROWS, TEAMS, Row, python_rows, team_of
from traces import members, protocol

from shoal.agents import Agent, Channel, Team, load_team
from shoal.agents.picture import edges_of, places_of, svg
from shoal.cli.topology import HEIGHT, canvas

PICTURES = TEAMS.parents[1] / "docs" / "pictures"


def test_edges_are_those_of_the_channels() -> None:
    team = Team("t", members("a", "b", "c"), protocol(), channels="star(b, carry=kv)")
    assert set(edges_of(team)) == {
        ("a", "b", "kv"), ("c", "b", "kv"), ("b", "a", "kv"), ("b", "c", "kv"),
    }  # fmt: skip
    assert places_of(team)["b"] == (0.5, 0.5)
    one = Team("t", members("a", "b"), protocol(), channels=(Channel("*", "b"),))
    assert edges_of(one) == (("a", "b", "text"),)


def test_a_line_is_drawn_as_a_line() -> None:
    team = Team("t", members("a", "b", "c"), protocol(), channels="chain")
    assert [y for _, y in places_of(team).values()] == [0.5] * 3


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number:02}-{row.name}")
def test_a_picture_shows_every_member_once(row: Row) -> None:
    team = team_of(row)
    root = ElementTree.fromstring(svg(team))
    texts = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [text.split(" ×")[0] for text in texts] == list(team.names)


def test_a_terminal_shows_who_speaks_and_who_is_away() -> None:
    team = Team("t", members("a", "b", "c"), protocol())
    drawn = canvas(team, {"b"}, {"a": 2}, {"c"}).plain
    assert len(drawn.splitlines()) == HEIGHT
    assert "○ a 2" in drawn
    assert "● b" in drawn
    assert "× c" in drawn
    assert canvas(Team("t", tuple(Agent(f"a{i}") for i in range(40)), protocol())).plain == ""


def picture_names() -> list[str]:
    return [path.stem for path in sorted(TEAMS.glob("*.toml"))] + [
        "20-game", "25-federated", "28-remote", "29-town",
    ]  # fmt: skip


@pytest.mark.parametrize("name", picture_names())
def test_the_pictures_in_the_documentation_are_up_to_date(name: str) -> None:
    path = TEAMS / f"{name}.toml"
    rows = python_rows()
    team = load_team(path) if path.exists() else getattr(rows, name[3:])
    if callable(team):
        team = team("http://example.org")
    assert (PICTURES / f"{name}.svg").read_text(encoding="utf-8") == svg(team)
