"""Claims: what each published system promises, measured again beside its baseline.

A claim is one file ``benchmarks/<name>.py`` with one function, ``run(bench: Bench) -> None``.
It adds arms, verdicts and plots to the bench; the framework writes ``result.json``,
``report.md`` and the plots. ``shoal reproduce NAME`` runs it.
"""

from shoal.core.claims.bench import Bench
from shoal.core.claims.records import Arm, Environment, Result, Threshold, Verdict
from shoal.core.claims.systems import SYSTEMS, System, find_system
from shoal.core.claims.timing import Timing, alternate

__all__ = [
    "SYSTEMS",
    "Arm",
    "Bench",
    "Environment",
    "Result",
    "System",
    "Threshold",
    "Timing",
    "Verdict",
    "alternate",
    "find_system",
]
