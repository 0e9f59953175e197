"""Starting a worker as a child of this process, and ending all of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from shoal.sandbox.outcome import Status
from shoal.sandbox.policy import Policy

SOURCE = (Path(__file__).parent / "worker.py").read_text(encoding="utf-8")


def limits_of(policy: Policy) -> str:
    """The kernel's limits for the worker, as its argument."""
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": [policy.cpu_seconds, policy.cpu_seconds + 1],  # a signal, then the end
        "RLIMIT_AS": policy.memory_bytes,
        "RLIMIT_NOFILE": policy.open_files,
        "RLIMIT_FSIZE": policy.file_bytes,
        "RLIMIT_NPROC": policy.processes + 2,  # the worker, and the tier's own inside
    }
    return json.dumps(limits)


class Child:
    """Implements :class:`shoal.sandbox.process.Worker` over a child in a session of its own."""

    def __init__(
        self,
        command: Sequence[str],
        isolation: str,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.isolation = isolation
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=dict(env or {}),
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self.pid = self._process.pid
        self.stdin = self._process.stdin.fileno()
        self.stdout = self._process.stdout.fileno()
        self.stderr = self._process.stderr.fileno()

    def kill(self) -> None:
        """Kill the group, wait for the child and close its pipes."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def died_of(self) -> Status:
        """ "cpu" where the kernel ended it for that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(1.0)
            if code in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
                return "cpu"
        return "died"
