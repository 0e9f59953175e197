"""Files of hiring problems: TOML or JSON to a checked problem.

    cap = 1                       # the most one agent can be paid
    prior = [0.5, 0.5]            # of the states
    utility = [[1, 0], [0, 1]]    # of each action in each state
    [[agent]]
    costs = [0, 0.06]             # of each effort
    signals = [                   # by effort and state, how likely each signal is
      [[0.5, 0.5], [0.5, 0.5]],
      [[0.7, 0.3], [0.3, 0.7]],
    ]

That is for agents who err by themselves. Any other problem gives, instead of prior and signals,
``P``: nested lists by the effort of each agent, the state, and the signal of each agent.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.core.errors import InputError, nearest
from shoal.mechanisms.hiring.examples import common_noise, independent_noise
from shoal.mechanisms.hiring.problem import AcquisitionProblem, Floats, problem

NAMED: dict[str, Callable[[], AcquisitionProblem]] = {
    "common-noise": common_noise,
    "independent-noise": independent_noise,
}


class Hireling(BaseModel):
    """One agent: what its efforts cost and what they show."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    costs: list[float] = Field(min_length=1)
    signals: list[list[list[float]]] | None = None


class HiringSheet(BaseModel):
    """One file; what the numbers may be, :func:`problem` checks."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cap: float
    utility: list[list[float]] = Field(min_length=1)
    agent: list[Hireling] = Field(min_length=1)
    prior: list[float] | None = None
    P: Any = None

    def problem(self) -> AcquisitionProblem:
        """The problem; raises :class:`InputError` for numbers that make none."""
        P = self._independent() if self.P is None else _array(self.P, "P")
        costs = [agent.costs for agent in self.agent]
        return problem(P, costs, _array(self.utility, "utility"), self.cap)

    def _independent(self) -> Floats:
        if self.prior is None:
            raise InputError("A hiring problem needs P, or a prior and each agent's signals.")
        n, prior_T = len(self.agent), np.array(self.prior)
        P = prior_T.reshape((1,) * n + (-1,) + (1,) * n)
        for i, agent in enumerate(self.agent):
            seen = _array(agent.signals, f"signals of agent {i}")  # [effort, T, signal]
            if seen.ndim != 3 or seen.shape[:2] != (len(agent.costs), prior_T.size):
                raise InputError(
                    f"The signals of agent {i} must be by {len(agent.costs)} efforts, "
                    f"{prior_T.size} states and signals, not of shape {seen.shape}."
                )
            axes = [1] * (2 * n + 1)
            axes[i], axes[n], axes[n + 1 + i] = seen.shape
            P = P * seen.reshape(axes)
        return P


def _array(values: Any, what: str) -> Floats:
    try:
        return np.array(values, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"The {what} is no regular table of numbers.") from error


def parse_hiring_sheet(text: str, name: str) -> AcquisitionProblem:
    """Read a problem; ``name`` is for errors. Raises :class:`InputError`, naming the place."""
    try:
        fields = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
        return HiringSheet.model_validate(fields).problem()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{name} has a wrong {place}: {first['msg']}.") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} cannot be read: {error}.") from error


def named_problem(name: str) -> AcquisitionProblem:
    """A problem that comes with the package; raises :class:`InputError` for an unknown name."""
    if name not in NAMED:
        known = ", ".join(NAMED)
        raise InputError(
            f"There is no file or hiring problem {name!r}; packaged are {known}."
            + nearest(name, NAMED)
        )
    return NAMED[name]()
