"""What a dispatcher remembers beyond its configuration: what operators said of backends, and who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from pyroxfer_core import Uri
from pyroxfer_core.errors import PyroError

from .backends import Backend
from .routes import Directory, Service


class BackendState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an operator said of a backend."""

    service: str
    name: str
    uri: str
    draining: bool = False
    disabled: bool = False
    weight: float | None = None
    """None: as the configuration or the registry says."""


class ListenerState(msgspec.Struct, frozen=True):
    """Who listens to a topic of a service."""

    service: str
    topic: str
    uri: str


class State(msgspec.Struct, frozen=True):
    """All of it."""

    backends: tuple[BackendState, ...] = ()
    listeners: tuple[ListenerState, ...] = ()


class Inherited:
    """What the process before this one remembered. It holds for each service and backend as it appears, once.

    Args:
        take_out: drains a backend, or disables it.
    """

    def __init__(self, state: State, take_out: Callable[[Service, Backend, bool], None]) -> None:
        self._said = {(one.service, one.name, one.uri): one for one in state.backends}
        self._listeners = state.listeners
        self._take_out = take_out

    @property
    def waiting(self) -> tuple[BackendState, ...]:
        """What was said of backends that have not appeared."""
        return tuple(self._said.values())

    def restore(self, directory: Directory) -> None:
        """Remember it of all that is there already, listeners included."""
        for service in directory.services.values():
            for backend in service.group.backends:
                self.appeared(service, backend)
        for listener in self._listeners:
            known = directory.services.get(listener.service)
            if known is not None and known.listeners is not None:
                try:
                    known.listeners.register(listener.topic, Uri(listener.uri))
                except (PyroError, LookupError):
                    continue  # fewer are allowed here

    def appeared(self, service: Service, backend: Backend) -> None:
        """Remember what was said of a backend."""
        said = self._said.pop((service.name, backend.name, str(backend.uri)), None)
        if said is not None and said.weight is not None:
            service.group.weigh(backend, said.weight)
        if said is not None and said.draining:
            self._take_out(service, backend, said.disabled)


def remembered(directory: Directory, inherited: Inherited) -> State:
    """What there is to remember now, what was inherited and has not been of use included."""
    return State((*_backends(directory), *inherited.waiting), tuple(_listeners(directory)))


def _backends(directory: Directory) -> Iterator[BackendState]:
    for service in directory.services.values():
        for backend in () if service.listeners is not None else service.group.backends:
            weight = backend.weight if backend.is_weighed else None
            if backend.draining or weight is not None:
                key = service.name, backend.name, str(backend.uri)
                yield BackendState(*key, backend.draining, backend.disabled, weight)


def _listeners(directory: Directory) -> Iterator[ListenerState]:
    for name, service in directory.services.items():
        for topic, uri in () if service.listeners is None else service.listeners.registered():
            yield ListenerState(name, topic, str(uri))
