"""The second tier: sandlock, which filters what one process asks of the kernel.

No namespaces are needed: Landlock says which files it may open, seccomp which system calls are
answered, and a supervisor counts memory and processes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from typing import Any

from shoal.sandbox.outcome import Status
from shoal.sandbox.policy import Policy
from shoal.sandbox.process import ProcessSession
from shoal.sandbox.started import SOURCE, limits_of

NAME = "sandlock"
GAPS = (
    "the kernel itself: a bug in a system call that is let through is a way out",
    "reading programs and libraries under /usr, and where files of the system lie",
    "the user is this process's own, not one without rights",
    "files it writes are on disk; together they have no limit",
)

BEYOND = (
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat",
    "utime", "utimes", "utimensat", "futimesat", "setxattr", "lsetxattr", "fsetxattr", "chroot",
    "mknod", "mknodat",
)  # fmt: skip
"""What Landlock does not see: rights, owners and times of files, and another root."""


class Confined:
    """Implements :class:`shoal.sandbox.process.Worker` over a process that sandlock holds."""

    isolation = NAME

    def __init__(self, policy: Policy) -> None:
        from sandlock import Sandbox
        from sandlock.sandbox import StdioMode

        self._folder = tempfile.mkdtemp(prefix="shoal-sandbox-")
        system = ["/usr", "/lib", "/lib64", "/bin", "/dev/null", "/dev/urandom"]
        self._sandbox: Any = Sandbox(
            fs_readable=[path for path in (*system, sys.base_prefix) if os.path.exists(path)],
            fs_writable=[self._folder],
            cwd=self._folder,
            clean_env=True,
            max_memory=policy.memory_bytes,
            max_processes=policy.processes + 1,
            extra_deny_syscalls=list(BEYOND),
            no_coredump=True,
        )
        python = os.path.realpath(sys.executable)
        command = [python, "-I", "-S", "-B", "-c", SOURCE, limits_of(policy)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), StdioMode.PIPED)
        try:
            self._process: Any = self._sandbox.popen(command, **pipes)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.pid = int(self._process.pid)
        self.stdin = self._process.stdin.fileno()
        self.stdout = self._process.stdout.fileno()
        self.stderr = self._process.stderr.fileno()

    def kill(self) -> None:
        """Kill it and all it started, and remove its folder."""
        with contextlib.suppress(Exception):  # it may have gone by itself
            self._process.kill()
        with contextlib.suppress(Exception):
            self._process.wait(timeout=5)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def died_of(self) -> Status:
        """Sandlock does not tell."""
        return "died"


def open_session(policy: Policy) -> ProcessSession:
    """A session in a confined process."""
    return ProcessSession(Confined(policy), policy)


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Why the tier does not work here; None where it does (tried once a process)."""
    if sys.platform != "linux":
        return "sandlock needs Linux"
    try:
        import sandlock
    except ImportError:
        return "sandlock is not installed: pip install 'shoal[sandbox]'"
    if sandlock.landlock_abi_version() < sandlock.min_landlock_abi():
        return "sandlock needs a kernel with Landlock ABI 6 (Linux 6.12)"
    try:
        session = open_session(Policy())
    except Exception as error:
        return f"sandlock does not work here: {error}"
    session.close()
    return None
