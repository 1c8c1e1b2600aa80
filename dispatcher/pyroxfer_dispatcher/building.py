"""Services, queues and backends out of a configuration."""

from __future__ import annotations

import random
from dataclasses import replace

from .admission import Admission, Later, Limits
from .backends import Backend, BackendGroup
from .balance import HASH, choice_for
from .config import Config, ServiceConfig
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
    service = Service(
        config.name,
        _admission(config, config.name, backends, later),
        config.method,
        config.stateless,
        frozenset(config.idempotent),
        config.fair_by == "connection",
    )
    if config.listeners == "none":
        return service

    def topic(name: str, forget: Forget) -> Service:
        admission = _admission(config, f"{config.name}/{name}", [], later)
        return replace(service, admission=admission, fan_out=config.listeners == "all", forget=forget)

    return replace(service, listeners=Listeners(topic))


def _admission(config: ServiceConfig, name: str, backends: list[Backend], later: Later) -> Admission:
    choose = choice_for(config.policy, config.slow_start, random.Random())
    group = BackendGroup(backends, choose, config.prefer, sticky=config.policy == HASH)
    limits = Limits(config.max_in_flight, config.client_max_in_flight, config.max_queue, config.queue_timeout)
    return Admission(name, group, limits, later)
