"""The third tier: monty, an interpreter of a part of Python that has no way to reach the system.

Classes, json and re work; files, processes, sockets and foreign modules do not exist. What code
may do outside are the tools it is given.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from shoal.core.errors import InputError
from shoal.sandbox.outcome import Outcome, Status
from shoal.sandbox.policy import Callback, Permit, Policy, by_alias, reads_only
from shoal.sandbox.process import SessionOver

NAME = "monty"
GAPS = (
    "the interpreter itself: a bug in it is a way into a process without further isolation",
    "much of Python: most modules, and files, are missing",
)


class _TooLarge(Exception):
    """A result that cannot be handed on."""


class InterpretedSession:
    """See :class:`shoal.sandbox.Session`."""

    isolation = NAME

    def __init__(self, policy: Policy) -> None:
        from pydantic_monty import Monty

        self.policy = policy
        self._over = ""
        self._calls = self._refused = 0
        self._pool = Monty(
            min_processes=1, max_processes=1, request_timeout=policy.wall_seconds + 2
        ).__enter__()
        self._session = self._pool.checkout(
            limits={
                "max_feed_duration_secs": min(policy.wall_seconds, policy.cpu_seconds),
                "max_total_sleep_secs": policy.wall_seconds,
                "max_memory": policy.memory_bytes,
                "max_suspensions": 1000 + policy.calls,
            }
        )
        self._feed = self._session.__enter__()

    def run(
        self, code: str, tools: Sequence[Callback] = (), permit: Permit = reads_only
    ) -> Outcome:
        """See :meth:`shoal.sandbox.Session.run`."""
        from pydantic_monty import CollectString, MontyCrashedError, MontyError, MontySyntaxError

        if self._over:
            raise SessionOver(f"The session has ended ({self._over}): open another one.")
        began = time.monotonic()
        self._calls = self._refused = 0
        printed = CollectString(max_bytes=self.policy.output_bytes)
        outside = {alias: self._served(tool, permit) for alias, tool in by_alias(tools).items()}
        status: Status = "ok"
        value, error, line = None, "", None
        try:
            value = self._feed.feed_run(code, external_lookup=outside, print_callback=printed)
            value = self._as_json(value)
        except _TooLarge as large:
            status, value, error = "error", None, str(large)
        except MontyCrashedError as crashed:
            status, error = ("timeout" if "tim" in str(crashed) else "died"), str(crashed)
        except MontyError as raised:
            inner = raised.exception()
            error = f"{type(inner).__name__}: {inner}"
            status = _status(inner, printed.output, self.policy)
            if not isinstance(raised, MontySyntaxError):
                frames = raised.traceback() if hasattr(raised, "traceback") else []
                line = frames[-1].line if frames else None
        if status not in ("ok", "error"):
            self._end(error)
        output = printed.output[: self.policy.output_bytes]
        seconds = time.monotonic() - began
        return Outcome(
            status, value, output, error[:2000], line, self._calls, self._refused, seconds, NAME
        )

    def put(self, name: str, data: bytes) -> None:
        """There are no files in this tier."""
        raise InputError(f"The tier {NAME} has no files, so {name!r} cannot be written.")

    def get(self, name: str) -> bytes:
        """There are no files in this tier."""
        raise InputError(f"The tier {NAME} has no files, so {name!r} cannot be read.")

    def close(self) -> None:
        """End the session; may be called again."""
        self._end("it was closed")

    def _served(self, tool: Callback, permit: Permit) -> Callable[..., Any]:
        def call(*unnamed: Any, **arguments: Any) -> Any:
            why = "give arguments by name" if unnamed else permit(tool.spec, arguments)
            if why is None and self._calls >= self.policy.calls:
                why = f"{self.policy.calls} calls are all this run may make"
            if why is not None:
                self._refused += 1
                raise PermissionError(why)
            self._calls += 1
            value = tool.fn(**arguments)
            if len(json.dumps(value)) > self.policy.message_bytes:
                raise ValueError(f"the answer of {tool.spec.name} is too large here")
            return value

        return call

    def _as_json(self, value: Any) -> Any:
        """The value as JSON or as its text; what was made inside is a guest here, too."""
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            value = text = type(value).__name__
        except RecursionError:
            raise _TooLarge("the result nests too deep") from None
        if len(text) > self.policy.message_bytes:
            raise _TooLarge("the result is larger than a message may be")
        return value

    def _end(self, why: str) -> None:
        if not self._over:
            self._over = why
            self._session.__exit__(None, None, None)
            self._pool.__exit__(None, None, None)


def _status(raised: BaseException, printed: str, policy: Policy) -> Status:
    if isinstance(raised, TimeoutError):
        return "timeout"
    if isinstance(raised, MemoryError):
        near = len(printed.encode()) > policy.output_bytes // 2 or "print" in str(raised)
        return "output" if near else "memory"
    return "error"


def open_session(policy: Policy) -> InterpretedSession:
    """A session in an interpreter of its own."""
    return InterpretedSession(policy)


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Why the tier does not work here; None where it does (tried once a process)."""
    try:
        import pydantic_monty  # noqa: F401
    except ImportError:
        return "monty is not installed: pip install 'shoal[sandbox]'"
    try:
        session = open_session(Policy())
    except Exception as error:
        return f"monty does not work here: {error}"
    session.close()
    return None
