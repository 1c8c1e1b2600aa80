"""The numbers of a dispatcher for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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


Plain = list[Any]
"""A family as plain values: name, documentation, type, and samples with name, labels and value."""


class Metrics:
    """Makes what `Operations` says into families of Prometheus.

    Args:
        status: tells everything, as of now.
        times: of the calls of each service.
    """

    def __init__(
        self, status: Callable[[], dict[str, Any]], times: Callable[[], Iterable[tuple[str, ServiceTimes]]]
    ) -> None:
        self._status = status
        self._times = times

    def families(self) -> Iterator[Metric]:
        """All of them."""
        status = self._status()
        yield GaugeMetricFamily("pyroxfer_dispatcher_clients", "Connected clients", value=status["clients"])
        yield GaugeMetricFamily("pyroxfer_dispatcher_draining", "1 while it drains", value=status["draining"])
        yield GaugeMetricFamily("pyroxfer_dispatcher_loop_lag_seconds", "Delay of the loop", value=status["lag_s"])
        yield CounterMetricFamily("pyroxfer_dispatcher_cut_clients", "Clients cut by drains", value=status["cut"])
        yield from _of_services(status["services"])
        yield from _of_backends(status["services"])
        yield from _of_registries(status["services"])
        yield from _of_times(self._times())


class _Given:
    """A collector of families that are there."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def text_of(families: Iterable[Metric]) -> bytes:
    """In the text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(families))
    return generate_latest(registry)


def plain(families: Iterable[Metric]) -> list[Plain]:
    """As plain values, for another process."""
    return [
        [family.name, family.documentation, family.type, [[s.name, s.labels, s.value] for s in family.samples]]
        for family in families
    ]


def labelled(parts: Mapping[str, list[Plain]]) -> list[Metric]:
    """The families of several workers, by their numbers, with a label ``worker``: the counts of one that was replaced
    begin anew, and a sum would then seem to have begun anew as a whole."""
    found: dict[str, Metric] = {}
    for number, families in parts.items():
        for name, documentation, kind, samples in families:
            family = found.setdefault(name, Metric(name, documentation, kind))
            for sample, labels, value in samples:
                family.add_sample(sample, {**labels, "worker": number}, value)
    return list(found.values())


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
