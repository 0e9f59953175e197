"""A team's topology: who hears whom, as edges for terminals and as a small SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from shoal.agents.channels import EVERYONE, lay
from shoal.agents.reducers import reducers
from shoal.agents.rewires import benched
from shoal.agents.rules import Call, parse
from shoal.agents.team import Agent, Member, Team

SIZE = 220, 150
"""Width and height of a picture, in pixels."""
_RADIUS = 12
_STYLES = {"text": "", "kv": "8 2", "data": "2 3", "logits": "1 4", "weights": "5 3"}


def edges_of(team: Team) -> tuple[tuple[str, str, str], ...]:
    """(who, to whom, what is carried) for all pairs of different members, each once."""
    edges: dict[tuple[str, str], str] = {}
    for channel in lay(team.channels, team.names):
        carry = channel.carry if isinstance(channel.carry, Call) else parse(channel.carry)
        for src in _names(channel.src, team):
            for dst in _names(channel.dst, team):
                if src != dst:
                    edges.setdefault((src, dst), carry.name)
    return tuple((src, dst, carry) for (src, dst), carry in edges.items())


def _names(select: str | tuple[str, ...], team: Team) -> tuple[str, ...]:
    chosen = (select,) if isinstance(select, str) else select
    return team.names if EVERYONE in chosen else chosen


def places_of(team: Team) -> dict[str, tuple[float, float]]:
    """Where members stand, in [0, 1] both ways: on a circle, a hub in its middle, a line level."""
    names, edges = team.names, {(src, dst) for src, dst, _ in edges_of(team)}
    if len(names) == 1:
        return {names[0]: (0.5, 0.5)}
    line = set(itertools.pairwise(names))
    if edges and edges <= line | {(b, a) for a, b in line}:
        return {name: (i / (len(names) - 1), 0.5) for i, name in enumerate(names)}
    hub = _hub(names, edges)
    around = [name for name in names if name != hub]
    places = {hub: (0.5, 0.5)} if hub is not None else {}
    for i, name in enumerate(around):
        angle = 2 * math.pi * i / len(around) - math.pi / 2
        places[name] = (0.5 + 0.5 * math.cos(angle), 0.5 + 0.5 * math.sin(angle))
    return {name: places[name] for name in names}


def _hub(names: Sequence[str], edges: set[tuple[str, str]]) -> str | None:
    """The one member that all channels begin or end at, where there is one."""
    if len(names) < 3 or not edges:
        return None
    return next((name for name in names if all(name in edge for edge in edges)), None)


def svg(team: Team) -> str:
    """A small picture: dots are members, arrows channels; a double dot has copies, a square is a
    team, a dashed dot waits on the bench, a ring around a dot judges."""
    width, height = SIZE
    spots = {
        name: (42 + x * (width - 84), 26 + y * (height - 66))
        for name, (x, y) in places_of(team).items()
    }
    edges = edges_of(team)
    both = {(src, dst) for src, dst, _ in edges}
    lines = [
        _arrow(spots[src], spots[dst], carry, two_ways=(dst, src) in both)
        for src, dst, carry in edges
        if (dst, src) not in both or src < dst
    ]
    judges = reducers.members_of(team.protocol.reduce)
    waiting = benched(team)
    dots = [
        _dot(member, spots[member.name], judges=member.name in judges, out=member.name in waiting)
        for member in team.members
    ]
    title = escape(f"The topology of the team {team.name}")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" font-family="sans-serif">',
            f"<title>{title}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
            'markerHeight="6" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" '
            'fill="#7a8a8a"/></marker></defs>',
            *lines,
            *dots,
            "</svg>\n",
        ]
    )


def _arrow(a: tuple[float, float], b: tuple[float, float], carry: str, *, two_ways: bool) -> str:
    length = math.dist(a, b) or 1.0
    dx, dy = (b[0] - a[0]) / length * (_RADIUS + 3), (b[1] - a[1]) / length * (_RADIUS + 3)
    dash = f' stroke-dasharray="{_STYLES[carry]}"' if _STYLES.get(carry) else ""
    start = ' marker-start="url(#tip)"' if two_ways else ""
    return (
        f'<line x1="{a[0] + dx:.1f}" y1="{a[1] + dy:.1f}" x2="{b[0] - dx:.1f}" '
        f'y2="{b[1] - dy:.1f}" stroke="#7a8a8a" stroke-width="1.4"{dash}{start} '
        'marker-end="url(#tip)"/>'
    )


def _dot(member: Member, spot: tuple[float, float], *, judges: bool, out: bool) -> str:
    x, y = spot
    color = "#e0a030" if judges else "#1b998b"
    style = f'fill="{color}"' if not out else f'fill="none" stroke="{color}" stroke-dasharray="3 2"'
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}" {style}/>'
    if isinstance(member, Team):
        shape = (
            f'<rect x="{x - _RADIUS:.1f}" y="{y - _RADIUS:.1f}" width="{2 * _RADIUS}" '
            f'height="{2 * _RADIUS}" rx="3" {style}/>'
        )
    elif member.copies > 1 or member.reads == "part":
        behind = f'<circle cx="{x + 4:.1f}" cy="{y - 4:.1f}" r="{_RADIUS}" {style} opacity="0.5"/>'
        shape = behind + shape
    name = escape(member.name) + _times(member)
    label = (
        f'<text x="{x:.1f}" y="{y + _RADIUS + 13:.1f}" text-anchor="middle" font-size="10.5" '
        f'fill="#7a8a8a">{name}</text>'
    )
    return shape + label


def _times(member: Member) -> str:
    if isinstance(member, Agent) and (member.copies > 1 or member.reads == "part"):
        return f" ×{'n' if member.reads == 'part' else member.copies}"
    return ""
