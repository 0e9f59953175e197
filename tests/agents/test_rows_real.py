"""Every mechanism on the embedded model: it runs to its end, whatever the model says."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from shoal.core.protocols import Engine

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location(
            "mechanisms_example", EXAMPLES / "mechanisms.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    from shoal.engine.local import LocalEngine

    yield (engine := LocalEngine.open("smollm2-135m"))
    asyncio.run(engine.close())


@pytest.mark.model
@pytest.mark.parametrize("number", range(1, 31))
async def test_a_mechanism_runs_on_a_real_model(
    number: int, example: ModuleType, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    if number == 28:
        pytest.importorskip("a2a")
        with example.far_away(engine) as url:
            await example.show(number, example.python_rows.remote(url), engine)
    elif number in example.IN_PYTHON:
        await example.show(number, example.IN_PYTHON[number], engine)
    else:
        (path,) = (EXAMPLES / "teams").glob(f"{number:02}-*.toml")
        await example.show(number, example.load_team(path), engine)
    *turns, result, end = capsys.readouterr().out.splitlines()[2:]
    assert turns
    assert result.startswith("  -> ")
    assert end.split(":")[0].strip() in ("done", "undecided")
