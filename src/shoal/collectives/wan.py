"""Slow, unequal networks on one machine, for tests and claims.

Three ways, each for what it shows best: a ``pacing`` of every connection (no privileges; the share
one flow gets of a long line), shaped veth links between network namespaces (root; a rate for every
ordered pair), and a line with a delay (root; :mod:`shoal.collectives.longline`), as ``netem`` is in
no kernel that this was tried on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType

from shoal.collectives.errors import CollectiveError


def unavailable() -> str | None:
    """Why shaped links cannot be made here; None where they can."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"the tool {tool} is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"shoal-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return None


class ShapedNetwork:
    """Hosts 0 … n-1 in namespaces of their own on one bridge; ``rates`` caps pairs, in Mbit/s.

    Programs run on a host with :meth:`command` before theirs; this process is on the bridge at
    :attr:`outside`. Raises :class:`CollectiveError` where the kernel refuses. Leaves nothing
    behind.
    """

    def __init__(self, hosts: int, rates: Mapping[tuple[int, int], float]) -> None:
        self._hosts, self._rates = hosts, rates
        self._tag = f"sh{os.getpid() % 100_000}"
        self._net = f"10.{77 + os.getpid() % 100}.{os.getpid() % 250}"

    @property
    def outside(self) -> str:
        """This process's address as the hosts see it."""
        return f"{self._net}.254"

    def address(self, host: int) -> str:
        """A host's address."""
        return f"{self._net}.{host + 1}"

    def command(self, host: int) -> Sequence[str]:
        """What to put before a program to run it on a host."""
        return ("ip", "netns", "exec", self._name(host))

    def _name(self, host: int) -> str:
        return f"{self._tag}n{host}"

    def __enter__(self) -> ShapedNetwork:
        try:
            configure("ip", "link", "add", self._tag, "type", "bridge")
            configure("ip", "address", "add", f"{self.outside}/24", "dev", self._tag)
            configure("ip", "link", "set", self._tag, "up")
            for host in range(self._hosts):
                self._add(host)
        except BaseException:
            self._remove()
            raise
        return self

    def _add(self, host: int) -> None:
        name, port = self._name(host), f"{self._tag}p{host}"
        inside = ("ip", "-n", name)
        configure("ip", "netns", "add", name)
        configure("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        configure("ip", "link", "set", port, "master", self._tag, "up")
        configure(*inside, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        configure(*inside, "link", "set", "eth0", "up")
        configure(*inside, "link", "set", "lo", "up")
        shape = ("tc", "-n", name)
        configure(*shape, "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb")
        for other in range(self._hosts):
            if (host, other) in self._rates:
                kind = f"1:{other + 10}"
                rate = f"{self._rates[host, other]:g}mbit"
                to = ("protocol", "ip", "parent", "1:", "u32", "match", "ip", "dst")
                configure(*shape, "class", "add", "dev", "eth0", "parent", "1:", "classid", kind,
                     "htb", "rate", rate, "quantum", "3000")  # fmt: skip
                configure(*shape, "filter", "add", "dev", "eth0", *to, self.address(other),
                     "flowid", kind)  # fmt: skip

    def _remove(self) -> None:
        for host in range(self._hosts):
            with contextlib.suppress(CollectiveError):
                configure("ip", "netns", "delete", self._name(host))
        with contextlib.suppress(CollectiveError):
            configure("ip", "link", "delete", self._tag)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()


def configure(*command: str) -> None:
    """Run a tool of the network; raises :class:`CollectiveError` with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CollectiveError(f"{' '.join(command)} failed: {done.stderr.strip()}.")
