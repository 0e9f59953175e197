"""Agents, channels, protocols, teams and the scheduler that runs them."""

from shoal.agents.config import dump_team, parse_team
from shoal.agents.events import OnEvent, TeamEvent, TeamResult
from shoal.agents.library import load_team, packaged_teams
from shoal.agents.material import Material
from shoal.agents.replay import Difference, diff, replay
from shoal.agents.scheduler import run
from shoal.agents.team import Agent, Channel, Protocol, Script, Team

__all__ = [
    "Agent",
    "Channel",
    "Difference",
    "Material",
    "OnEvent",
    "Protocol",
    "Script",
    "Team",
    "TeamEvent",
    "TeamResult",
    "diff",
    "dump_team",
    "load_team",
    "packaged_teams",
    "parse_team",
    "replay",
    "run",
]
