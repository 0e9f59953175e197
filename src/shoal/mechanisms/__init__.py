"""Mechanisms: ways to decide and to pay in a group whose agents may say what suits them."""

from shoal.mechanisms.protocol import (
    Audit,
    Counterexample,
    Decision,
    Mechanism,
    Opening,
    Report,
    ReportError,
    Settlement,
)
from shoal.mechanisms.round import Round, stakes

__all__ = [
    "Audit",
    "Counterexample",
    "Decision",
    "Mechanism",
    "Opening",
    "Report",
    "ReportError",
    "Round",
    "Settlement",
    "stakes",
]
