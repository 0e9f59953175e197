"""The sandbox: running code nobody wrote by hand, in the best isolation there is here.

DynaSaur (arXiv 2411.01747) lets every action of an agent be a program; this is where such
programs run. ``Sandbox.open(policy)`` gives a session, ``session.run(code, tools)`` an outcome.
"""

from shoal.sandbox.outcome import Outcome
from shoal.sandbox.policy import UNPROTECTED, Callback, NoSandbox, Permit, Policy, reads_only
from shoal.sandbox.process import SessionOver
from shoal.sandbox.tiers import TIERS, Sandbox, Session, Tier

__all__ = [
    "TIERS",
    "UNPROTECTED",
    "Callback",
    "NoSandbox",
    "Outcome",
    "Permit",
    "Policy",
    "Sandbox",
    "Session",
    "SessionOver",
    "Tier",
    "reads_only",
]
