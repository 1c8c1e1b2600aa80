"""A new configuration for a running dispatcher: what has not changed stays the very same, with all that uses it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .admission import Later
from .backends import IN_FILE, Backend
from .building import make_directory
from .config import Config, ConfigError, ServiceConfig
from .routes import Directory, Service

CHANGEABLE = frozenset({"services", "methods", "oneway", "default", "registry", "drain_timeout", "stall_timeout"})
"""Everything else is what the dispatcher is, and takes a new start."""

Gone = list[tuple[Service, Backend]]


def check_reload(old: Config, new: Config) -> None:
    """Refuse changes that take a new start.

    Raises:
        ConfigError: every one of them is listed.
    """
    problems = [
        f"{name}: cannot change while the dispatcher runs; start it again"
        for name in Config.__struct_fields__
        if name not in CHANGEABLE and getattr(old, name) != getattr(new, name)
    ]
    if problems:
        raise ConfigError(problems)


def change_directory(directory: Directory, old: Config, new: Config, later: Later) -> Gone:
    """Bring the directory to the new configuration, in place.

    Returns:
        Backends that are in no service any more, with the service that they were in: to be seen off.
    """
    before = {service.name: service for service in old.services}
    fresh = make_directory(new, later)
    services: dict[str, Service] = {}
    gone: Gone = []
    for config in new.services:
        known, was = directory.services.get(config.name), before.get(config.name)
        made = fresh.services[config.name]
        if known is None or was is None or was.listeners != config.listeners:
            services[config.name] = made
        elif was == config:
            services[config.name] = known
        else:
            services[config.name], lost = _changed(known, made, was, config)
            gone += lost
    gone += _in_none(directory, services)
    fresh.services = services
    directory.become(fresh)
    return gone


def _changed(known: Service, made: Service, was: ServiceConfig, config: ServiceConfig) -> tuple[Service, Gone]:
    """A service with new values, which keeps its queue, its counts, and the backends that are still in it.

    Those that a registry told of are left to `Discovery`.
    """
    if config.listeners != "none":
        return replace(
            made, admission=known.admission, listeners=known.listeners, tally=known.tally, retries=known.retries
        ), []
    written = {(entry.name, entry.uri): entry for entry in was.backends}
    kept = {(backend.name, backend.uri): backend for backend in known.group.backends if backend.origin == IN_FILE}
    backends = []
    for wanted, entry in zip(made.group.backends, config.backends, strict=True):
        backend = kept.pop((wanted.name, wanted.uri), None)
        if backend is None:
            backends.append(wanted)
            continue
        said = written.get((entry.name, entry.uri))
        if said != entry:
            weight_before = None if said is None else said.weight
            backend.shape(wanted.weight, wanted.tags, wanted.max_in_flight, weight_before=weight_before)
        backends.append(backend)
    known.group.become(made.group, backends)
    known.admission.limits = made.admission.limits
    known.ejection.rules = made.ejection.rules
    service = replace(
        made, admission=known.admission, ejection=known.ejection, tally=known.tally, retries=known.retries
    )
    return service, [(service, backend) for backend in kept.values()]


def _in_none(directory: Directory, services: dict[str, Service]) -> Iterator[tuple[Service, Backend]]:
    """Backends of services that are no more."""
    admissions = {id(service.admission) for service in services.values()}
    listeners = {id(service.listeners) for service in services.values() if service.listeners is not None}
    for service in directory.services.values():
        if id(service.admission) not in admissions and id(service.listeners) not in listeners:
            topics = () if service.listeners is None else service.listeners.topics()
            for one in (service, *topics):
                yield from ((one, backend) for backend in one.group.backends)
