"""What holds for any group of agents, measured through the real scheduler.

    shoal reproduce collaboration-mechanisms [--smoke]

Mechanisms: each of the survey's thirty is a file of a few lines. Laws: voting follows Condorcet
while members err independently and gains nothing once they err together; a chain loses what each
link loses, a gate restores it at a price; judges, debates and pruning follow their closed forms.
Growth: what channels carry in a round grows with the group's size N and the round r as the topology
says. Cost: a turn beside those of LangGraph and AutoGen, whose traces are the same. Crashes: no
side effect twice. A small model: what sharing saves.
Survey: "Multi-Agent Collaboration Mechanisms" (arXiv 2501.06322).
"""

from __future__ import annotations

import asyncio
import importlib.util
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collaboration import growth, killing, laws, plays, rings, small_model, voting
from shoal.agents import Team
from shoal.core.claims import Bench
from shoal.core.stats import difference_interval, wilson_interval
from shoal.engine.scripted import ScriptedEngine

TEAMS = Path(__file__).parents[1] / "examples" / "teams"

PEERS = ("langgraph", "autogen_agentchat")


def run(bench: Bench) -> None:
    """Measure everything beside its closed form or its rival."""
    draws = bench.pick(full=10_000, smoke=500)
    runs = bench.pick(full=50, smoke=20)
    peers = all(importlib.util.find_spec(name) for name in PEERS)
    bench.workload = (
        f"Mechanisms: the 30 team files, run dry. Laws: {draws:,} team runs a cell; members answer "
        "right with a known probability; with probability ρ all members of a run share one draw. "
        "A cell holds within 3 standard errors of its closed form. "
        f"Growth: {runs} runs of {growth.ROUNDS} rounds a cell, answers of {growth.WORDS[0]} "
        f"to {growth.WORDS[1]} words. Carried tokens are those of a round's prompts beyond the "
        "first round's; computed tokens are what an ideal prefix cache leaves of all tokens. All "
        "this goes through the team scheduler and its event log, with a scripted engine that "
        "counts words as tokens. Overhead: a ring of null members that speak one after the other, "
        "CPU time of one process, warmed up, the frameworks alternating; shoal writes every turn "
        "to its event log, the others keep none. "
        + ("" if peers else "LangGraph and AutoGen are not installed (extra peers). ")
        + bench.pick(
            full="Crashes: kill -9 at random moments. Model: SmolLM2-135M in bf16, 40 generated "
            f"items, {small_model.GENERATED} generated tokens an item for every arm.",
            smoke="Crashes and the real model are left to the full run.",
        )
    )
    mechanisms(bench)
    voting_law(bench, draws)
    other_laws(bench, draws)
    growth_law(bench, runs, bench.pick(full=(2, 4, 8, 16), smoke=(2, 5)))
    if peers:
        equal_traces(bench)
    overhead(bench, peers=peers)
    if not bench.smoke:
        crashes(bench, kills=50)
        real_model(bench)


def mechanisms(bench: Bench) -> None:
    """How many of the thirty are a file of at most twelve lines (or four in Python) and run."""
    from shoal.agents import Material, load_team
    from shoal.agents.forecast import forecast

    python = _python_rows()
    rows: dict[str, Callable[[], Team]] = {
        path.stem: (lambda path=path: load_team(path)) for path in TEAMS.glob("*.toml")
    }
    rows |= {name: (lambda name=name: getattr(python, name)) for name in ("game", "federated")}
    rows |= {"town": lambda: python.town, "remote": lambda: python.remote("http://example.org")}
    works = 0
    for name, make in rows.items():
        lines = (TEAMS / f"{name}.toml").read_text("utf-8").splitlines() if name[0] < "a" else []
        team = make()
        assert type(team) is Team
        parts = Material("", ("one", "two"))
        found = asyncio.run(forecast(team, "Go.", parts, engine=ScriptedEngine()))
        short = len([line for line in lines if line and not line.startswith("#")]) <= 12
        works += short and found.outcome in ("done", "undecided")
    bench.arm("mechanisms", expressed=works)
    bench.verdict("mechanisms that are configuration, of 30", float(works), at_least=30)


