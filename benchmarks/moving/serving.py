"""How a trace of prompts is served: exactly, or with moved text, in some order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moving.rules import BUDGET
from moving.timed import Clock, Timed
from shoal.engine.kvshare.order import HitRateOrder, PreparedOrder
from shoal.engine.kvshare.sharing import REPAIR, KVShare
from shoal.engine.kvshare.store import SegmentStore
from shoal.engine.policies import ArrivalOrder, Policy
from shoal.engine.repair import Repair
from shoal.models.loading import Model

STORE_BYTES = 1 << 29


@dataclass(frozen=True)
class Arm:
    """How a trace is served."""

    repair: Repair | None = None
    order: Callable[[KVShare | None, Clock], Policy] = lambda kvshare, clock: ArrivalOrder()


ARMS = {
    "exact prefix, arrival order": Arm(),
    "CacheBlend 15 %, arrival order": Arm(
        Repair("deviation", BUDGET), lambda kvshare, clock: PreparedOrder(kvshare)
    ),
    "KVShare, arrival order": Arm(REPAIR, lambda kvshare, clock: PreparedOrder(kvshare)),
    "KVShare, hit rate alone": Arm(
        REPAIR,
        lambda kvshare, clock: HitRateOrder(kvshare, clock=clock, ageing=0, slack=float("inf")),
    ),
    "KVShare, hit rate with ageing and shares": Arm(
        REPAIR, lambda kvshare, clock: HitRateOrder(kvshare, clock=clock)
    ),
}
BASE, OURS = "exact prefix, arrival order", "KVShare, hit rate with ageing and shares"


def opened(model: Model, arm: Arm) -> tuple[Timed, KVShare | None]:
    """An engine for an arm, warm and with an empty cache."""
    engine = Timed(model, kv_bytes=1 << 30)
    engine.clock = Clock()
    kvshare = None
    if arm.repair is not None:
        store = SegmentStore(model.fingerprint, max_bytes=STORE_BYTES)
        kvshare = engine.reuse = KVShare(engine, store=store, repair=arm.repair)
    engine.scheduler.waiting = arm.order(kvshare, engine.clock)
    return engine, kvshare
