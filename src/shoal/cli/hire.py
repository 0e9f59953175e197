"""``shoal hire``: whom to hire, who checks whom, and what a report earns."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shoal.cli.console import console, print_json
from shoal.core.errors import InputError

if TYPE_CHECKING:
    from shoal.mechanisms.hiring.problem import AcquisitionProblem

app = typer.Typer(help="Hire agents whose work cannot be seen.", no_args_is_help=True)

PROBLEM = typer.Argument("common-noise", help="TOML or JSON, '-' for stdin, or a packaged name.")
JSON = typer.Option(False, "--json", help="Print the result as JSON.")


@app.command("solve")
def solve(problem: str = PROBLEM, json: bool = JSON) -> None:
    """The best contract, beside the best ones without correlation."""
    from shoal.mechanisms.hiring.information_acquisition import (
        ASSUMES,
        audit_ic,
        solve_correlated,
        solve_deterministic,
        solve_uncorrelated,
        worth,
    )

    case = _read(problem)
    contract = solve_correlated(case)
    best, alone = worth(contract, case), solve_uncorrelated(case)
    efforts, single = solve_deterministic(case)
    found: dict[str, Any] = {
        "utility": {
            "correlated": best.utility,
            "one profile": single.utility,
            "each alone": alone.terms.utility,
            "nobody hired": case.unhired,
        },
        "expected_pay": best.pay,
        "recommended": {_profile(b): float(p) for b, p in _cells(contract.mu) if p > 0},
        "one_profile": list(efforts),
        "each_alone": list(alone.efforts),
        "audit": asdict(audit_ic(contract, case)),
        "assumes": list(ASSUMES),
    }
    if json:
        print_json({**found, "payments": contract.gamma.tolist(), "mu": contract.mu.tolist()})
        return
    _table("contract", "utility", found["utility"])
    _table("efforts", "how often recommended", found["recommended"])
    console.print(f"expected pay: {best.pay:.6g}", highlight=False)
    for sentence in ASSUMES:
        console.print(f"assumes: {sentence}", style="dim", highlight=False)


@app.command("simulate")
def simulate(
    problem: str = PROBLEM,
    rounds: int = typer.Option(200, min=1, help="Rounds to play and to settle."),
    seed: int = typer.Option(0, help="What everything is drawn from."),
    json: bool = JSON,
) -> None:
    """Play rounds of the best contract with simulated agents that obey."""
    from shoal.mechanisms.hiring.agents import obedient_rounds
    from shoal.mechanisms.hiring.information_acquisition import solve_correlated, worth

    case = _read(problem)
    contract = solve_correlated(case)
    kept, paid = obedient_rounds(contract, case, rounds=rounds, seed=seed)
    found = {
        "rounds": rounds,
        "seed": seed,
        "utility": sum(kept) / rounds,
        "paid": sum(paid) / rounds,
        "expected_utility": worth(contract, case).utility,
        "agents": "simulated, obedient",
    }
    if json:
        print_json(found)
    else:
        _table("a round, on average", "", found)


@app.command("learn")
def learn(
    problem: str = PROBLEM,
    rounds: int = typer.Option(100_000, min=1, help="How many there are, T."),
    learner: str = typer.Option("explore-then-commit", help="Or ucb-lp."),
    hidden: bool = typer.Option(False, "--hidden-efforts", help="Efforts are never observed."),
    seed: int = typer.Option(0, help="What everything is drawn from."),
    state: Path | None = typer.Option(None, help="Resume from this file, and keep it up to date."),
    json: bool = JSON,
) -> None:
    """Learn signals and costs of simulated best-responding agents while hiring them."""
    from shoal.core.files import write_text
    from shoal.core.records import from_json, to_json
    from shoal.mechanisms.hiring.agents import play, regret
    from shoal.mechanisms.hiring.information_acquisition import solve_correlated, worth
    from shoal.mechanisms.hiring.learners import LearnerState, Setting, find_learner
    from shoal.mechanisms.hiring.oracle import widest_rules

    case, kind = _read(problem), find_learner(learner)
    known = Setting(
        case.P.shape, case.utility, case.cap, widest_rules(case), rounds, not hidden, seed
    )
    earlier = None
    if state and state.exists():
        try:
            earlier = from_json(LearnerState, state.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{state} is not a readable learner's state.") from error
    learning = kind(known, earlier)
    spells = []
    while (spell := play(learning, case, seed=seed)) is not None:
        spells.append(spell)
        if state:
            write_text(state, to_json(learning.state))
    optimum = worth(solve_correlated(case), case).utility
    total = regret(spells, optimum)
    found = {
        "learner": learner,
        "rounds": sum(spell.rounds for spell in spells),
        "optimum": optimum,
        "regret": total,
        "last_utility": spells[-1].utility if spells else None,
        "share_of_known_rules": learning.state.share,
        "phases": {
            name: sum(spell.rounds for spell in spells if spell.phase == name)
            for name in dict.fromkeys(spell.phase for spell in spells)
        },
        "largest_gain": max((spell.gain for spell in spells), default=0.0),
        "agents": "simulated best responders",
    }
    if json:
        print_json(found)
    else:
        _table("learning", "", found)


def _read(name: str) -> AcquisitionProblem:
    from shoal.mechanisms.hiring.sheets import named_problem, parse_hiring_sheet

    try:
        if name == "-":
            return parse_hiring_sheet(sys.stdin.read(), "stdin")
        path = Path(name)
        if path.suffix or path.exists():
            return parse_hiring_sheet(path.read_text(encoding="utf-8-sig"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the hiring problem {name}: {error}.") from error
    return named_problem(name)


def _cells(array: Any) -> Any:
    import numpy as np

    return np.ndenumerate(array)


def _profile(efforts: tuple[int, ...]) -> str:
    return " ".join(map(str, efforts))


def _table(first: str, second: str, rows: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(first, second)
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), _text(value))
    console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)
