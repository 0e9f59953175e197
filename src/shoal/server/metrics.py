"""What /metrics tells, in Prometheus' text format: one registry an app.

Tenants are labels, and as many as the key file names; whoever comes without a key counts under
one name, and paths are the routes' own, so no client can make up new series.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.core.protocols import Completion, Engine, Loaded
from shoal.engine.upstream import UpstreamCounters
from shoal.server.admission import Gate

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Meters:
    """Counts what one server does."""

    def __init__(self, engine: Engine, gate: Gate) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_State(engine, gate))
        self._requests = Counter(
            "shoal_requests",
            "HTTP requests answered.",
            ("tenant", "path", "status"),
            registry=self._registry,
        )
        self._tokens = Counter(
            "shoal_tokens",
            "Tokens: of prompts, those of them found in a cache, decoded ones.",
            ("tenant", "kind"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "shoal_request_seconds",
            "From a request's arrival to the end of its answer.",
            ("tenant", "path"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "shoal_first_token_seconds",
            "From a request's arrival to the first token of an answer, waiting included.",
            ("tenant",),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def answered(self, tenant: str, path: str, status: int, seconds: float) -> None:
        """A request has its answer, or its client has gone (499)."""
        self._requests.labels(tenant, path, str(status)).inc()
        self._seconds.labels(tenant, path).observe(seconds)

    def generated(self, tenant: str, completions: Sequence[Completion], waited: float) -> None:
        """A group was generated after waiting some seconds for its place."""
        for kind, count in (
            ("prompt", sum(one.usage.prompt_tokens for one in completions)),
            ("shared", sum(one.usage.shared_tokens for one in completions)),
            ("decoded", sum(one.usage.decoded_tokens for one in completions)),
        ):
            self._tokens.labels(tenant, kind).inc(count)
        for one in completions:
            if one.usage.decoded_tokens:
                self._first.labels(tenant).observe(waited + one.usage.first_token_ms / 1e3)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self._registry)


class _State(Collector):
    """What is true at the moment of asking."""

    def __init__(self, engine: Engine, gate: Gate) -> None:
        self._engine = engine
        self._gate = gate

    def collect(self) -> Iterable[Metric]:
        requests = GaugeMetricFamily(
            "shoal_admitted_requests", "Requests with a place, and waiting.", labels=["state"]
        )
        requests.add_metric(["running"], self._gate.running)
        requests.add_metric(["waiting"], self._gate.waiting)
        yield requests
        counters = getattr(self._engine, "counters", None)
        if isinstance(counters, UpstreamCounters):
            yield _passed_on(counters)
        if not isinstance(self._engine, Loaded):
            return
        load = self._engine.load
        jobs = GaugeMetricFamily(
            "shoal_engine_requests", "Answers under way in the engine.", labels=["state"]
        )
        jobs.add_metric(["running"], load.running)
        jobs.add_metric(["waiting"], load.waiting)
        yield jobs
        yield CounterMetricFamily(
            "shoal_preemptions",
            "Answers that gave their memory to others and went on later.",
            value=load.preemptions,
        )
        cache = GaugeMetricFamily(
            "shoal_cache_bytes",
            "KV cache: its size, what it holds, and what requests under way hold of it.",
            labels=["state"],
        )
        cache.add_metric(["capacity"], load.capacity_bytes)
        cache.add_metric(["used"], load.used_bytes)
        cache.add_metric(["pinned"], load.pinned_bytes)
        yield cache


def _passed_on(counters: UpstreamCounters) -> Metric:
    """What the planner in front of an endpoint did with the requests it got."""
    requests = CounterMetricFamily(
        "shoal_upstream_requests",
        "Requests that came in, went out, shared an answer, went ahead of a group, went again.",
        labels=["kind"],
    )
    requests.add_metric(["asked"], counters.asked)
    requests.add_metric(["sent"], counters.sent)
    requests.add_metric(["deduplicated"], counters.deduplicated)
    requests.add_metric(["ahead"], counters.ahead)
    requests.add_metric(["retried"], counters.retried)
    return requests
