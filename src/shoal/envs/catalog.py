"""Environments by name; what they need is imported when one is opened."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from shoal.core.errors import ConfigError, nearest
from shoal.envs.protocol import Environment

ENVIRONMENTS: Mapping[str, str] = {
    "arithmetic": "shoal.envs.strategies:Arithmetic",
    "bfcl": "shoal.envs.bfcl:Bfcl",
    "company": "shoal.envs.company.environment:Company",
    "frozen-lake": "shoal.envs.toy_text:FrozenLake",
    "minigrid": "shoal.envs.minigrid:MiniGrid",
    "reasoning": "shoal.envs.reasoning:Reasoning",
    "strategies": "shoal.envs.strategies:Strategies",
    "taxi": "shoal.envs.toy_text:Taxi",
    "textarena": "shoal.envs.textarena:TextArena",
    "tool-world": "shoal.envs.tool_world:ToolWorld",
    "textworld-express": "shoal.envs.textworld_express:TextWorldExpress",
}
"""Names, and where their classes are."""


def open_environment(name: str, options: Mapping[str, Any] | None = None) -> Environment:
    """An environment by name.

    Raises :class:`ConfigError`, naming the nearest, for a name or an option there is not, and
    :class:`MissingExtra` where the package behind it is not installed.
    """
    if name not in ENVIRONMENTS:
        raise ConfigError(
            f"There is no environment {name!r}: take one of {', '.join(ENVIRONMENTS)}."
            f"{nearest(name, ENVIRONMENTS)}"
        )
    module, _, cls = ENVIRONMENTS[name].partition(":")
    kind = getattr(importlib.import_module(module), cls)
    given = dict(options or {})
    known = list(inspect.signature(kind).parameters)
    if wrong := sorted(given.keys() - set(known)):
        raise ConfigError(
            f"The environment {name} has no option {wrong[0]!r}.{nearest(wrong[0], known)}"
        )
    env: Environment = kind(**given)
    return env
