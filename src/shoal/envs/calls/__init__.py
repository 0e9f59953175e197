"""Tool calls as answers: how they are written and read, and which ones were wanted."""

from shoal.envs.calls.answers import Answer, Call, Unreadable
from shoal.envs.calls.dialects import DIALECTS, Dialect, dialect
from shoal.envs.calls.wanted import BadTruth, Wanted, WantedCall

__all__ = [
    "DIALECTS",
    "Answer",
    "BadTruth",
    "Call",
    "Dialect",
    "Unreadable",
    "Wanted",
    "WantedCall",
    "dialect",
]
