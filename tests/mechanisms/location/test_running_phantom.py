"""Running reports: after any order of changes the outcome is that of settling anew, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal.core.errors import ConfigError
from shoal.core.rng import generator
from shoal.mechanisms import ReportError
from shoal.mechanisms.location import running_phantom
from shoal.mechanisms.location.rules import UniformPhantom
from shoal.mechanisms.location.running_phantom import RunningUniformPhantom

agents = st.integers(0, 12)
points = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])


class Changes(RuleBasedStateMachine):
    """Reports with whole weights come, change and go, in blocks of two."""

    def __init__(self) -> None:
        super().__init__()
        self.block, running_phantom._BLOCK = running_phantom._BLOCK, 2
        self.running = RunningUniformPhantom()
        self.plain: dict[int, tuple[float, int]] = {}

    def teardown(self) -> None:
        running_phantom._BLOCK = self.block

    @rule(agent=agents, value=points, weight=st.integers(0, 3))
    def report(self, agent: int, value: float, weight: int) -> None:
        self.running.report(agent, value, weight)
        self.plain[agent] = (value, weight)

    @rule(agent=agents)
    def withdraw(self, agent: int) -> None:
        if agent in self.plain:
            self.running.withdraw(agent)
            del self.plain[agent]
        else:
            with pytest.raises(ReportError, match="no report to withdraw"):
                self.running.withdraw(agent)

    @invariant()
    def the_outcome_is_that_of_settling_anew(self) -> None:
        assert len(self.running) == len(self.plain)
        entries = np.array(list(self.plain.values())).reshape(-1, 2)
        if entries[:, 1].sum() > 0:
            assert self.running.value == UniformPhantom()(entries[:, 0], entries[:, 1])
        else:
            with pytest.raises(ReportError, match="no report with a weight"):
                self.running.value  # noqa: B018


TestChanges = Changes.TestCase


def test_many_reports_at_once_and_then_changes() -> None:
    rng = generator("running")
    x = rng.random(20_000)
    x[::3] = 0.25
    running = RunningUniformPhantom(dict(enumerate(x.tolist())))
    for agent in rng.integers(0, len(x), 300).tolist():
        x[agent] = float(rng.random())
        running.report(agent, x[agent])
        assert running.value == UniformPhantom()(x)


def test_weights_that_are_no_whole_numbers_do_not_drift() -> None:
    rng = generator("weights")
    x, w = rng.random(50), rng.random(50)
    running = RunningUniformPhantom(
        dict(enumerate(x.tolist())), weights=dict(enumerate(w.tolist()))
    )
    for _ in range(2_000):
        running.report("guest", float(rng.random()), float(rng.random()))
    running.withdraw("guest")
    assert running.value == pytest.approx(float(UniformPhantom()(x, w)), abs=1e-12)


@pytest.mark.parametrize("value", [1.1, -0.1, float("nan")])
def test_a_bad_report_leaves_the_old_one(value: float) -> None:
    running = RunningUniformPhantom({"a": 0.4})
    with pytest.raises(ReportError, match="'a' reports"):
        running.report("a", value)
    assert running.value == 0.4


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_bad_weight_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="weight of 'a'"):
        RunningUniformPhantom().report("a", 0.5, weight)
