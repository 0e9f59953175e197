"""Environments: worlds that agents act in, behind one protocol."""

from shoal.envs.catalog import ENVIRONMENTS, open_environment
from shoal.envs.protocol import BadEnvironment, Demonstrates, Environment, Transition

__all__ = [
    "ENVIRONMENTS",
    "BadEnvironment",
    "Demonstrates",
    "Environment",
    "Transition",
    "open_environment",
]
