"""A peer in a process of its own that does what a test tells it, a line of JSON at a time.

Run as a script it is the peer; imported it is the test's end of the strings.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from shoal.collectives import Communicator, SharedState
from shoal.collectives.state import content_hash

TOKEN = "a token that only tests know"


def pattern(seed: int, size: int, dtype: str) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=size).astype(dtype)
    return rng.integers(0, 10, size).astype(dtype)


class Actor:
    """The commands; each returns what can be said in JSON."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.peer = Communicator(token=options.pop("token", TOKEN), **options)
        self.arrays: dict[str, Any] = {}
        self.state: SharedState | None = None

    def connect(self) -> str:
        self.peer.connect(timeout=30)
        return self.peer.id

    def gather(self, world: int) -> int:
        """Admit until there are that many."""
        self.peer.gather(world)
        return self.peer.world_size

    def update_topology(self) -> list[str]:
        self.peer.update_topology()
        return list(self.peer.ring)

    def optimize(self, seconds: float) -> list[str]:
        self.peer.optimize_topology(seconds)
        return list(self.peer.ring)

    def pending(self) -> bool:
        return self.peer.peers_pending()

    def make(self, name: str, seed: int, size: int, dtype: str = "float32") -> str:
        self.arrays[name] = pattern(seed, size, dtype)
        return self.hash(name)

    def hash(self, name: str) -> str:
        return content_hash(self.arrays[name])

    def reduce(self, name: str, out: str | None = None, **options: Any) -> dict[str, Any]:
        target = self.arrays[out] if out else None
        info = self.peer.all_reduce(self.arrays[name], target, **options)
        done = self.hash(out or name)
        return {"world": info.world, "tx": info.tx, "rx": info.rx, "hash": done}

    def reduce_many(self, names: list[str], **options: Any) -> list[int]:
        found = self.peer.all_reduce_many([self.arrays[name] for name in names], **options)
        return [info.world for info in found]

    def share(self, values: dict[str, float], revision: int = 0, size: int = 3) -> None:
        arrays = {key: np.full(size, value) for key, value in values.items()}
        self.state = SharedState(arrays, revision=revision)

    def sync(self, strategy: str = "enforce-popular") -> dict[str, Any]:
        assert self.state is not None
        info = self.peer.sync_state(self.state, strategy)
        values = {key: buffer.flat[0] for key, buffer in self.state.buffers.items()}
        return {"revision": info.revision, "tx": info.tx, "rx": info.rx, "values": values}

    def values(self) -> dict[str, float]:
        assert self.state is not None
        return {key: buffer.flat[0] for key, buffer in self.state.buffers.items()}

    def sum(self, name: str) -> float:
        return float(self.arrays[name].sum())

    def close(self) -> None:
        self.peer.close()


class Refusal(Exception):
    """What the peer raised: the error's name and its sentence."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text


class Puppet:
    """The test's end: ``begin`` sends a command, ``end`` waits for the answer, a call does both."""

    def __init__(self, master: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps({"master": master, **options})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
        )

    def begin(self, command: str, *arguments: Any, **options: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, arguments, options]) + "\n")
        self.process.stdin.flush()

    def end(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Refusal("Gone", "the process has ended")
        kind, value = json.loads(line)
        if kind != "ok":
            raise Refusal(kind, value)
        return value

    def __getattr__(self, command: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.begin(command, *arguments, **options)
            return self.end()

        return call

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process.kill()
        self.process.wait()


def all_end(*puppets: Puppet) -> list[Any]:
    """The answers of all to commands that were begun."""
    return [puppet.end() for puppet in puppets]


def together(
    command: str, *puppets: Puppet, args: tuple[Any, ...] = (), **options: Any
) -> list[Any]:
    """The same command for all at once."""
    for puppet in puppets:
        puppet.begin(command, *args, **options)
    return all_end(*puppets)


def main() -> None:
    actor = Actor(json.loads(sys.argv[1]))
    lock = threading.Lock()
    for line in sys.stdin:
        command, arguments, options = json.loads(line)
        try:
            answer = ["ok", getattr(actor, command)(*arguments, **options)]
        except Exception as error:
            answer = [type(error).__name__, str(error)]
        with lock:
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
