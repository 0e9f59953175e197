"""What can go wrong between peers, each as one sentence that names peer, tag and value."""

from __future__ import annotations

from shoal.core.errors import ShoalError


class CollectiveError(ShoalError):
    """Base of everything that a collective operation raises."""


class Aborted(CollectiveError):
    """An operation that was given up: a peer left or a link broke. Inputs are as they were."""


class TooFewPeers(CollectiveError):
    """An operation that needs a second peer, while there is only one. Inputs are as they were."""


class TagInUse(CollectiveError):
    """A tag that names an operation still in flight."""


class SignatureMismatch(CollectiveError):
    """Peers that call one tag with different counts, element types, operations or formats."""


class OutOfStep(CollectiveError):
    """Peers that wait for each other in different calls, so that none can ever go on."""


class Kicked(CollectiveError):
    """The master has removed this peer and says why."""


class MasterLost(CollectiveError):
    """The master is gone. What this peer holds is intact; ``connect`` again once it is back."""


class Refused(CollectiveError):
    """A connection that did not show the shared token, or does not fit the run."""


class WireError(CollectiveError):
    """Bytes that are no packet of this protocol."""


class StateError(CollectiveError):
    """A shared state that cannot be hashed, matched or fetched."""


FAILURES: dict[str, type[CollectiveError]] = {
    "relink": Aborted,
    "signature": SignatureMismatch,
    "too few": TooFewPeers,
    "out of step": OutOfStep,
}
"""The error behind each kind of :class:`~shoal.collectives.packets.Failed`."""
