"""The numbers of a dispatcher for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .follow import FOLLOWING

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_BACKEND: Final = ("service", "backend")
_SECTION: Final = ("service", "section")


Parts = Mapping[str, dict[str, Any]]
"""What each worker says, by its number; of a dispatcher that is one process, what that says, under no name."""


class Metrics:
    """Writes what `Operations.status` says in the text format of Prometheus.

    The numbers of workers have a label each: the counts of one that was replaced begin anew, and a sum would then
    seem to have begun anew as a whole.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def text(self) -> bytes:
        """All of them."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        several = set(self._parts) != {""}
        families: dict[str, Metric] = {}
        for number, status in self._parts.items():
            for family in _of_status(status):
                _add(families, family, {"worker": number} if several else {})
        yield from families.values()


def _add(families: dict[str, Metric], family: Metric, labels: dict[str, str]) -> None:
    """The same samples with further labels."""
    target = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
    target.samples += [sample._replace(labels={**sample.labels, **labels}) for sample in family.samples]


def _of_status(status: dict[str, Any]) -> Iterator[Metric]:
    yield GaugeMetricFamily("pyroxfer_dispatcher_clients", "Connected clients", value=status["clients"])
    yield GaugeMetricFamily("pyroxfer_dispatcher_draining", "1 while it drains", value=status["draining"])
    yield GaugeMetricFamily("pyroxfer_dispatcher_loop_lag_seconds", "Delay of the loop", value=status["lag_s"])
    yield CounterMetricFamily("pyroxfer_dispatcher_cut_clients", "Clients cut by drains", value=status["cut"])
    yield from _of_services(status["services"])
    yield from _of_backends(status["services"])
    yield from _of_registries(status["services"])


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
    known = GaugeMetricFamily("pyroxfer_dispatcher_registry_backends", "Backends it told of", labels=_SECTION)
    refused = GaugeMetricFamily("pyroxfer_dispatcher_registry_refused", "Addresses of no use", labels=_SECTION)
    passed_over = GaugeMetricFamily("pyroxfer_dispatcher_registry_passed_over", "Too many", labels=_SECTION)
    for service in services:
        for index, section in enumerate(service["discover"]):
            labels = (service["name"], str(index))
            up.add_metric(labels, section["state"] == FOLLOWING)
            known.add_metric(labels, section["backends"])
            refused.add_metric(labels, section["refused"])
            passed_over.add_metric(labels, section["passed_over"])
    yield from (up, known, refused, passed_over)
