"""ToolRL: a format reward, and a correctness taken apart into names, parameters and values.

"ToolRL: Reward is All Tool Learning Needs" (arXiv 2504.13958), section 3.3 and the ablations of
section 5. A reward is an object that says which parts it has, what they are worth at each progress
of training, and how calls are matched; two trainers in one process can have different ones.

Departures: the best matching can be asked for instead of the greedy one; values are compared by the
tool's schema and by sets of right ones; what it is worth not to call is an option, because with the
paper's own rule (0, whatever was called) only the format speaks for it. Calls are read strictly,
and whatever cannot be read is said, not swallowed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from shoal.core.errors import ConfigError, nearest
from shoal.envs.calls.answers import Answer
from shoal.envs.calls.dialects import Dialect
from shoal.envs.calls.task import Asks
from shoal.envs.calls.values import Equality
from shoal.envs.calls.wanted import Wanted
from shoal.envs.protocol import Environment, Transition
from shoal.training.rewards.matching import MATCHERS
from shoal.training.rewards.parts import CORRECTNESS, Judged, exactly, judge, well_formed
from shoal.training.rewards.schedule import Range, Schedule, Stage, constant

NoCall = Literal["zero", "punish", "score"]
"""What correctness is where no call is wanted: 0 whatever is called, as published; the least if
something is called and else 0; or the least and the most."""


@dataclass(frozen=True, slots=True)
class RewardBreakdown:
    """What an answer got and for what.

    total   sum of the parts
    parts   what each part contributes, weight and range included
    marks   accuracies in [0, 1] that do not depend on the reward: format, name, parameter, value,
            exact; irrelevance where no call was wanted
    final_answer  the calls in canonical form; None where they cannot be read
    errors  why the answer could not be read
    """

    total: float
    parts: Mapping[str, float]
    marks: Mapping[str, float]
    final_answer: Hashable | None = None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallReward:
    """A reward for answers that call tools.

    parts     names: format, one or more of correctness (original, finegrained, intermediate,
              coarse, name, parameter, value), length, exact
    weights   factors of parts; 1 for those that are not named
    schedule  what each part is worth
    matcher   "greedy" or "optimal"
    equality  "json" or "schema"
    no_call   see :data:`NoCall`

    Raises :class:`ConfigError` for names there are not and parts that are worth nothing.
    """

    parts: tuple[str, ...]
    schedule: Schedule
    weights: Mapping[str, float] = field(default_factory=dict)
    matcher: str = "greedy"
    equality: Equality = "schema"
    no_call: NoCall = "zero"

    def __post_init__(self) -> None:
        known = ("format", *CORRECTNESS, "length", "exact")
        for part in (*self.parts, *self.weights):
            if part not in known:
                raise ConfigError(
                    f"There is no part {part!r} of a reward for calls: take one of "
                    f"{', '.join(known)}.{nearest(part, known)}"
                )
        if not self.parts:
            raise ConfigError("A reward without parts is always 0: name at least one.")
        if idle := sorted(self.weights.keys() - set(self.parts)):
            raise ConfigError(
                f"{idle[0]!r} has a weight, but is no part of this reward: {', '.join(self.parts)}."
            )
        for stage in self.schedule.stages:
            if missing := [part for part in self.parts if part not in stage.ranges]:
                raise ConfigError(f"The schedule does not say what {missing[0]!r} is worth.")
        if self.matcher not in MATCHERS:
            raise ConfigError(f"There is no matcher {self.matcher!r}: {', '.join(MATCHERS)}.")

    def __call__(
        self, env: Environment, text: str, found: Transition, progress: float
    ) -> Transition:
        """Score a step in place of its environment.

        Raises :class:`ConfigError` for an environment that does not say which calls are wanted.
        """
        if not isinstance(env, Asks):
            raise ConfigError(
                f"{env.name} does not say which calls are wanted: take tool-world or bfcl, or "
                "leave the reward out of the run file."
            )
        told = self.score(env.wanted, env.dialect.read(text), env.dialect, progress)
        return replace(found, reward=told.total, parts=told.parts, marks=told.marks)

    def score(
        self, wanted: Wanted, answer: Answer, dialect: Dialect, progress: float = 0.0
    ) -> RewardBreakdown:
        """What an answer gets; ``progress`` of training is from 0 to 1."""
        judged = judge(answer, wanted, dialect, MATCHERS[self.matcher], self.equality)
        ranges = self.schedule.stage(progress).ranges
        parts = {
            part: self.weights.get(part, 1.0) * self._worth(part, judged, ranges[part], progress)
            for part in self.parts
        }
        errors = (judged.error,) if judged.error else ()
        return RewardBreakdown(sum(parts.values()), parts, judged.marks, answer.final, errors)

    def bounds(self, progress: float) -> tuple[float, float]:
        """Least and most an answer can get."""
        ranges = self.schedule.stage(progress).ranges
        ends = [
            sorted(self.weights.get(part, 1.0) * end for end in ranges[part].at(progress))
            for part in self.parts
        ]
        return sum(low for low, _ in ends), sum(high for _, high in ends)

    def _worth(self, part: str, judged: Judged, scale: Range, progress: float) -> float:
        low, high = scale.at(progress)
        if part in CORRECTNESS and not judged.wanted:
            called = bool(judged.calls or judged.error)
            if self.no_call == "zero":
                return 0.0
            return low if called else high if self.no_call == "score" else 0.0
        return low + (high - low) * self._share(part, judged, progress)

    def _share(self, part: str, judged: Judged, progress: float) -> float:
        if part == "format":
            return well_formed(judged)
        if part == "exact":
            return exactly(judged)
        if part == "length":
            return min(judged.words / self.schedule.words(progress), 1.0)
        return 0.0 if judged.error else CORRECTNESS[part](judged)


# -- the published variants -----------------------------------------------------------------

_TWO_STAGE = 30 / 105  # 30 steps of a published run of about 105


def _published(correct: str, c: float = 3.0) -> ToolCallReward:
    scales = {"format": (0.0, 1.0), correct: (-c, c)}
    return ToolCallReward(("format", correct), constant(**scales))


def _with_length(length: tuple[float, float]) -> ToolCallReward:
    schedule = constant(format=(0.0, 1.0), original=(-3.0, 3.0), length=(0.0, 1.0))
    return ToolCallReward(("format", "original", "length"), replace(schedule, length=length))


VARIANTS: Mapping[str, ToolCallReward] = {
    **{name: _published(name) for name in ("original", "finegrained", "intermediate", "coarse")},
    "equal-max": _published("original", 1.0),
    "two-stage": ToolCallReward(
        ("format", "original"),
        Schedule(
            (
                Stage({"format": Range(0.0, 1.0), "original": Range(-1.0, 1.0)}, _TWO_STAGE),
                Stage({"format": Range(0.0, 0.5), "original": Range(-3.0, 3.0)}),
            )
        ),
    ),
    "dynamic": ToolCallReward(
        ("format", "original"),
        Schedule(
            (
                Stage(
                    {
                        "format": Range(-2.0, 2.0, -1.0, 1.0),
                        "original": Range(-2.0, 2.0, -3.0, 3.0),
                    }
                ),
            )
        ),
    ),
    "length": _with_length((512.0, 512.0)),
    "scheduled-length": _with_length((384.0, 640.0)),
    "binary": ToolCallReward(("exact",), constant(exact=(0.0, 1.0))),
}
"""The paper's rewards by name, and 1 for an answer that is exactly right."""


def variant(name: str, **changes: object) -> ToolCallReward:
    """A published reward, or one with some fields changed; raises :class:`ConfigError`."""
    if name not in VARIANTS:
        raise ConfigError(
            f"There is no reward {name!r}: take one of {', '.join(VARIANTS)}."
            f"{nearest(name, VARIANTS)}"
        )
    return replace(VARIANTS[name], **changes)  # type: ignore[arg-type]
