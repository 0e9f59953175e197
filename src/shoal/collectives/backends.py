"""One protocol for what a trainer needs of its peers, and three ways to get it.

``shoal``    this package's ring: peers come and go
``gloo``     torch.distributed: fastest on one machine, and the death of one peer ends the job
``torchft``  quorums by torchft's lighthouse, data by gloo (extra ``ft``)

A step is ``begin`` (who is there, and one state for all), ``average`` (in place), ``commit``.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import numpy as np

from shoal.collectives.exchange import SyncInfo
from shoal.collectives.kernels import Array, Op
from shoal.collectives.peer import Communicator
from shoal.collectives.quantize import Quantization
from shoal.collectives.reducing import ReduceInfo
from shoal.collectives.state import SharedState
from shoal.core.errors import ConfigError, MissingExtra


class Backend(Protocol):
    """What a trainer asks of its peers; all of them make the same calls in the same order."""

    @property
    def world_size(self) -> int:
        """Peers of the last ring, group or quorum."""
        ...

    def begin(self, state: SharedState) -> SyncInfo:
        """Admit who waits and make every peer hold the same state, in place."""
        ...

    def average(
        self, arrays: Sequence[Array], quantization: Quantization = "none"
    ) -> list[ReduceInfo]:
        """The mean over all peers, in place; raises :class:`TooFewPeers` where nobody else is."""
        ...

    def commit(self) -> bool:
        """Whether what was averaged since ``begin`` counts, for all peers alike."""
        ...

    def pending(self) -> bool:
        """Whether newcomers wait, the same answer to all."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


class ShoalBackend:
    """The ring of this package; ``peer`` is connected already."""

    def __init__(self, peer: Communicator, *, max_in_flight: int = 8) -> None:
        self.peer = peer
        self._most = max_in_flight

    @property
    def world_size(self) -> int:
        return self.peer.world_size

    def begin(self, state: SharedState) -> SyncInfo:
        self.peer.update_topology()
        return self.peer.sync_state(state)

    def average(
        self, arrays: Sequence[Array], quantization: Quantization = "none"
    ) -> list[ReduceInfo]:
        return self.peer.all_reduce_many(
            arrays, op=Op.AVG, quantization=quantization, max_in_flight=self._most
        )

    def commit(self) -> bool:
        return True  # every operation has committed by itself

    def pending(self) -> bool:
        return self.peer.peers_pending()

    def close(self) -> None:
        self.peer.close()


class GlooBackend:
    """torch.distributed with gloo: a fixed number of ranks. Nobody joins, and nobody may die."""

    def __init__(self, init_method: str, *, rank: int, world: int, timeout: float = 60.0) -> None:
        import torch.distributed as dist

        self._dist = dist
        self._agreed = False
        dist.init_process_group(
            "gloo",
            init_method=init_method,
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=timeout),
        )

    @property
    def world_size(self) -> int:
        return int(self._dist.get_world_size())

    def begin(self, state: SharedState) -> SyncInfo:
        """The first time all take over what rank 0 holds."""
        import torch

        total = 0
        if not self._agreed:
            revision = torch.tensor([state.revision])
            self._dist.broadcast(revision, src=0)
            state.revision = int(revision)
            for buffer in state.buffers.values():
                self._dist.broadcast(torch.from_numpy(buffer.flat.view(np.uint8)), src=0)
                total += buffer.flat.nbytes
        self._agreed = True
        sender = self._dist.get_rank() == 0
        return SyncInfo(state.revision, total if sender else 0, 0 if sender else total, 1)

    def average(
        self, arrays: Sequence[Array], quantization: Quantization = "none"
    ) -> list[ReduceInfo]:
        import torch

        if quantization != "none":
            raise ConfigError("gloo does not quantise: use the backend 'shoal' or 'none'.")
        world = self.world_size
        for array in arrays:
            self._dist.all_reduce(torch.from_numpy(array))
            np.divide(array, world, out=array)
        return [ReduceInfo(world, *_ring_bytes(array, world)) for array in arrays]

    def commit(self) -> bool:
        return True

    def pending(self) -> bool:
        return False

    def close(self) -> None:
        self._dist.destroy_process_group()


class TorchFTBackend:
    """A replica group of one process under torchft's lighthouse, data over its gloo.

    ``timeout`` seconds is how long a collective waits for a peer that has died. Raises
    :class:`MissingExtra` where torchft is not installed.
    """

    def __init__(self, lighthouse: str, *, replica: str, timeout: float = 5.0) -> None:
        try:
            from torchft import Manager, ProcessGroupGloo
        except ImportError as error:
            raise MissingExtra("The backend 'torchft'", "ft") from error
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        wait = timedelta(seconds=timeout)
        self._state: SharedState | None = None
        self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self._healed = 0
        self._manager = Manager(
            pg=ProcessGroupGloo(timeout=wait),
            load_state_dict=self._load,
            state_dict=self._save,
            min_replica_size=1,
            use_async_quorum=False,
            timeout=wait,
            quorum_timeout=timedelta(seconds=60),
            rank=0,
            world_size=1,
            store_addr="localhost",
            store_port=self._store.port,
            lighthouse_addr=lighthouse,
            replica_id=replica,
            hostname=socket.gethostbyname("localhost"),
        )

    def _save(self) -> dict[str, Any]:
        assert self._state is not None, "a quorum begins with a state"
        copies = {key: buffer.flat.copy() for key, buffer in self._state.buffers.items()}
        return {"revision": self._state.revision, "arrays": copies}

    def _load(self, found: dict[str, Any]) -> None:
        assert self._state is not None, "a quorum begins with a state"
        self._state.revision = found["revision"]
        for key, array in found["arrays"].items():
            self._state.buffers[key].flat[:] = array
            self._healed += array.nbytes

    @property
    def world_size(self) -> int:
        return int(self._manager.num_participants())

    def begin(self, state: SharedState) -> SyncInfo:
        self._state, self._healed = state, 0
        self._manager.start_quorum()
        return SyncInfo(state.revision, 0, self._healed, self.world_size)

    def average(
        self, arrays: Sequence[Array], quantization: Quantization = "none"
    ) -> list[ReduceInfo]:
        import torch

        if quantization != "none":
            raise ConfigError("torchft quantises on GPUs only: use the backend 'shoal' or 'none'.")
        works = [self._manager.allreduce(torch.from_numpy(array)) for array in arrays]
        for work in works:
            work.wait()
        world = self.world_size
        return [ReduceInfo(world, *_ring_bytes(array, world)) for array in arrays]

    def commit(self) -> bool:
        return bool(self._manager.should_commit())

    def pending(self) -> bool:
        return False  # a quorum takes newcomers in by itself

    def close(self) -> None:
        self._manager.shutdown(wait=False)


def _ring_bytes(array: Array, world: int) -> tuple[int, int]:
    """Bytes a ring sends and receives for one array: computed, as gloo does not count."""
    moved = 2 * (world - 1) * array.nbytes // max(1, world)
    return moved, moved
