"""Row 26: an ensemble draws each token from the mean of its members' distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from traces import trace

from shoal.agents import Agent, Protocol, Team, load_team, run
from shoal.agents.lockstep import drawn, mean
from shoal.core.protocols import Completion, EngineInfo, Request, Sampling, TokenLogprob
from shoal.core.records import Usage
from shoal.engine.scripted import ScriptedEngine

TEAMS = Path(__file__).parents[2] / "examples" / "teams"


class Distributed:
    """Members by name with a distribution over tokens for each place of the answer."""

    info = EngineInfo("distributed", "scripted")

    def __init__(self, tables: dict[str, list[dict[str, float]]]) -> None:
        self.tables = tables
        self.groups: list[int] = []

    async def generate(self, requests: Sequence[Request], on_delta: Any = None) -> list[Completion]:
        self.groups.append(len(requests))
        return [self._next(request) for request in requests]

    def _next(self, request: Request) -> Completion:
        text = request.prompt[0].text  # type: ignore[union-attr]
        name = next(name for name in self.tables if f"You are {name}." in text)
        begun = text.rpartition("Answer:")[2].split()
        usage = Usage(len(text.split()), 0, 1)
        if len(begun) >= len(self.tables[name]):
            return Completion("", (), "stop", usage)
        table = self.tables[name][len(begun)]
        top = tuple((ord(t[0]), f" {t}", math.log(p)) for t, p in table.items())
        return Completion("", (0,), "length", usage, (TokenLogprob(*top[0], top),))

    def count_tokens(self, prompt: Any) -> int:
        return 0


async def test_the_row_of_the_logit_ensemble_runs_exactly_so() -> None:
    """ann alone would say 'x b', bob alone 'y a'; the geometric mean says 'x a'."""
    tables = {
        "ann": [{"x": 0.8, "y": 0.2}, {"a": 0.4, "b": 0.6}],
        "bob": [{"x": 0.4, "y": 0.6}, {"a": 0.9, "b": 0.1}],
    }
    engine: Any = Distributed(tables)
    result = await run(load_team(TEAMS / "26-logit-ensemble.toml"), engine=engine)
    assert trace(result) == [(0, "ann", "", " x a"), (0, "bob", "", " x a")]
    assert (result.result, result.why, result.outcome) == ("x a", "1 round", "done")
    assert engine.groups == [2, 2, 2]
    assert [step.usage.decoded_tokens for step in result.episode.steps] == [3, 3]


def test_the_mean_is_the_renormalised_geometric_mean() -> None:
    a, b = {(1, "x"): math.log(0.8), (2, "y"): math.log(0.2)}, {(1, "x"): math.log(0.4)}
    b[2, "y"] = math.log(0.6)
    found = mean([a, b])
    x, y = math.sqrt(0.8 * 0.4), math.sqrt(0.2 * 0.6)
    assert math.exp(found[1, "x"]) == pytest.approx(x / (x + y))
    assert math.exp(found[2, "y"]) == pytest.approx(y / (x + y))


def test_a_token_somebody_does_not_list_counts_as_their_least_likely_one() -> None:
    found = mean([{(1, "x"): math.log(0.9)}, {(1, "x"): math.log(0.5), (2, "y"): math.log(0.5)}])
    x, y = math.sqrt(0.9 * 0.5), math.sqrt(0.9 * 0.5)
    assert math.exp(found[1, "x"]) == pytest.approx(x / (x + y))


def test_draws_follow_the_mean_distribution() -> None:
    logprobs = {(1, "x"): math.log(0.7), (2, "y"): math.log(0.3)}
    draws = [drawn(logprobs, Sampling(temperature=1.0, seed=seed), 0)[1] for seed in range(4000)]
    share = draws.count("x") / len(draws)
    assert abs(share - 0.7) < 3 * math.sqrt(0.7 * 0.3 / 4000)
    assert drawn(logprobs, Sampling(), 0) == (1, "x")


async def test_an_engine_without_distributions_fails_the_turns_with_a_reason() -> None:
    team = Team("t", (Agent("a"), Agent("b")), Protocol("lockstep", "logit_mean"))
    result = await run(team, "?", engine=ScriptedEngine("word"))
    assert result.outcome == "failed"
    assert "needs an engine that tells log-probabilities" in result.why


@pytest.mark.model
async def test_two_members_alike_write_what_one_would() -> None:
    from shoal.engine.local import LocalEngine

    engine = LocalEngine.open("smollm2-135m", dtype="fp32")
    alone = Team("t", (Agent("a", sampling=Sampling(max_tokens=5)),), Protocol("lockstep"))
    pair = Team("t", (Agent("a", copies=2, sampling=Sampling(max_tokens=5)),), Protocol("lockstep"))
    one = await run(alone, "Say the capital of Italy.", engine=engine)
    two = await run(pair, "Say the capital of Italy.", engine=engine)
    assert one.result
    assert len({step.output for step in two.episode.steps}) == 1
    await engine.close()
