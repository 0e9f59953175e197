"""The hostile suite: code that tries to get out, and a judge that looks at the host afterwards.

What counts is what can be seen from outside: a secret file and what it says, a secret in another
process's environment, that process, servers that nobody must reach, a folder that must stay
empty, tools that must not run, processes that must not stay. Only what cannot be seen from outside
is told by the attack itself.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import string
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pydantic

from shoal.core.records import ToolSpec
from shoal.sandbox.outcome import Outcome
from shoal.sandbox.policy import MIB, UNPROTECTED, Callback, Policy, TierName
from shoal.sandbox.tiers import Sandbox

WALL = 0.5
GRACE = 3.0
"""Seconds a run may take beyond its own, on a busy machine."""

POLICY = Policy(
    wall_seconds=WALL,
    cpu_seconds=5,
    memory_bytes=192 * MIB,
    processes=6,
    folder_bytes=24 * MIB,
    output_bytes=64 * 1024,
    calls=10,
)


@dataclass(frozen=True, slots=True)
class Attack:
    """One program. ``ends``: a limit or an error must meet it; ``harmful``: it would harm this
    machine without isolation, so it is not tried there."""

    kind: str
    name: str
    code: str
    ends: bool = False
    harmful: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an attack in a tier: contained, and how, or what it reached.

    ``tried`` is false where it was not, because it would have harmed the machine.
    """

    attack: Attack
    tier: str
    contained: bool
    how: str
    seconds: float = 0.0
    tried: bool = True


def load() -> tuple[Attack, ...]:
    """The suite."""
    text = (Path(__file__).parent / "attacks.toml").read_text(encoding="utf-8")
    return tuple(Attack(**one) for one in tomllib.loads(text)["attack"])


def judge(attacks: Sequence[Attack], tier: TierName) -> Iterator[Verdict]:
    """Try each attack in a session of its own, and look at the host after it."""
    with Host() as host:
        for attack in attacks:
            if attack.harmful and tier == "none":
                yield Verdict(attack, tier, False, "nothing would stop it", tried=False)
            else:
                yield host.tried(attack, tier)


