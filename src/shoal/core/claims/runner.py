"""Finds claims, runs them, and writes what they found."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

import shoal
from shoal.core.claims.bench import Bench, OnProgress, Plot
from shoal.core.claims.environment import environment
from shoal.core.claims.records import Result
from shoal.core.claims.report import render
from shoal.core.claims.systems import SYSTEMS, System
from shoal.core.errors import ConfigError, InputError, MissingExtra
from shoal.core.files import atomic_path, write_text

Claim = Callable[[Bench], None]


def find_checkout() -> Path | None:
    """The source checkout this package is imported from, or None for an installed wheel."""
    root = Path(shoal.__file__).resolve().parents[2]
    return root if (root / "benchmarks").is_dir() and (root / "pyproject.toml").is_file() else None


def require_checkout() -> Path:
    """The source checkout; raises :class:`InputError` where there is none."""
    checkout = find_checkout()
    if checkout is None:
        raise InputError(
            "Claims are run from a source checkout, whose benchmarks folder this installation "
            "lacks: clone the repository and install it with pip install -e '.[claims]'."
        )
    return checkout


def measured_systems() -> list[System]:
    """Every system that has a claim to run."""
    return [system for system in SYSTEMS if system.state != "planned"]


def default_folder(system: System, *, smoke: bool, checkout: Path) -> Path:
    """``docs/claims/<name>`` for a full run, ``out/claims/<name>`` (not committed) for a smoke."""
    return checkout / ("out" if smoke else "docs") / "claims" / system.name


def last_result(system: System, checkout: Path | None) -> Result | None:
    """The committed full result; raises :class:`InputError` where it cannot be read."""
    if checkout is None:
        return None
    return _read(default_folder(system, smoke=False, checkout=checkout) / "result.json")


def reproduce(
    system: System,
    *,
    checkout: Path,
    folder: Path,
    smoke: bool = False,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Result:
    """Run one claim and write ``result.json``, ``report.md`` and its plots into ``folder``.

    Nothing is written unless the claim ran to its end. Raises :class:`ConfigError` for a system
    without a claim, :class:`InputError` where ``folder`` is a file or a smoke run would replace a
    full result, and :class:`MissingExtra` without matplotlib: a result comes with its plots.
    """
    claim = load_claim(system, checkout)
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra("shoal reproduce draws plots and", "claims")
    _check_folder(folder, smoke=smoke)
    where = environment()
    bench = Bench(smoke=smoke, seed=seed, on_progress=on_progress)
    started = time.perf_counter()
    claim(bench)
    result = Result(
        name=system.name,
        paper=system.citation,
        mode="smoke" if smoke else "full",
        workload=bench.workload,
        arms=tuple(bench.arms),
        verdicts=tuple(bench.verdicts),
        seconds=round(time.perf_counter() - started, 3),
        seed=seed,
        environment=where,
    )
    save(result, title=system.title, plots=bench.plots, folder=folder)
    return result


def load_claim(system: System, checkout: Path) -> Claim:
    """The function ``run`` of the system's file; raises :class:`ConfigError` if there is none."""
    path = checkout / "benchmarks" / f"{system.module}.py"
    if not path.is_file():
        raise ConfigError(
            f"{system.title} is {system.state} and has no claim to run yet; "
            "`shoal reproduce --list` shows which systems have one."
        )
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # a claim's parts lie in folders beside it
    name = f"shoal_benchmarks.{system.module}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    claim: Claim = module.run
    return claim


def save(result: Result, *, title: str, plots: dict[str, Plot], folder: Path) -> None:
    """Write all files, each whole; ``result.json`` last, so that it never comes alone."""
    try:
        for name, plot in plots.items():
            with atomic_path(folder / f"{name}.png") as temporary:
                temporary.write_bytes(plot.png)
        captions = {name: plot.caption for name, plot in plots.items()}
        write_text(folder / "report.md", render(result, title=title, captions=captions))
        write_text(folder / "result.json", result.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise InputError(f"Cannot write the result into {folder}: {error.strerror}.") from error


def _check_folder(folder: Path, *, smoke: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the result.")
    earlier = _read(folder / "result.json") if smoke else None
    if earlier is not None and earlier.mode == "full":
        raise InputError(f"{folder} holds a full result, which a smoke run does not replace.")


def _read(path: Path) -> Result | None:
    if not path.is_file():
        return None
    try:
        return Result.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{path} is not a readable result: run its claim again.") from error
