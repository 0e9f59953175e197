"""Fault-tolerant all-reduce between peers that come and go (PCCL, arXiv 2505.14065).

A :class:`Communicator` is a peer, a :class:`Master` counts votes and never touches a tensor.
"""

from shoal.collectives.errors import (
    Aborted,
    CollectiveError,
    Kicked,
    MasterLost,
    OutOfStep,
    Refused,
    SignatureMismatch,
    StateError,
    TagInUse,
    TooFewPeers,
    WireError,
)
from shoal.collectives.exchange import SyncInfo
from shoal.collectives.kernels import Op
from shoal.collectives.packets import Strategy
from shoal.collectives.peer import Communicator
from shoal.collectives.reducing import Handle, ReduceInfo
from shoal.collectives.serve import Master, MasterThread
from shoal.collectives.state import SharedState

__all__ = [
    "Aborted",
    "CollectiveError",
    "Communicator",
    "Handle",
    "Kicked",
    "Master",
    "MasterLost",
    "MasterThread",
    "Op",
    "OutOfStep",
    "ReduceInfo",
    "Refused",
    "SharedState",
    "SignatureMismatch",
    "StateError",
    "Strategy",
    "SyncInfo",
    "TagInUse",
    "TooFewPeers",
    "WireError",
]
