"""The one scheduler: supersteps over an append-only log.

    while nothing stops it:
        who speaks now?                      the turn rule, a function of what has happened
        what does each hear?                 channels, over the log as the superstep begins
        reserve budget; one call per engine  so that the engine sees what the prompts share
        log the turns in order of name; settle
    reduce the last words to one result

Collaboration survey (arXiv 2501.06322): agents, channels, protocol. A step's key (run,
superstep, member) makes it idempotent: a run on a log that holds turns goes on after them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from typing import Any

from shoal.agents.channels import lay
from shoal.agents.events import OnEvent, RunEnded, RunStarted, TeamResult
from shoal.agents.failures import failure_policies
from shoal.agents.material import Material, as_material
from shoal.agents.outside import Ask, Outside
from shoal.agents.payloads import payloads
from shoal.agents.prompt import DEFAULT_PREAMBLE
from shoal.agents.replay import in_order
from shoal.agents.superstep import Aborted, Context
from shoal.agents.team import Team
from shoal.agents.teamrun import Ending, TeamRun
from shoal.core.budget import Budget
from shoal.core.errors import ConfigError, nearest
from shoal.core.ids import new_id
from shoal.core.log import EventLog
from shoal.core.protocols import Engine
from shoal.core.records import Episode


async def run(
    team: Team,
    task: str = "",
    material: Material | str = "",
    *,
    engine: Engine | Mapping[str, Engine],
    log: EventLog | None = None,
    seed: int = 0,
    run_id: str | None = None,
    on_event: OnEvent | None = None,
    ask: Ask | None = None,
) -> TeamResult:
    """Let a team work on a task (its own where none is given) and return how that ended.

    ``engine`` is one engine or several by key; a member's ``model`` names its key, "default"
    the only one. On a ``log`` that holds turns of the same run, these are taken as they are,
    their cost is booked, and the run goes on after them: it ends as if it had never stopped.
    Cancelling leaves the log resumable; a turn that was under way is not in it.

    ``ask`` puts questions to members that are people; without it they are asked at the terminal.

    Raises :class:`ConfigError` where the log holds another run or a member's model is unknown,
    :class:`LogError` where the log cannot be written. Failing members raise nothing: the
    team's failure policy decides and the outcome says so.
    """
    began = time.perf_counter()
    task = task or team.task
    material = as_material(material)
    named = engine if isinstance(engine, Mapping) else {"default": engine}
    engines = {key: _communicating(team, each) for key, each in named.items()}
    _check_models(team, engines)
    log = log if log is not None else EventLog()
    start = {
        "id": run_id or new_id(),
        "team": team.name,
        "task": task,
        "seed": seed,
        "members": list(team.names),
        "digests": {"team": _digest(team), "material": _digest(material)},
    }
    resumed = next(log.events("run"), None) is not None
    run_id = _open(log, start, named=run_id is not None)
    recorded = {step.key: step for step in log.steps()}
    if on_event is not None:
        on_event(RunStarted(run_id, team.name, task, team.names, len(recorded)))
    preamble = team.preamble or DEFAULT_PREAMBLE
    context = Context(run_id, engines, log, seed, preamble, on_event, recorded, Outside(ask))
    ending = _ended(log)
    if ending is not None:
        context.steps = list(recorded.values())
    else:
        budget = Budget(team.limits, name=team.name)
        if resumed:
            budget.spend(0, calls=0, seconds=log.seconds())
            log.append("resume", {})
        try:
            ending = await _work(context, team, task, material, budget)
        finally:
            await context.outside.close()
    episode = Episode(
        id=run_id,
        task=task,
        steps=in_order(context.steps),
        result=ending.result,
        outcome=ending.outcome,
        seed=seed,
    )
    seconds = time.perf_counter() - began
    result = TeamResult(episode, ending.result, ending.outcome, ending.why, seconds)
    if on_event is not None:
        on_event(RunEnded(result))
    return result


def _ended(log: EventLog) -> Ending | None:
    """How the run in a log ended, if it has."""
    end = next(log.events("end"), None)
    if end is None:
        return None
    return Ending(end.body.get("result"), str(end.body["outcome"]), str(end.body["why"]))


async def _work(
    context: Context, team: Team, task: str, material: Material, budget: Budget
) -> Ending:
    try:
        ending = await TeamRun(context, team, task, material, budget=budget).run()
    except Aborted as stopped:
        context.log.append("note", {"stopped": str(stopped)})
        return Ending(None, "failed", str(stopped))
    body = {"outcome": ending.outcome, "why": ending.why, "result": ending.result}
    context.log.append("end", body, key=f"{context.run_id}/end")
    return ending


def _open(log: EventLog, start: Mapping[str, Any], *, named: bool) -> str:
    """Write the run's first event, or check that the one there belongs to this run; its id."""
    before = next(log.events("run"), None)
    if before is None:
        log.append("run", start, key="run")
        return str(start["id"])
    flat, old = _flat(start), _flat(before.body)
    other = [name for name in flat if flat[name] != old.get(name) and (named or name != "id")]
    if other:
        raise ConfigError(
            f"The log holds a run with another {' and '.join(other)}: give the same to resume "
            "it, or start a new run."
        )
    return str(before.body["id"])


def _flat(start: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "task", "seed")
    return {name: start.get(name) for name in names} | dict(start.get("digests", {}))


def _digest(value: object) -> str:
    """A short name for a value's content."""
    text = _described(value)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _described(value: Any) -> str:
    """A value as text that is the same in every process; functions count by their names."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    if is_dataclass(value):
        given = (
            f"{field.name}={_described(one)}"
            for field in fields(value)
            if (one := getattr(value, field.name)) is not field.default and one != field.default
        )
        return f"{type(value).__name__}({', '.join(given)})"
    return repr(getattr(value, "__qualname__", value))


def _communicating(team: Team, engine: Engine) -> Engine:
    """The engine; where a channel carries caches, one that can move them between contexts."""
    wiring = lay(team.channels, team.names)
    if all(payloads.make(channel.carry).kind != "kv" for channel in wiring):
        return engine
    from shoal.engine.kvcomm import KVComm  # torch is imported where it is needed
    from shoal.engine.local import LocalEngine

    if isinstance(engine, LocalEngine) and engine.info.sharing:
        return KVComm(engine)
    return engine


def _check_models(team: Team, engines: Mapping[str, Engine]) -> None:
    for who, model in _models(team):
        if model not in engines:
            raise ConfigError(
                f"{who} uses the model {model!r}, but there is no engine of that name."
                f"{nearest(model, engines)} Engines: {', '.join(sorted(engines))}."
            )


def _models(team: Team) -> Iterator[tuple[str, str]]:
    """Who in a team names which model."""
    spare = failure_policies.make(team.protocol.on_failure).model
    if spare is not None:
        yield f"The failure policy of team {team.name!r}", spare
    for member in team.members:
        if isinstance(member, Team):
            yield from _models(member)
        elif isinstance(member.model, str):
            yield f"Member {member.name!r}", member.model
