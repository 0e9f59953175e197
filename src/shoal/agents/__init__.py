"""Agents, channels, protocols, teams and the scheduler that runs them."""

from shoal.agents.config import dump_team, parse_team
from shoal.agents.events import OnEvent, TeamEvent, TeamResult
from shoal.agents.library import load_team, packaged_teams
from shoal.agents.material import Material
from shoal.agents.outside import Human, Question, Remote
from shoal.agents.replay import Difference, diff, replay
from shoal.agents.report import Comparison, SharingReport, compare, sharing_report
from shoal.agents.room import Room, material_room
from shoal.agents.scheduler import run
from shoal.agents.team import Agent, Channel, Protocol, Script, Team, World
from shoal.agents.tools import tool
from shoal.tools.functions import Tool

__all__ = [
    "Agent",
    "Channel",
    "Comparison",
    "Difference",
    "Human",
    "Material",
    "OnEvent",
    "Protocol",
    "Question",
    "Remote",
    "Room",
    "Script",
    "SharingReport",
    "Team",
    "TeamEvent",
    "TeamResult",
    "Tool",
    "World",
    "compare",
    "diff",
    "dump_team",
    "load_team",
    "material_room",
    "packaged_teams",
    "parse_team",
    "replay",
    "run",
    "sharing_report",
    "tool",
]
