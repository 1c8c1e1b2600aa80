"""The numbers of a dispatcher for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .follow import FOLLOWING
from .latency import ServiceTimes

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_BACKEND: Final = ("service", "backend")
_SECTION: Final = ("service", "section")
_ADDRESSES: Final = {
    "backends": "Backends it told of",
    "missing": "Addresses that are kept, although it does not tell of them since it is back",
    "refused": "Addresses that cannot be used",
    "passed_over": "Addresses that are too many",
}


class Metrics:
    """Writes what `Operations` says in the text format of Prometheus.

    Args:
        status: tells everything, as of now.
        times: of the calls of each service.
    """

    def __init__(
        self, status: Callable[[], dict[str, Any]], times: Callable[[], Iterable[tuple[str, ServiceTimes]]]
    ) -> None:
        self._status = status
        self._times = times
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        status = self._status()
        yield GaugeMetricFamily("pyroxfer_dispatcher_clients", "Connected clients", value=status["clients"])
        yield GaugeMetricFamily("pyroxfer_dispatcher_draining", "1 while it drains", value=status["draining"])
        yield GaugeMetricFamily("pyroxfer_dispatcher_loop_lag_seconds", "Delay of the loop", value=status["lag_s"])
        yield CounterMetricFamily("pyroxfer_dispatcher_cut_clients", "Clients cut by drains", value=status["cut"])
        yield from _of_services(status["services"])
        yield from _of_backends(status["services"])
        yield from _of_registries(status["services"])
        yield from _of_times(self._times())


def _of_services(services: list[dict[str, Any]]) -> Iterator[Metric]:
    calls = CounterMetricFamily("pyroxfer_dispatcher_calls", "What became of calls", labels=("service", "what"))
    retries = CounterMetricFamily("pyroxfer_dispatcher_retries", "Calls sent again", labels=("service",))
    waiting = GaugeMetricFamily("pyroxfer_dispatcher_waiting_calls", "Calls in the queue", labels=("service",))
    for service in services:
        for what, count in service["calls"].items():
            calls.add_metric((service["name"], what), count)
        retries.add_metric((service["name"],), service["retries"]["used"])
        waiting.add_metric((service["name"],), service["waiting"])
    yield from (calls, retries, waiting)


def _of_times(times: Iterable[tuple[str, ServiceTimes]]) -> Iterator[Metric]:
    queue = HistogramMetricFamily(
        "pyroxfer_dispatcher_queue_seconds", "How long calls waited for a backend", labels=("service",)
    )
    call = HistogramMetricFamily(
        "pyroxfer_dispatcher_call_seconds", "How long calls took, waiting included", labels=("service",)
    )
    for service, of in times:
        for family, histogram in ((queue, of.queue), (call, of.call)):
            buckets = [("+Inf" if bound == inf else repr(bound), count) for bound, count in histogram.cumulative()]
            family.add_metric((service,), buckets, histogram.total_s)
    yield from (queue, call)


def _of_backends(services: list[dict[str, Any]]) -> Iterator[Metric]:
    up = GaugeMetricFamily("pyroxfer_dispatcher_backend_up", "1 while it gets calls", labels=_BACKEND)
    in_flight = GaugeMetricFamily("pyroxfer_dispatcher_backend_calls_in_flight", "Calls it runs", labels=_BACKEND)
    weight = GaugeMetricFamily("pyroxfer_dispatcher_backend_weight", "Its weight", labels=_BACKEND)
    calls = CounterMetricFamily("pyroxfer_dispatcher_backend_calls", "Calls it was given", labels=_BACKEND)
    busy = CounterMetricFamily("pyroxfer_dispatcher_backend_busy_seconds", "How long it had them", labels=_BACKEND)
    ejections = CounterMetricFamily("pyroxfer_dispatcher_backend_ejections", "How often ejected", labels=_BACKEND)
    for service in services:
        for backend in service["backends"]:
            labels = (service["name"], backend["name"])
            up.add_metric(labels, backend["state"] == "up")
            in_flight.add_metric(labels, backend["in_flight"])
            weight.add_metric(labels, backend["weight"])
            calls.add_metric(labels, backend["calls"])
            busy.add_metric(labels, backend["busy_s"])
            ejections.add_metric(labels, backend["ejections"])
    yield from (up, in_flight, weight, calls, busy, ejections)


def _of_registries(services: list[dict[str, Any]]) -> Iterator[Metric]:
    up = GaugeMetricFamily("pyroxfer_dispatcher_registry_up", "1 while it is heard", labels=_SECTION)
    counts = {
        name: GaugeMetricFamily(f"pyroxfer_dispatcher_registry_{name}", text, labels=_SECTION)
        for name, text in _ADDRESSES.items()
    }
    for service in services:
        for index, section in enumerate(service["discover"]):
            labels = (service["name"], str(index))
            up.add_metric(labels, section["state"] == FOLLOWING)
            for name, family in counts.items():
                family.add_metric(labels, section[name])
    yield from (up, *counts.values())
