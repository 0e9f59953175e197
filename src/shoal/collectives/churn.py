"""A crowd of peer processes that are killed, frozen and reset at random, and what came of it.

Peers print JSON lines, each with ``at`` (monotonic seconds): ``{"event": "joined"}`` and, for
every step they committed, ``{"event": "step", "revision", "hash"}``. Nothing is injected:
processes die of SIGKILL, freeze of SIGSTOP, and the kernel resets their connections.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

Line = dict[str, Any]
LONG_FREEZE = 3.5
"""Seconds of the longer freeze: beyond the master's patience in a churn, which is 2 s."""

FROZEN = 2.5
"""Seconds after the beginning of a freeze in which others may still have to wait for its end."""


@dataclass(frozen=True, slots=True)
class Disruption:
    """What was done to whom: "kill", "freeze", "long freeze", "reset" or "join"."""

    kind: str
    pid: int
    at: float


@dataclass(slots=True)
class Crowd:
    """Processes of one command. Leaving the block kills all of them, and only them."""

    command: Callable[[], Sequence[str]]
    most: int = 6
    lines: list[Line] = field(default_factory=list)
    done: list[Disruption] = field(default_factory=list)
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _frozen: dict[int, float] = field(default_factory=dict)

    def alive(self) -> list[subprocess.Popen[str]]:
        """Those that run and are not frozen."""
        return [p for p in self._processes if p.poll() is None and p.pid not in self._frozen]

    def start(self) -> None:
        """One more."""
        process = subprocess.Popen(
            self.command(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._processes.append(process)
        self.done.append(Disruption("join", process.pid, time.monotonic()))
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for text in process.stdout:
            try:
                self.lines.append({**json.loads(text), "pid": process.pid})
            except ValueError:  # a line cut short by a kill
                return

    def trained(self) -> list[subprocess.Popen[str]]:
        """Those alive that have committed a step."""
        seen = {line["pid"] for line in list(self.lines) if line["event"] == "step"}
        return [process for process in self.alive() if process.pid in seen]

    def disrupt(self, rng: random.Random, kinds: Sequence[str]) -> None:
        """Do something to one peer, as long as two others are at work; thaw who was frozen."""
        now = time.monotonic()
        for process in self._processes:
            if self._frozen.get(process.pid, now) < now:
                del self._frozen[process.pid]
                process.send_signal(signal.SIGCONT)
        working = self.trained()
        if len(working) >= 3:
            process, kind = rng.choice(working), rng.choice(kinds)
            if kind == "kill":
                process.kill()
            elif kind == "reset":
                if not reset_connection(process.pid, rng):
                    return
            else:
                seconds = LONG_FREEZE if kind == "long freeze" else 0.3
                self._frozen[process.pid] = now + seconds
                process.send_signal(signal.SIGSTOP)
            self.done.append(Disruption(kind, process.pid, time.monotonic()))
        running = sum(p.poll() is None for p in self._processes)
        if running < self.most:
            self.start()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


def reset_connection(pid: int, rng: random.Random) -> bool:
    """Let the kernel reset one established connection of a process; False where it cannot."""
    if shutil.which("ss") is None or os.geteuid() != 0:
        return False
    found = subprocess.run(["ss", "-Htnp"], capture_output=True, text=True, check=False).stdout
    ends = re.findall(rf"ESTAB\s+\d+\s+\d+\s+(\S+):(\d+)\s+(\S+):(\d+)\s.*pid={pid},", found)
    if not ends:
        return False
    here, port, there, other = rng.choice(ends)
    chosen = ["src", here.strip("[]"), "sport", "=", port, "dst", there.strip("[]"), "dport", "="]
    done = subprocess.run(
        ["ss", "-K", "-t", *chosen, other], capture_output=True, text=True, check=False
    )
    return port in done.stdout


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it: steps of all peers, revisions among them, those with differing bits,
    seconds from each kill to the second step that a survivor committed after it. Where another
    peer was frozen at the time, all wait for the master to give that one up: counted apart."""

    steps: int
    revisions: int
    differing: int
    recoveries: tuple[float, ...]
    beside_a_freeze: tuple[float, ...]
    joins: tuple[float, ...]
    fetched_later: int


def analyse(lines: Sequence[Line], done: Sequence[Disruption]) -> Report:
    """Read the lines. The first step after a kill may have been decided before it, so recovery
    counts to the second one, by whoever gets there first."""
    steps = [line for line in lines if line["event"] == "step"]
    hashes: dict[int, set[str]] = {}
    for step in steps:
        hashes.setdefault(step["revision"], set()).add(step["hash"])
    recoveries: dict[bool, list[float]] = {True: [], False: []}
    freezes = [event.at for event in done if "freeze" in event.kind]
    for kill in (event for event in done if event.kind == "kill"):
        after: dict[int, list[float]] = {}
        for step in steps:
            if step["at"] > kill.at and step["pid"] != kill.pid:
                after.setdefault(step["pid"], []).append(step["at"] - kill.at)
        second = [sorted(times)[1] for times in after.values() if len(times) > 1]
        if second:
            frozen = any(at < kill.at < at + FROZEN for at in freezes)
            recoveries[frozen].append(min(second))
    return Report(
        len(steps),
        len(hashes),
        sum(len(found) > 1 for found in hashes.values()),
        tuple(recoveries[False]),
        tuple(recoveries[True]),
        tuple(line["seconds"] for line in lines if line["event"] == "joined"),
        sum(step.get("rx", 0) for step in steps),
    )
