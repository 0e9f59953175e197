"""``POST /v1/settlements``: one number out of what each agent reports, by a rule lies cannot game.

Weights come from a ledger, never from a body, so all reports weigh the same here.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HTTPRequest
from pydantic import BaseModel, ConfigDict, Field

from shoal.core.records import to_json
from shoal.mechanisms import Round, Settlement
from shoal.mechanisms.location.sheets import find_mechanism
from shoal.mechanisms.protocol import Mechanism, ReportError
from shoal.server.errors import ApiError
from shoal.server.service import Service, tenant_of


class SettlementBody(BaseModel):
    """Reports by agent; null is an agent that is absent."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    reports: dict[str, Any] = Field(min_length=1)
    low: float = 0.0
    high: float = 1.0
    rule: str = "uniform-phantom"
    alternatives: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0, lt=2**63)


def router(service: Service) -> APIRouter:
    """The route over one service."""
    routes = APIRouter()

    @routes.post("/v1/settlements")
    async def settle(body: SettlementBody, http: HTTPRequest) -> Any:
        mechanism = find_mechanism(body.rule, body.low, body.high, body.alternatives)
        async with service.gate.place(tenant_of(http)):
            settlement = await asyncio.to_thread(_settled, mechanism, body)
        return _plain(settlement)

    return routes


def _settled(mechanism: Mechanism, body: SettlementBody) -> Settlement:
    """The settlement; a report that cannot count is 422 and names its agent."""
    round = Round(mechanism, list(body.reports), seed=body.seed)
    for agent, value in body.reports.items():
        if value is None:
            continue
        try:
            round.report(agent, value)
        except ReportError as error:
            raise ApiError(422, str(error), param=f"reports.{agent}") from error
    return round.settle()


def _plain(settlement: Settlement) -> Any:
    return json.loads(to_json(settlement))
