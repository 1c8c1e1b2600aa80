"""What a dispatcher remembers beyond its configuration: what operators said of backends, and who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from pyroxfer_core import Uri
from pyroxfer_core.errors import PyroError

from .backends import Backend
from .config import Config
from .routes import Directory, Service


class BackendState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an operator said of a backend."""

    service: str
    name: str
    uri: str
    draining: bool = False
    disabled: bool = False
    weight: float | None = None
    """None: as the configuration says."""


class ListenerState(msgspec.Struct, frozen=True):
    """Who listens to a topic of a service."""

    service: str
    topic: str
    uri: str


class State(msgspec.Struct, frozen=True):
    """All of it."""

    backends: tuple[BackendState, ...] = ()
    listeners: tuple[ListenerState, ...] = ()


def remembered(directory: Directory, config: Config) -> State:
    """What there is to remember now."""
    return State(tuple(_backends(directory, config)), tuple(_listeners(directory)))


def _backends(directory: Directory, config: Config) -> Iterator[BackendState]:
    for said in config.services:
        weights = {(entry.name, entry.uri): entry.weight for entry in said.backends}
        for backend in directory.services[said.name].group.backends:
            configured = weights.get((backend.name, backend.uri))
            weight = None if configured in (None, backend.weight) else backend.weight
            if backend.draining or weight is not None:
                yield BackendState(
                    said.name, backend.name, str(backend.uri), backend.draining, backend.disabled, weight
                )


def _listeners(directory: Directory) -> Iterator[ListenerState]:
    for name, service in directory.services.items():
        for topic, uri in () if service.listeners is None else service.listeners.registered():
            yield ListenerState(name, topic, str(uri))


def restore(directory: Directory, state: State, take_out: Callable[[Service, Backend, bool], None]) -> None:
    """Remember it here, as far as the services and backends are still there.

    Args:
        take_out: drains a backend, or disables it.
    """
    for said in state.backends:
        service = directory.services.get(said.service)
        for backend in () if service is None else service.group.backends:
            if service is not None and (backend.name, str(backend.uri)) == (said.name, said.uri):
                if said.weight is not None:
                    backend.weight = said.weight
                if said.draining:
                    take_out(service, backend, said.disabled)
    for listener in state.listeners:
        service = directory.services.get(listener.service)
        if service is not None and service.listeners is not None:
            try:
                service.listeners.register(listener.topic, Uri(listener.uri))
            except (PyroError, LookupError):
                continue  # fewer are allowed here
