"""A run while it happens: who is speaking, what is said, how fast, what budget is left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from shoal.agents import Question, Team, TeamEvent, TeamResult
from shoal.agents.events import (
    RunEnded,
    RunStarted,
    SuperstepEnded,
    SuperstepStarted,
    TurnDelta,
    TurnEnded,
    TurnFailed,
    TurnStarted,
)
from shoal.agents.outside import at_terminal
from shoal.cli.topology import canvas
from shoal.core.budget import Limits


@dataclass(slots=True)
class _Speaker:
    started: float = field(default_factory=time.perf_counter)
    text: str = ""
    pieces: int = 0
    first: float | None = None

    @property
    def speed(self) -> float:
        """Pieces of text a second since the first one; a piece is about a token."""
        if self.first is None or self.pieces < 2:
            return 0.0
        return (self.pieces - 1) / max(time.perf_counter() - self.first, 1e-6)


class LiveView:
    """Draws events on a terminal; on anything else it prints a line per finished turn.

    With a ``team`` its topology is drawn above, with who is speaking.
    """

    def __init__(
        self,
        console: Console,
        *,
        quiet: bool = False,
        title: str = "",
        team: Team | None = None,
    ) -> None:
        self._team = team
        self._turns: dict[str, int] = {}
        self._console = console
        self._quiet = quiet
        self._title = title
        self._speaking: dict[str, _Speaker] = {}
        self._superstep = 0
        self._left = Limits()
        self.result: TeamResult | None = None
        self._live = (
            Live(console=console, get_renderable=self._draw, refresh_per_second=8, transient=True)
            if console.is_terminal and not quiet
            else None
        )

    def __enter__(self) -> LiveView:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: TeamEvent) -> None:
        """Take note of an event; what lasts is printed at once, the ``result`` is kept."""
        if isinstance(event, RunEnded):
            self.result = event.result
        if self._quiet:
            return
        match event:
            case RunStarted(run_id=run_id, team=team, recorded=recorded):
                again = f", {recorded} turns are in its log" if recorded else ""
                title = f", {self._title}" if self._title else ""
                self._console.print(f"[dim]run {run_id}: team {team}{title}{again}[/]")
            case SuperstepStarted(superstep=superstep):
                self._superstep = superstep
            case TurnStarted(member=member):
                self._speaking[member] = _Speaker()
            case TurnDelta(member=member, text=text):
                speaker = self._speaking.setdefault(member, _Speaker())
                speaker.first = speaker.first or time.perf_counter()
                speaker.text += text
                speaker.pieces += 1
            case TurnFailed(member=member, error=error, action=action):
                self._speaking.pop(member, None)
                self._console.print(Text(f"{member} failed ({action}): {error}", "yellow"))
            case TurnEnded(step=step):
                self._speaking.pop(step.member, None)
                member = self._declared(step.member)
                self._turns[member] = self._turns.get(member, 0) + 1
                said = Text.assemble(
                    (f"{step.member}", "bold cyan"), (f" ({step.superstep}) ", "dim")
                )
                self._console.print(said + Text(step.output.strip()))
            case SuperstepEnded(left=left):
                self._left = left
            case _:
                pass

    def _draw(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        for name, speaker in self._speaking.items():
            waiting = speaker.first is None
            seconds = time.perf_counter() - speaker.started
            what = f"reading {seconds:.0f} s" if waiting else f"{speaker.speed:.0f} tok/s"
            table.add_row(
                Spinner("dots"),
                Text(name, "bold cyan"),
                Text(what, "dim"),
                Text(speaker.text.replace("\n", " ")[-70:]),
            )
        foot = Text(f"step {self._superstep}  {_left(self._left)}", "dim")
        if self._team is None:
            return Group(table, foot)
        speaking = {self._declared(path) for path in self._speaking}
        return Group(canvas(self._team, speaking, self._turns), table, foot)

    def ask(self, question: Question) -> str:
        """Ask a person at the terminal, without drawing meanwhile."""
        if self._live:
            self._live.stop()
        try:
            return at_terminal(question)
        finally:
            if self._live:
                self._live.start()

    def _declared(self, path: str) -> str:
        """The outermost team's member that a path stands for: copies and inner members too."""
        name = path.partition("/")[0]
        if self._team is None or name in self._team.names:
            return name
        return name.rpartition("-")[0]


def _left(left: Limits) -> str:
    parts = [
        f"{value:,.0f} {name}"
        for name, value in (("tokens", left.tokens), ("calls", left.calls), ("s", left.seconds))
        if value is not None
    ]
    return f"budget left: {', '.join(parts)}" if parts else "no budget set"
