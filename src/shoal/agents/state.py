"""What has happened so far in one team's run: kept up to date, read by all rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.agents.channels import Wiring, lay
from shoal.agents.rewires import Change, benched
from shoal.agents.team import Agent, Member, Team, copies_of
from shoal.core.errors import ConfigError
from shoal.core.records import Step


class State:
    """A team at work. Rules read it and never change it; only :meth:`record` and
    :meth:`end_superstep` do.

    names      members in the order they were declared, copies included
    copies     declared member -> the names of its copies (itself where there is one)
    said       name -> its answers, oldest first (choices and failures are no answers)
    active     who takes part now; ``names`` lists them in the order declared
    roles      name -> the role a rewire gave it
    stake      what prompts say about the payoff
    superstep  the one to come; place: its place in its round, from 0; rounds: those completed;
    turns      those taken; tokens, calls: what they have cost, turns inside teams included
    speakers   who has had a turn so far; out: who has no budget left for another
    """

    def __init__(self, team: Team, *, parts: int = 0, seed: int = 0) -> None:
        self.team = team
        self.seed = seed
        self.copies: dict[str, tuple[str, ...]] = {
            member.name: copies_of(member, max(1, parts)) for member in team.members
        }
        self.everyone: tuple[str, ...] = tuple(
            name for names in self.copies.values() for name in names
        )
        if len(set(self.everyone)) < len(self.everyone):
            twice = next(name for name in self.everyone if self.everyone.count(name) > 1)
            raise ConfigError(f"Team {team.name!r} has two members named {twice!r}: rename one.")
        self.member: dict[str, Member] = {
            name: member for member in team.members for name in self.copies[member.name]
        }
        self.wiring = Wiring(lay(team.channels, team.names), self.copies)
        self.said: dict[str, list[Step]] = {name: [] for name in self.everyone}
        self.choices: dict[str, list[Step]] = {}
        self.roles: dict[str, str] = {}
        self.stake = ""
        self.active: frozenset[str] = frozenset(self.everyone)
        self.names = self.everyone
        self._carried: Mapping[str, Sequence[Step]] = self.said
        absent = {name for member in benched(team) for name in self.copies[member]}
        if absent:
            self._seat(self.active - absent)
        self.speakers: set[str] = set()
        self.out: set[str] = set()
        self.superstep = 0
        self.place = 0
        self.rounds = 0
        self.turns = 0
        self.tokens = 0
        self.calls = 0

    def part_of(self, name: str) -> int | None:
        """Which part of the material a copy reads; None where it does not read just one."""
        member = self.member[name]
        if isinstance(member, Agent) and member.reads == "part":
            return self.copies[member.name].index(name)
        return None

    def names_except(self, members: Sequence[str]) -> tuple[str, ...]:
        """Names in declared order without these members and their copies."""
        if not members:
            return self.names
        return tuple(name for name in self.names if self.member[name].name not in members)

    def last(self, name: str) -> Step | None:
        """A member's last answer."""
        said = self.said[name]
        return said[-1] if said else None

    def choice_of(self, name: str, *, at: int) -> str | None:
        """What a member chose in superstep ``at``; None where it made no choice then."""
        made = self.choices_of(name)
        return str(made[-1].data["choice"]) if made and made[-1].superstep == at else None

    def choices_of(self, name: str) -> Sequence[Step]:
        """All choices a member made, oldest first."""
        return self.choices.get(name, ())

    def carried(self) -> Mapping[str, Sequence[Step]]:
        """What channels may carry: the answers of those who take part."""
        return self._carried

    def proposals(self) -> tuple[Step, ...]:
        """The last answer of everybody who takes part, oldest first, then by name."""
        last = [said[-1] for said in self._carried.values() if said]
        return tuple(sorted(last, key=lambda step: (step.superstep, step.member)))

    def rewire(self, change: Change) -> None:
        """Let members leave, join or change their roles."""
        self.place = 0
        self._seat((self.active | set(change.join)) - set(change.leave))
        self.roles.update(change.roles)

    def _seat(self, active: frozenset[str]) -> None:
        self.active = active
        self.names = tuple(name for name in self.everyone if name in active)
        self._carried = {name: said if name in active else () for name, said in self.said.items()}

    def record(self, name: str, step: Step) -> None:
        """Take note of one turn."""
        self.turns += 1
        inside = step.data.get("inside", {})
        self.tokens += inside.get("tokens", step.usage.asked_tokens)
        asked = int(step.data.get("attempts", 1)) + int(step.data.get("requests", 1)) - 1
        self.calls += inside.get("calls", asked)
        self.speakers.add(name)
        if step.finish == "budget" or step.data.get("hand_back"):
            self.out.add(name)
        if step.finish == "error" or (step.finish == "budget" and not step.output):
            return
        if "choice" in step.data:
            self.choices.setdefault(name, []).append(step)
        else:
            self.said[name].append(step)

    def end_superstep(self, *, ends_round: bool) -> None:
        """Close the superstep."""
        self.superstep += 1
        self.rounds += ends_round
        self.place = 0 if ends_round else self.place + 1
