"""The tiers in their order, and opening a session in the best that works."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.core.errors import ConfigError, nearest
from shoal.sandbox import bubblewrap, interpreted, landlocked, plain
from shoal.sandbox.outcome import Outcome
from shoal.sandbox.policy import Callback, NoSandbox, Permit, Policy, reads_only

log = logging.getLogger(__name__)


class Session(Protocol):
    """One long-lived sandbox: what a run defines, later runs find. Not for several threads.

    isolation  the tier's name
    """

    isolation: str

    def run(
        self, code: str, tools: Sequence[Callback] = (), permit: Permit = reads_only
    ) -> Outcome:
        """Run Python code; blocks until it ends or meets a limit.

        ``tools`` are functions the code may call, by name of their arguments; they run outside,
        each call after ``permit`` let it. Raises :class:`SessionOver` where a limit has ended
        the session before.
        """
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write a file in the session's folder."""
        ...

    def get(self, name: str) -> bytes:
        """Read a file from there."""
        ...

    def close(self) -> None:
        """End it, and all it started."""
        ...


@dataclass(frozen=True, slots=True)
class Tier:
    """One way to isolate.

    kernel   whether the kernel enforces it
    gaps     what it does not protect, in words
    missing  why it does not work here, or None
    """

    name: str
    kernel: bool
    gaps: tuple[str, ...]
    missing: Callable[[], str | None]
    open: Callable[[Policy], Session]


TIERS: Mapping[str, Tier] = {
    name: Tier(name, kernel, module.GAPS, module.missing, module.open_session)
    for name, kernel, module in (
        (bubblewrap.NAME, True, bubblewrap),
        (landlocked.NAME, True, landlocked),
        (interpreted.NAME, False, interpreted),
        (plain.NAME, False, plain),
    )
}
"""All tiers, best first."""


class Sandbox:
    """Where code nobody wrote by hand is run: ``Sandbox.open(policy).run(code)``."""

    @staticmethod
    def open(policy: Policy = Policy()) -> Session:
        """A session in the policy's tier, or in the best that works here.

        Raises :class:`NoSandbox` where the tier does not work, or none does and the policy does
        not allow to run without isolation in so many words.
        """
        if policy.tier is not None:
            if policy.tier not in TIERS:
                raise ConfigError(f"There is no tier {policy.tier!r}.{nearest(policy.tier, TIERS)}")
            tier = TIERS[policy.tier]
            if why := tier.missing():
                raise NoSandbox(f"The tier {tier.name} does not work here: {why}.")
            return tier.open(policy)
        for tier in TIERS.values():
            why = tier.missing()
            if why is None:
                log.debug("sandbox tier %s", tier.name)
                return tier.open(policy)
            log.info("sandbox tier %s is left out: %s", tier.name, why)
        raise AssertionError("the last tier works everywhere")
