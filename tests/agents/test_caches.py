"""``carry="kv"``: words whose cache moves with them, and judges that ask for exact prefixes."""

from __future__ import annotations

from pathlib import Path

from shoal.agents import Agent, Protocol, Team, run
from shoal.core.log import EventLog
from shoal.core.protocols import Engine, Sampling
from shoal.core.records import Step
from shoal.engine.kvcomm import CommPolicy, KVComm
from shoal.engine.local import LocalEngine
from shoal.models.loading import load

SAMPLING = Sampling(max_tokens=12, ignore_eos=True)


def team(carry: str) -> Team:
    return Team(
        "t",
        (
            Agent("solver", "Say a number.", sampling=SAMPLING),
            Agent("checker", "Doubt it.", sampling=SAMPLING),
            Agent("judge", "Decide.", sampling=SAMPLING, dense=True),
        ),
        Protocol(turn="all", until="rounds(16)"),
        channels=f"mesh(carry={carry})",
    )


async def steps(team: Team, engine: Engine) -> list[Step]:
    log = EventLog()
    await run(team, "How many fish?", engine=engine, seed=3, log=log)
    return list(log.steps())


async def test_words_are_moved_and_judges_stay_exact(tiny_model: Path) -> None:
    engine = LocalEngine(load(str(tiny_model), dtype="fp32"), kv_bytes=64 << 20)
    comm = KVComm(engine, CommPolicy(gamma=1, gated=False))
    done = await steps(team("kv"), comm)
    how = {name: [s.how for s in done if s.member == name] for name in team("kv").names}
    assert any(each.startswith("moved") for each in how["solver"] + how["checker"])
    assert set(how["judge"]) == {"exact"}
    assert "moved" in {call.mode for call in comm.calls}
    assert engine.load.pinned_bytes == 0


async def test_text_channels_move_nothing(tiny_model: Path) -> None:
    engine = LocalEngine(load(str(tiny_model), dtype="fp32"), kv_bytes=64 << 20)
    comm = KVComm(engine, CommPolicy(gamma=1, gated=False))
    done = await steps(team("text"), comm)
    assert {step.how for step in done} == {"exact"}
    assert not comm.calls


async def test_a_team_that_carries_caches_gets_an_engine_that_moves_them(tiny_model: Path) -> None:
    engine = LocalEngine(load(str(tiny_model), dtype="fp32"), kv_bytes=64 << 20)
    exact = await steps(team("text"), engine)
    carried = await steps(team("kv"), engine)
    first = {step.member: step.output for step in exact[:3]}
    assert {step.member: step.output for step in carried[:3]} == first