class Host:
    """What an attack is after: made anew where it was harmed."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Host:
        self.secret = f"secret-{secrets.token_hex(8)}"
        self.folder = Path(tempfile.mkdtemp(prefix="shoal-host-"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o777)
        self.canary = self.folder / "canary"
        self.witness = self.folder / "witness"
        self.witness.mkdir()
        self.witness.chmod(0o777)
        self._stack.enter_context(_environment("SHOAL_CANARY", self.secret))
        self._write_canary()
        left_open = os.open(self.canary, os.O_RDONLY)
        os.set_inheritable(left_open, True)
        self._stack.callback(os.close, left_open)
        self.tcp, self.udp, self.abstract, self.path = self._listen()
        self._victim: subprocess.Popen[bytes] | None = None
        self._stack.callback(self._bury)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def tried(self, attack: Attack, tier: TierName) -> Verdict:
        """One attack, judged."""
        victim = self._living()
        mark = 16 * MIB + secrets.randbelow(MIB)  # seen in the command line of whatever stays
        policy = replace(POLICY, tier=tier, file_bytes=mark, unprotected=UNPROTECTED)
        made: list[str] = []

        def read(what: str) -> str:
            made.append("read")
            return what

        def destroy(what: str) -> None:
            made.append("destroy")

        tools = [
            Callback(ToolSpec("read", "Reads."), read),
            Callback(ToolSpec("destroy", "Destroys.", side_effect="destroy"), destroy),
        ]
        session = Sandbox.open(policy)
        began = time.monotonic()
        try:
            outcome = session.run(self._filled(attack.code, victim.pid), tools)
        finally:
            session.close()
        seconds = time.monotonic() - began
        reached = [*self._reached(attack, outcome, mark), *_counted(made, outcome)]
        if attack.ends and outcome.status == "ok":
            reached.append("it ended as if nothing were wrong")
        if seconds > WALL + GRACE:
            reached.append(f"it took {seconds:.1f} s")
        how = "; ".join(reached) or _ended(outcome)
        return Verdict(attack, tier, not reached, how, seconds)

    def _filled(self, code: str, victim: int) -> str:
        return string.Template(code).substitute(
            canary=self.canary,
            witness=self.witness,
            victim=victim,
            port=self.tcp.getsockname()[1],
            abstract=str(self.abstract.getsockname()[1:], "utf-8"),
            source=Path(__file__).parents[2],
            packages=Path(pydantic.__file__).parents[1],
        )

    # -- what is looked at afterwards ---------------------------------------------------------

    def _reached(self, attack: Attack, outcome: Outcome, mark: int) -> Iterator[str]:
        said = f"{outcome.value} {outcome.output} {outcome.error}"
        if "ESCAPED" in said:
            yield said[said.index("ESCAPED") :].splitlines()[0][:80]
        if self.secret in said:
            yield "it told a secret"
        if not self._canary_is_whole():
            yield "it changed a file of the host"
            self._write_canary()
        for left in self.witness.iterdir():
            if left.name != "socket":
                yield f"it left {left.name}"
                left.unlink()
        for server in (self.tcp, self.udp, self.abstract, self.path):
            if _called(server):
                yield f"it reached a {'udp' if server is self.udp else server.family.name} server"
        if self._ended(patience=0.5 if "$victim" in attack.code else 0.0):
            yield "it ended another process"
        for pid in _marked(mark):
            yield f"process {pid} stayed"
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _canary_is_whole(self) -> bool:
        try:
            status = self.canary.stat()
            return self.canary.read_text() == self.secret and status.st_mode & 0o777 == 0o666
        except (OSError, UnicodeDecodeError):
            return False

    def _write_canary(self) -> None:
        self.canary.unlink(missing_ok=True)
        self.canary.write_text(self.secret)
        self.canary.chmod(0o666)  # so that rights alone do not protect it

    def _living(self) -> subprocess.Popen[bytes]:
        if self._victim is None or self._victim.poll() is not None:
            self._victim = subprocess.Popen(["sleep", "600"], env={"SECRET": self.secret})
        return self._victim

    def _ended(self, patience: float) -> bool:
        """Whether the other process is gone; one that was killed takes a moment to die."""
        if self._victim is None:
            return True
        try:
            self._victim.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _bury(self) -> None:
        if self._victim is not None:
            self._victim.kill()
            self._victim.wait()

    def _listen(self) -> tuple[socket.socket, socket.socket, socket.socket, socket.socket]:
        tcp = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(tcp.getsockname())
        abstract = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0shoal-{secrets.token_hex(8)}")
        path = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        path.bind(str(self.witness / "socket"))
        (self.witness / "socket").chmod(0o777)
        for server in (abstract, path):
            server.listen()
        for server in (tcp, udp, abstract, path):
            server.setblocking(False)
        return tcp, udp, abstract, path


def _counted(made: list[str], outcome: Outcome) -> Iterator[str]:
    if "destroy" in made:
        yield "it called a tool that destroys"
    if len(made) > POLICY.calls:
        yield f"it made {len(made)} calls"
    if len(made) > outcome.calls:
        yield f"{len(made)} calls were counted as {outcome.calls}"


def _ended(outcome: Outcome) -> str:
    """How an attack was contained, in a word or two."""
    if outcome.status == "error":
        return outcome.error.partition(":")[0]
    if outcome.status == "ok":
        return "denied, and went on" if outcome.output else "nothing happened"
    return outcome.status


def _called(server: socket.socket) -> bool:
    try:
        if server.type == socket.SOCK_DGRAM:
            server.recv(1000)
        else:
            server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def _marked(mark: int) -> Iterator[int]:
    """Processes whose command line holds a session's mark; a moment is given to the dying."""
    for attempt in range(20):
        found = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if _holds(pid, mark)]
        if not found:
            return
        if attempt < 19:
            time.sleep(0.02)
    yield from map(int, found)


def _holds(pid: str, mark: int) -> bool:
    try:
        return str(mark).encode() in Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return False


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before: Any = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
