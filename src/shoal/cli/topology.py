"""A team on a terminal: members on a canvas of characters, channels as lines, speakers lit up."""

from __future__ import annotations

from collections.abc import Mapping, Set

from rich.text import Text

from shoal.agents import Team
from shoal.agents.picture import edges_of, places_of

WIDTH, HEIGHT = 72, 17
MOST = 24
"""Members that can still be told apart on the canvas."""


def canvas(
    team: Team,
    speaking: Set[str] = frozenset(),
    turns: Mapping[str, int] | None = None,
    absent: Set[str] = frozenset(),
) -> Text:
    """The team as lines of characters.

    ``speaking`` are lit up, and so are the channels they hear by; ``turns`` counts those taken;
    who is ``absent`` takes no part now. A member's copies are one dot. Empty for teams that are
    too large to draw.
    """
    if len(team.names) > MOST:
        return Text()
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    style = [[""] * WIDTH for _ in range(HEIGHT)]
    longest = max(map(len, team.names)) + 8
    spots = {
        name: (
            round(longest / 2 + x * (WIDTH - longest - 1)),
            round(y * (HEIGHT - 1)),
        )
        for name, (x, y) in places_of(team).items()
    }
    edges = sorted(edges_of(team), key=lambda edge: edge[1] in speaking)
    for src, dst, _ in edges:
        lit = dst in speaking
        _line(grid, style, spots[src], spots[dst], "cyan" if lit else "dim")
    for name, (x, y) in spots.items():
        mark = "●" if name in speaking else "×" if name in absent else "○"
        count = (turns or {}).get(name, 0)
        label = f" {mark} {name}{f' {count}' if count else ''} "
        how = "bold cyan" if name in speaking else "dim" if name in absent else "bold"
        start = max(0, min(WIDTH - len(label), x - len(label) // 2))
        for i, character in enumerate(label):
            grid[y][start + i], style[y][start + i] = character, how
    drawn = Text()
    for row, styles in zip(grid, style, strict=True):
        for character, how in zip(row, styles, strict=True):
            drawn.append(character, how)
        drawn.append("\n")
    return drawn


def _line(
    grid: list[list[str]],
    style: list[list[str]],
    a: tuple[int, int],
    b: tuple[int, int],
    how: str,
) -> None:
    steps = max(abs(b[0] - a[0]), abs(b[1] - a[1]), 1)
    for i in range(1, steps):
        x = round(a[0] + (b[0] - a[0]) * i / steps)
        y = round(a[1] + (b[1] - a[1]) * i / steps)
        grid[y][x], style[y][x] = "·", how