def _python_rows() -> ModuleType:
    spec = importlib.util.spec_from_file_location("python_rows", TEAMS / "python_rows.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def voting_law(bench: Bench, draws: int) -> None:
    """Plurality accuracy by group size and share of common causes, and its plot."""
    cells = [
        voting.Cell(size, accuracy, cause)
        for accuracy, cause, sizes in voting.CURVES
        for size in bench.pick(full=sizes, smoke=tuple(s for s in sizes if s in (1, 3, 9)))
    ]
    outcomes: dict[voting.Cell, NDArray[np.bool_]] = {}
    for cell in bench.track(cells, "voting"):
        seeds = [bench.seed_of(cell, i) for i in range(draws)]
        outcomes[cell] = asyncio.run(voting.ask_panel(cell, seeds))
        accuracy = wilson_interval(int(outcomes[cell].sum()), draws)
        bench.arm(f"plurality of {cell}", accuracy=accuracy, closed_form=cell.law)
        error = 3 * math.sqrt(cell.law * (1 - cell.law) / draws)
        bench.verdict(
            f"plurality of {cell}", accuracy, at_least=cell.law - error, at_most=cell.law + error
        )
    for cause in (0.0, 1.0):
        most, one = voting.Cell(9, voting.ACCURACY, cause), voting.Cell(1, voting.ACCURACY, cause)
        gain = difference_interval(outcomes[most], outcomes[one], seed=bench.seed)
        error = 3 * math.sqrt(sum(cell.law * (1 - cell.law) for cell in (most, one)) / draws)
        bench.verdict(
            f"gain of {most} over one agent",
            gain,
            at_least=most.law - one.law - error,
            at_most=most.law - one.law + error,
        )
    plot_votes(bench, outcomes)


def plot_votes(bench: Bench, outcomes: dict[voting.Cell, NDArray[np.bool_]]) -> None:
    """Law as lines, measurements as points with 95 % intervals."""
    caption = (
        "Accuracy of the plurality: closed form (lines), measured with 95 % intervals (points)"
    )
    with bench.plot("voting", caption) as (axes,):
        for accuracy, cause, _ in voting.CURVES:
            cells = [c for c in outcomes if (c.accuracy, c.cause) == (accuracy, cause)]
            sizes = [cell.size for cell in cells]
            label = f"accuracy {accuracy:g}, ρ={cause:g}"
            (line,) = axes.plot(sizes, [cell.law for cell in cells], label=label)
            found = [wilson_interval(int(outcomes[c].sum()), len(outcomes[c])) for c in cells]
            spread = np.array([(x.estimate - x.low, x.high - x.estimate) for x in found]).T
            axes.errorbar(
                sizes,
                [one.estimate for one in found],
                yerr=spread,
                fmt="o",
                markersize=4,
                color=line.get_color(),
            )
        axes.set(xlabel="agents N", ylabel="accuracy of the plurality", xticks=voting.ALL_SIZES)
        axes.legend(fontsize=8)


def other_laws(bench: Bench, draws: int) -> None:
    """Cascade, gate, judge, debate and pruning: accuracy and turns by their closed forms."""
    kept = bench.pick(full=laws.FULL, smoke=laws.SMOKE)
    for law in bench.track(kept, "laws"):
        right, turns = asyncio.run(
            laws.obey(law, [bench.seed_of(law.name, i) for i in range(draws)])
        )
        accuracy = wilson_interval(int(right.sum()), draws)
        spent = float(turns.mean())
        bench.arm(
            law.name, accuracy=accuracy, closed_form=law.accuracy, turns=spent,
            turns_by_the_law=law.turns,
        )  # fmt: skip
        error = 3 * math.sqrt(law.accuracy * (1 - law.accuracy) / draws)
        bench.verdict(
            law.name, accuracy, at_least=law.accuracy - error, at_most=law.accuracy + error
        )
        spread = 3 * float(turns.std()) / math.sqrt(draws) + 1e-9
        bench.verdict(
            f"turns of {law.name}", spent, at_least=law.turns - spread, at_most=law.turns + spread
        )


def growth_law(bench: Bench, runs: int, sizes: tuple[int, ...]) -> None:
    """Tokens that channels carry, by topology, group size and round, and their plot."""
    cells = [(topology, size) for topology in growth.TOPOLOGIES for size in sizes]
    carried: dict[tuple[str, int], NDArray[np.float64]] = {}
    errors: dict[str, float] = {}
    for topology, size in bench.track(cells, "growth"):
        seeds = [bench.seed_of(topology.name, size, i) for i in range(runs)]
        asked, computed = asyncio.run(growth.tokens_by_round(topology, size, seeds))
        measured = carried[topology.name, size] = asked - asked[0]
        law = growth.predicted(topology, size)
        error = float(np.abs(measured[1:] / law[1:] - 1).max())
        errors[topology.name] = max(error, errors.get(topology.name, 0.0))
        bench.arm(
            f"{topology.name}, N={size}",
            carried_in_round_2=measured[1],
            carried_in_round_8=measured[-1],
            predicted_in_round_8=law[-1],
            asked_in_round_8=asked[-1],
            computed_in_round_8=computed[-1],
        )
    for topology in growth.TOPOLOGIES:
        bench.verdict(
            f"{topology.name} carries {topology.law} messages in round r: largest relative error",
            errors[topology.name],
            at_most=0.02,
        )
    plot_growth(bench, carried, sizes)


def plot_growth(
    bench: Bench, carried: dict[tuple[str, int], NDArray[np.float64]], sizes: tuple[int, ...]
) -> None:
    """Growth with the round at the largest group, and with the group at the last round."""
    rounds = np.arange(1, growth.ROUNDS + 1)
    largest = max(sizes)
    caption = "Tokens that channels carry in a round: law (lines) and measured (points)"
    with bench.plot("growth", caption, panels=2) as (by_round, by_size):
        for topology in growth.TOPOLOGIES:
            (line,) = by_round.plot(
                rounds, growth.predicted(topology, largest), label=topology.name
            )
            color = line.get_color()
            by_round.plot(rounds, carried[topology.name, largest], "o", ms=4, color=color)
            by_size.plot(sizes, [growth.predicted(topology, n)[-1] for n in sizes], color=color)
            last = [carried[topology.name, n][-1] for n in sizes]
            by_size.plot(sizes, last, "o", ms=4, color=color)
        by_round.set(xlabel=f"round r (N={largest})", ylabel="tokens carried in the round")
        by_size.set(
            xlabel=f"agents N (r={growth.ROUNDS})", xscale="log", yscale="log", xticks=sizes
        )
        by_size.set_xticks(sizes, map(str, sizes))
        by_size.minorticks_off()
        by_round.legend(fontsize=8)


def equal_traces(bench: Bench) -> None:
    """Who heard and said what, in three frameworks."""
    equal = {"langgraph": 0, "autogen": 0}
    for play in plays.PLAYS.values():
        ours = asyncio.run(plays.with_shoal(play))
        equal["langgraph"] += ours == plays.with_langgraph(play)
        equal["autogen"] += ours == asyncio.run(plays.with_autogen(play))
    for name, count in equal.items():
        bench.arm(f"traces equal to {name}", rows=count, of=len(plays.PLAYS))
        bench.verdict(f"rows whose trace equals that of {name}", float(count), at_least=6)


def overhead(bench: Bench, *, peers: bool) -> None:
    """CPU milliseconds a turn of a ring, by size and framework, and the plot."""
    repeats = bench.pick(full=7, smoke=1)
    turns = bench.pick(full=256, smoke=64)
    found: dict[tuple[str, int], list[float]] = {}
    names = ("shoal", "langgraph", "autogen") if peers else ("shoal",)
    sizes = dict.fromkeys(names, (4, 64)) | {
        "shoal": bench.pick(full=(4, 16, 64, 256, 1024), smoke=(4, 64))
    }
    for size in bench.track(sizes["shoal"], "overhead"):
        race = {
            name: rings.RINGS[name](size, max(turns, size)) for name in names if size in sizes[name]
        }
        for work in race.values():
            work()
        for _ in range(repeats):
            for name, work in race.items():
                began = time.process_time()
                work()
                spent = (time.process_time() - began) / max(turns, size) * 1000
                found.setdefault((name, size), []).append(spent)
    median = {key: statistics.median(times) for key, times in found.items()}
    for (name, size), times in found.items():
        bench.arm(
            f"{name}, ring of {size}", cpu_ms_a_turn=median[name, size], least=min(times),
            most=max(times),
        )  # fmt: skip
    if not bench.smoke:
        bench.verdict("CPU ms a turn at 4 members", median["shoal", 4], at_most=0.2)
        largest = median["shoal", 1024] / median["shoal", 4]
        bench.verdict("a turn among 1,024 members costs, times one among 4", largest, at_most=4)
        for size in (4, 64) if peers else ():
            better = min(median["langgraph", size], median["autogen", size])
            bench.verdict(
                f"better peer's turn over shoal's, {size} members",
                better / median["shoal", size],
                at_least=4,
            )
    with bench.plot("overhead", "CPU time of a turn, null members in a ring") as (axes,):
        for name in names:
            axes.plot(sizes[name], [median[name, size] for size in sizes[name]], "o-", label=name)
        axes.set(xlabel="members", ylabel="CPU ms a turn", xscale="log", yscale="log")
        axes.legend(fontsize=8)


def crashes(bench: Bench, kills: int) -> None:
    """Runs with side effects, killed until so many kills have happened."""
    draws = random.Random(bench.seed)
    found: list[killing.Aftermath] = []
    with tempfile.TemporaryDirectory() as root:
        took = []
        for i in range(2):  # the first starts the server that forks the others
            folder = Path(root, f"whole{i}")
            folder.mkdir()
            began = time.perf_counter()
            whole = killing.killed(folder, draws, 0.0, 0)
            took.append(time.perf_counter() - began)
        while sum(one.kills for one in found) < kills:
            folder = Path(root, f"run{len(found)}")
            folder.mkdir()
            found.append(killing.killed(folder, draws, min(took), 4))
    twice = sum(len(one.written) - len(set(one.written)) for one in found)
    booked = sum(len(one.booked) == len(set(one.booked)) == killing.CALLS for one in found)
    lost = sum(killing.CALLS - len(one.written) for one in found)
    unknown = sum(one.unknown for one in found)
    ended = sum(one.outcome == "done" and one.steps == whole.steps for one in found)
    bench.arm(
        "kill -9", runs=len(found), kills=sum(one.kills for one in found), ended_alike=ended,
        calls=2 * killing.CALLS * len(found), twice=twice, not_made=lost, told_unknown=unknown,
        keyed_exactly_once=booked,
    )  # fmt: skip
    bench.verdict("killed runs that ended as if never killed, share", ended / len(found),
                  at_least=1)  # fmt: skip
    bench.verdict("side effects that happened twice", float(twice), at_most=0)
    bench.verdict("runs whose keyed calls all took effect exactly once, share",
                  booked / len(found), at_least=1)  # fmt: skip
    silent = float(max(0, lost - unknown))
    bench.verdict("calls lost without the model being told", silent, at_most=0)


def real_model(bench: Bench) -> None:
    """Accuracy and tokens of one to five agents on 40 items, and what sharing saves."""
    from shoal.engine.local import LocalEngine

    exercises = small_model.items(40, bench.generator("items"))
    engine = LocalEngine.open("smollm2-135m")
    outcomes: dict[str, small_model.Outcome] = {}

    async def measured() -> None:
        for arm in bench.track(small_model.ARMS, "model"):
            name = f"{arm.name}, {arm.n} agent{'s' if arm.n > 1 else ''}"
            seed = bench.seed_of(arm.name, arm.n) % 10**6
            outcomes[name] = await small_model.measure(
                arm, exercises, engine, seed, time.perf_counter
            )
        alone: Any = engine.unshared()
        arm = next(a for a in small_model.ARMS if (a.name, a.n) == ("self-consistency", 5))
        outcomes["self-consistency, 5 agents, sharing off (8 items)"] = await small_model.measure(
            arm, exercises[:8], alone, 1, time.perf_counter
        )
        await alone.close()
        await engine.close()

    asyncio.run(measured())
    for name, one in outcomes.items():
        saved = 1 - one.computed_tokens / one.prompt_tokens
        bench.arm(
            name,
            accuracy=wilson_interval(int(one.right.sum()), len(one.right)),
            prompt_tokens=one.prompt_tokens,
            computed_prompt_tokens=one.computed_tokens,
            generated_tokens=one.generated_tokens,
            most_generated_an_item=one.most_generated,
            prefill_saved=saved,
            seconds=one.seconds,
        )
        if "off" not in name and not name.startswith("single"):
            bench.verdict(f"prefill saved, {name}", saved, at_least=0.5)
    most = max(one.most_generated for one in outcomes.values())
    bench.verdict("tokens any arm generated for an item", float(most),
                  at_most=small_model.GENERATED)  # fmt: skip
    least = min(one.common for one in outcomes.values())
    bench.verdict("least share of system text in any prompt", least, at_least=0.5)
