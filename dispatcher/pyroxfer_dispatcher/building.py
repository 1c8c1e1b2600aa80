"""Services, queues and backends out of a configuration."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

from .admission import Admission, Later, Limits
from .backends import Backend, BackendGroup
from .balance import HASH, choice_for
from .config import Config, ServiceConfig
from .ejection import Ejection, Rules
from .latency import ServiceTimes
from .listeners import Forget, Listeners
from .routes import Directory, RouteTable, Service


def make_directory(config: Config, later: Later) -> Directory:
    """The services of a configuration, all backends taken for live."""
    services = {service.name: _service(service, later) for service in config.services}
    routes = RouteTable((service.pattern, service.name) for service in config.services)
    objects = RouteTable((pattern, service.name) for service in config.services for pattern in service.objects)
    return Directory(config.object, routes, services, objects, config.default)


def _service(config: ServiceConfig, later: Later) -> Service:
    backends = [
        Backend(entry.name, entry.uri, entry.max_in_flight, weight=entry.weight, tags=frozenset(entry.tags))
        for entry in config.backends
    ]
    admission = _admission(config, config.name, backends, later)
    service = Service(
        config.name,
        admission,
        Ejection(admission.group, _ejection_rules(config)),
        config.method,
        config.stateless,
        frozenset(config.idempotent),
        config.fair_by == "connection",
        answer_timeout_s=inf if config.answer_timeout is None else config.answer_timeout,
    )
    if config.listeners == "none":
        return service

    def topic(name: str, forget: Forget) -> Service:
        admission = _admission(config, f"{config.name}/{name}", [], later, service.admission.times)
        ejection = Ejection(admission.group, _ejection_rules(config))
        return replace(
            service, admission=admission, ejection=ejection, fan_out=config.listeners == "all", forget=forget
        )

    return replace(service, listeners=Listeners(topic))


def _admission(
    config: ServiceConfig, name: str, backends: list[Backend], later: Later, times: ServiceTimes | None = None
) -> Admission:
    choose = choice_for(config.policy, config.slow_start, random.Random())
    group = BackendGroup(backends, choose, config.prefer, sticky=config.policy == HASH)
    limits = Limits(config.max_in_flight, config.client_max_in_flight, config.max_queue, config.queue_timeout)
    return Admission(name, group, limits, later, times)


def _ejection_rules(config: ServiceConfig) -> Rules:
    """Where every listener gets every blob, nobody else can do what one that is left out would have done."""
    return Rules(0 if config.listeners == "all" else config.eject_after, config.eject_for, config.eject_at_most)
