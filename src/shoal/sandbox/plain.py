"""The last resort: a plain process with limits. This is no isolation, and outcomes say "none"."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

from shoal.sandbox.policy import UNPROTECTED, NoSandbox, Policy
from shoal.sandbox.process import ProcessSession
from shoal.sandbox.started import SOURCE, Child, limits_of

NAME = "none"
GAPS = (
    "reading and writing every file of this user",
    "the network",
    "seeing and stopping other processes of this user",
    "processes that leave the group live on",
    "as root: limits of the kernel can be lifted",
)


class Folder(Child):
    """A child with a folder of its own, which goes when it does."""

    def __init__(self, policy: Policy) -> None:
        self._folder = tempfile.mkdtemp(prefix="shoal-unprotected-")
        python = os.path.realpath(sys.executable)
        command = [python, "-I", "-S", "-B", "-c", SOURCE, limits_of(policy)]
        super().__init__(command, NAME, cwd=self._folder)

    def kill(self) -> None:
        """End the group and remove the folder."""
        super().kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def open_session(policy: Policy) -> ProcessSession:
    """A session without isolation; raises :class:`NoSandbox` where nobody has allowed that."""
    if policy.unprotected != UNPROTECTED:
        raise NoSandbox(
            "Code would run without isolation here, as this process could: install a sandbox "
            f"(pip install 'shoal[sandbox]'), or say unprotected={UNPROTECTED!r}."
        )
    return ProcessSession(Folder(policy), policy)


def missing() -> str | None:
    """It works everywhere."""
    return None
