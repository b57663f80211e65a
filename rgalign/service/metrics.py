"""What Prometheus reads. Labels come of closed sets, so that no client can make more series."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rgalign.service.errors import ErrorCode
from rgalign.service.face import Health, Recommendation

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0)
STAGES = ("tokenise", "queue", "reason", "rank", "total")
BREAKER_STATES = ("closed", "open", "half_open")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Meters:
    """The service's series, in a registry of their own."""

    def __init__(self, health: Callable[[], Health]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "rgalign_http_requests", "Requests answered.", ("route", "status", "code"), registry=self.registry
        )
        self._seconds = Histogram(
            "rgalign_http_request_seconds",
            "From the whole request's arrival to the answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._refused = Counter(
            "rgalign_http_refused",
            "Refused before a route.",
            ("code",),
            registry=self.registry,
        )
        self._answers = Counter(
            "rgalign_recommendations", "Recommendations given.", ("degraded",), registry=self.registry
        )
        self._stage = Histogram(
            "rgalign_stage_seconds", "Of a recommendation.", ("stage",), buckets=SECONDS, registry=self.registry
        )
        self._stages = {name: self._stage.labels(name) for name in STAGES}
        self.registry.register(FromHealth(health))
        ProcessCollector(registry=self.registry)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)

    def request(self, route: str, status: int, code: ErrorCode | None, seconds: float) -> None:
        self._requests.labels(route, str(status), "ok" if code is None else code.value).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, code: ErrorCode) -> None:
        self._refused.labels(code.value).inc()

    def recommendation(self, answer: Recommendation) -> None:
        self._answers.labels(answer.degraded or "no").inc()
        for name, series in self._stages.items():
            series.observe(getattr(answer.timings, f"{name}_ms") / 1e3)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class FromHealth(Collector):
    """Series read from the recommender when Prometheus asks."""

    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health

    def describe(self) -> list[Metric]:
        return []  # registering must not ask the recommender

    def collect(self) -> Iterator[Metric]:
        health = self._health()
        yield gauge("rgalign_ready", "1: the last real answer was good.", health.ready)
        yield gauge("rgalign_degraded", "1: answers come without the reasoner.", health.degraded)
        yield gauge("rgalign_index_generation", "Of the intent index.", health.generation)
        text = "Outside the vocabularies, since the bundle was loaded."
        yield CounterMetricFamily("rgalign_unknown_values", text, value=health.unknown_values)
        breaker = GaugeMetricFamily("rgalign_breaker", "1: the state of the reasoner's breaker.", labels=["state"])
        for state in BREAKER_STATES:
            breaker.add_metric([state], float(health.breaker == state))
        yield breaker
        bundle = GaugeMetricFamily("rgalign_bundle", "1: the bundle that answers.", labels=["bundle"])
        bundle.add_metric([health.bundle], 1.0)
        yield bundle
        if health.queue is not None:
            yield from queue_series(health.queue)


def queue_series(queue: Any) -> Iterator[Metric]:
    """Of ``BatcherCounters``."""
    answered = CounterMetricFamily("rgalign_batcher_answered", "Requests by how they ended.", labels=["outcome"])
    for outcome, count in queue.answered.items():
        answered.add_metric([outcome.name.lower()], count)
    yield answered
    for name in ("submitted", "batches", "rows", "tokens", "computed_tokens", "late_rows"):
        yield CounterMetricFamily(f"rgalign_batcher_{name}", f"{name} of the batcher.", value=getattr(queue, name))
    for name in ("waiting", "in_model", "most_waiting", "queue_cap", "rows_per_second"):
        yield gauge(f"rgalign_batcher_{name}", f"{name} of the batcher.", getattr(queue, name))


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))
