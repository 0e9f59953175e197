"""Servers that end with the test, or with the tests of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from live_server import running

from shoal.engine.scripted import ScriptedEngine

Start = Callable[..., str]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that the tests of a file share; it answers "a"."""
    with running(ScriptedEngine("a", context_tokens=64)) as base:
        yield base


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers that stop when the test ends."""
    with ExitStack() as stack:
        yield lambda engine, **options: stack.enter_context(running(engine, **options))
