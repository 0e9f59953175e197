"""DiLoCo: peers train alone for H steps, then share how far they came.

"DiLoCo: Distributed Low-Communication Training of Language Models" (arXiv 2311.08105), as the
PCCL report (arXiv 2505.14065) runs it: pseudo-gradient Δ = outer − local, mean over the peers,
outer SGD with momentum, local := outer. The shared state is all of it: outer parameters, momentum
and the count of rounds, so a joiner needs nothing else and steady state moves nothing but Δ.

The default is plain averaging (lr 1, no momentum). The published outer setting, lr 0.7 with
Nesterov momentum 0.9, wants fifty rounds and more or a pretrained start; from random weights and
in few rounds it is worse than not communicating at all.

Delayed by one step, Δ travels while the next H steps are computed and is applied after them.
Departures: training goes on from the outer parameters *and* this peer's own Δ in flight, as in
"Eager Updates for Overlapped Communication and Computation in DiLoCo" (arXiv 2502.12996). Going
back to the outer parameters alone, every other Δ starts from the same place, and where H steps
take out a share k of the error, it shrinks by √k a round, which near k = 1 is not at all. And
before a newcomer is admitted the Δ in flight is waited for and applied, so that one
synchronisation is enough; the report has it synchronise twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.collectives.backends import Backend
from shoal.collectives.errors import TooFewPeers
from shoal.collectives.quantize import Quantization
from shoal.collectives.reducing import ReduceInfo
from shoal.collectives.state import SharedState
from shoal.training.staging import Floats, Staging

if TYPE_CHECKING:
    import torch

BUCKET = 16 << 20
"""Elements of a bucket: 64 MiB of f32, one tag each."""


@dataclass(frozen=True, slots=True)
class Outer:
    """The outer optimiser: SGD on pseudo-gradients. The default is plain averaging."""

    lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"The outer learning rate is {self.lr}, but must be positive.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"The outer momentum is {self.momentum}, but must lie in [0, 1).")
        if self.nesterov and not self.momentum:
            raise ValueError("Nesterov needs a momentum above 0.")


PUBLISHED = Outer(lr=0.7, momentum=0.9, nesterov=True)
"""The outer setting of the DiLoCo paper."""


def outer_step(outer: Floats, velocity: Floats, delta: Floats, setting: Outer) -> None:
    """Advance ``outer`` and ``velocity`` in place by a mean pseudo-gradient, as torch's SGD does.

    Every peer computes this from the same bits in the same order, so all stay identical.
    """
    if not setting.momentum:
        outer -= np.float32(setting.lr) * delta
        return
    velocity *= np.float32(setting.momentum)
    velocity += delta
    step = delta + np.float32(setting.momentum) * velocity if setting.nesterov else velocity
    outer -= np.float32(setting.lr) * step


@dataclass(frozen=True, slots=True)
class Round:
    """One outer round of this peer.

    number     outer steps committed so far, by all peers alike
    worlds     over how many peers each bucket was averaged; empty where nothing was
    tx, rx     bytes of pseudo-gradients sent and received
    fetched    bytes of shared state fetched before: 0 but after joining
    committed  whether an outer step was taken
    """

    number: int
    worlds: tuple[int, ...]
    tx: int
    rx: int
    fetched: int
    committed: bool


class DiLoCo:
    """Trains ``parameters`` (a model's, or an adapter's alone) with peers.

    ``round(train)`` runs one round; ``train`` is H inner steps of any optimiser on the parameters,
    which are tensors in any float type, on the CPU or a GPU, whole or sharded
    (:mod:`shoal.training.staging`). A loop of its own calls :meth:`start` and :meth:`share` around
    its steps instead. ``delayed`` hides the traffic behind the next round's computation.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor] | Sequence[torch.Tensor],
        backend: Backend,
        *,
        outer: Outer = Outer(),
        quantization: Quantization = "none",
        delayed: bool = False,
        bucket: int = BUCKET,
    ) -> None:
        self._staging = Staging(parameters)
        size = self._staging.size
        if not size:
            raise ValueError("There is no parameter to train.")
        self.backend, self.setting = backend, outer
        self._quantization, self._delayed = quantization, delayed
        self._cuts = [(a, min(a + bucket, size)) for a in range(0, size, bucket)]
        self._outer = self._staging.empty()
        self._velocity = np.zeros(size if outer.momentum else 0, np.float32)
        self._delta = self._staging.empty()
        self._ahead = self._staging.empty() if delayed else self._delta  # measured in flight
        self._staging.gather(self._outer)
        exact = all(part.element_size() >= 4 for part in self._staging.parts) and not delayed
        # what training starts from: the outer parameters as far as half-width ones hold them,
        # and with a delay this peer's own progress beside
        self._start = self._outer if exact else self._outer.copy()
        arrays: dict[str, Any] = {f"outer.{a}": self._outer[a:b] for a, b in self._cuts}
        if outer.momentum:
            arrays |= {f"velocity.{a}": self._velocity[a:b] for a, b in self._cuts}
        self.state = SharedState(arrays)
        self._flight: _Flight | None = None
        self._fetched = 0

    @property
    def rounds(self) -> int:
        """Outer steps committed so far."""
        return self.state.revision

    @property
    def in_flight(self) -> bool:
        """Whether a pseudo-gradient is on its way: one round more than :attr:`rounds` then."""
        return self._flight is not None

    def round(self, train: Callable[[], object]) -> Round:
        """Synchronise, train, share. Alone, a peer keeps its outer parameters and waits."""
        self.start()
        train()
        return self.share()

    def start(self) -> None:
        """Synchronise, so that training begins at the outer parameters.

        Delayed, only where a newcomer waits or nobody else is there: otherwise nothing is due.
        """
        if self._flight is not None and self.backend.world_size > 1 and not self.backend.pending():
            return
        self.finish()
        self._fetched = self.backend.begin(self.state).rx
        self._begin_at(self._outer)

    def share(self) -> Round:
        """Share how far training has come since :meth:`start`, and take the outer step."""
        if self._delayed:
            return self._share_delayed()
        self._measure(self._delta)
        return self._apply(_average(self.backend, self._buckets(), self._quantization))

    def finish(self) -> Round | None:
        """Wait for a pseudo-gradient still in flight and apply it; None where there is none."""
        return self._land() if self._flight is not None else None

    def _share_delayed(self) -> Round:
        if self._flight is None:
            self._measure(self._delta)
            found = Round(self.rounds, (), 0, 0, self._fetched, False)
            self._fetched = 0
        else:
            self._measure(self._ahead)
            found = self._land()
            self._delta, self._ahead = self._ahead, self._delta
        np.multiply(self._delta, np.float32(-self.setting.lr), out=self._start)
        self._start += self._outer
        self._begin_at(self._start)
        self._flight = _Flight(self.backend, self._buckets(), self._quantization)
        return found

    def _land(self) -> Round:
        assert self._flight is not None
        flight, self._flight = self._flight, None
        return self._apply(flight.wait())

    def _apply(self, infos: list[ReduceInfo] | None) -> Round:
        """Take the outer step, or none where nobody else was there or it does not count."""
        committed = infos is not None and self.backend.commit()
        if committed:
            outer_step(self._outer, self._velocity, self._delta, self.setting)
            self.state.revision += 1
        self._begin_at(self._outer)
        moved = infos or []
        fetched, self._fetched = self._fetched, 0
        return Round(
            self.rounds,
            tuple(info.world for info in moved),
            sum(info.tx for info in moved),
            sum(info.rx for info in moved),
            fetched,
            committed,
        )

    def _buckets(self) -> list[Floats]:
        return [self._delta[a:b] for a, b in self._cuts]

    def _measure(self, delta: Floats) -> None:
        """What training has moved: start − local."""
        self._staging.gather(delta)
        np.subtract(self._start, delta, out=delta)

    def _begin_at(self, flat: Floats) -> None:
        """Let training go on from there."""
        self._staging.scatter(flat)
        if self._start is not self._outer:
            self._staging.gather(self._start)


def _average(
    backend: Backend, buckets: list[Floats], quantization: Quantization
) -> list[ReduceInfo] | None:
    """Average in place; None where this peer is alone."""
    try:
        return backend.average(buckets, quantization)
    except TooFewPeers:
        return None


class _Flight:
    """A pseudo-gradient on its way, on a thread of its own that calls again after a leaver."""

    def __init__(self, backend: Backend, buckets: list[Floats], quantization: Quantization) -> None:
        self._found: list[ReduceInfo] | None = None
        self._error: BaseException | None = None

        def fly() -> None:
            try:
                self._found = _average(backend, buckets, quantization)
            except BaseException as error:  # raised where it is waited for
                self._error = error

        self._thread = threading.Thread(target=fly, name="shoal-flight", daemon=True)
        self._thread.start()

    def wait(self) -> list[ReduceInfo] | None:
        """What came of it; raises what went wrong."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found
