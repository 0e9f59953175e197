"""What all endpoints of a server have in common: the engine, who may use it, and how to answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request as HTTPRequest
from fastapi import Response

from shoal.core.protocols import Completion, Engine, OnDelta, Request
from shoal.server.adapters import adapter_of, names_of
from shoal.server.admission import Gate
from shoal.server.errors import from_completion
from shoal.server.metrics import Meters
from shoal.server.shapes import Shape
from shoal.server.streaming import ClientGone, EventStream, Live, unless_gone
from shoal.server.tenants import Keyring, Tenant


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a server bears.

    max_body_bytes   of one request
    max_file_bytes   of one uploaded file
    max_running      requests answered at a time, over all tenants; more of them wait
    max_waiting      requests that may wait; the next one gets a 429
    request_seconds  a request may take, once it does not wait any more
    stop_seconds     that requests under way have to end when the server stops
    stored_bytes     of answers kept for ``previous_response_id``
    """

    max_body_bytes: int = 16 << 20
    max_file_bytes: int = 256 << 20
    max_running: int = 256
    max_waiting: int = 1024
    request_seconds: float = 600.0
    stop_seconds: float = 30.0
    stored_bytes: int = 64 << 20


class Service:
    """One engine behind one name, with its limits and meters."""

    def __init__(
        self, engine: Engine, model_name: str, *, keyring: Keyring, limits: ServerLimits
    ) -> None:
        self.engine = engine
        self.model_name = model_name
        self.keyring = keyring
        self.limits = limits
        self.created = int(time.time())
        self.gate = Gate(
            max_running=limits.max_running,
            max_waiting=limits.max_waiting,
            seconds=limits.request_seconds,
        )
        self.meters = Meters(engine, self.gate)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Adapters that requests can name."""
        return names_of(self.engine)

    def adapter_of(self, model: str, adapter: str | None = None) -> str | None:
        """The adapter a body means, None for the model itself.

        Raises :class:`ApiError`: 404 for a model or adapter that is not served here.
        """
        return adapter_of(model, adapter, self.model_name, self.adapters)

    async def generate(
        self, tenant: Tenant, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        """Completions of a group, once the tenant has a place."""
        arrived = time.perf_counter()
        async with self.gate.place(tenant):
            waited = time.perf_counter() - arrived
            completions = await self.engine.generate(requests, on_delta)
        self.meters.generated(tenant.name, completions, waited)
        return completions

    async def respond(
        self,
        http: HTTPRequest,
        requests: Sequence[Request],
        shape: Shape,
        *,
        stream: bool,
    ) -> Response:
        """The whole answer, or a stream of it.

        An error before the first text has a status; one after it ends the stream.
        """
        tenant = tenant_of(http)
        try:
            if not stream:
                completions = await unless_gone(http, self.generate(tenant, requests))
                _check(completions)
                answer = shape.whole(completions).model_dump_json()
                return Response(answer, media_type="application/json")
            live = Live(lambda on_delta: self.generate(tenant, requests, on_delta))
            try:
                ended = await unless_gone(http, live.begin())
                _check(ended or ())
            except BaseException:
                live.task.cancel()
                raise
            return EventStream(live, shape)
        except ClientGone:
            return Response(status_code=499)


def tenant_of(http: HTTPRequest) -> Tenant:
    """Who asks, as found before the body was read."""
    tenant = http.state.tenant
    assert isinstance(tenant, Tenant), "every route but the open ones knows its tenant"
    return tenant


def _check(completions: Sequence[Completion]) -> None:
    """Raise for the first request that failed alone."""
    for completion in completions:
        if completion.error is not None:
            raise from_completion(completion)
