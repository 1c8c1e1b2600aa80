"""Backends that come from registries: into their services when a registry tells of them, out when it does no more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import trio

from pyroxfer_core import Settings, Uri

from .admin import note
from .backends import IN_FILE, Backend
from .config import ETCD, Config, DiscoverConfig
from .follow import FOLLOWING, WAITING, Follower, Source
from .found import PROTOCOLS, Found, Wanted
from .routes import Directory, Service
from .sources import EtcdSource, NameServerSource, Registries

FIRST_LOOK_S: Final = 2.0
"""How long the first clients wait for the first answers of the registries."""
ANY_NAME_SERVER: Final = "the name server"
"""Where that is which Pyro would find."""

TakeOut = Callable[[Service, Backend], None]
"""Sees off a backend that is in its service no more."""
Appeared = Callable[[Service, Backend], None]
"""Told of each backend that is new in its service."""


@dataclass(slots=True)
class _Members:
    """The discovered backends of one service."""

    service: str
    followers: list[Follower] = field(default_factory=list)
    backends: dict[Uri, tuple[Backend, Found]] = field(default_factory=dict)
    leaving: dict[Uri, Backend] = field(default_factory=dict)
    """Those that are gone while they are still in use: they may come back."""


class Discovery:
    """All sections of a configuration that discover backends.

    Args:
        directory: where the services are.
        take_out: see `TakeOut`.
        appeared: see `Appeared`.
        is_own: whether a URI leads to this dispatcher.
    """

    def __init__(
        self,
        config: Config,
        settings: Settings,
        directory: Directory,
        take_out: TakeOut,
        appeared: Appeared,
        is_own: Callable[[Uri], bool],
    ) -> None:
        self._config = config
        self._settings = settings
        self._directory = directory
        self._take_out = take_out
        self._appeared = appeared
        self._is_own = is_own
        self._members: dict[str, _Members] = {}
        self._nursery: trio.Nursery | None = None
        self._registries: Registries

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Follow all registries until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._registries = Registries(nursery)
            self.change(self._config)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def first_look(self) -> None:
        """Wait until every registry has answered, or could not; at most FIRST_LOOK_S."""
        with trio.move_on_after(FIRST_LOOK_S):
            for members in tuple(self._members.values()):
                for follower in members.followers:
                    await follower.looked.wait()

    def describe(self, service: str) -> list[dict[str, Any]]:
        """The state of each section of a service."""
        members = self._members.get(service)
        return [] if members is None else [follower.describe() for follower in members.followers]

    # -- sections

    def change(self, config: Config) -> None:
        """Bring a configuration into force: sections that were in it before go on, with all they know."""
        self._config = config
        if self._nursery is None:
            return
        sections = {service.name: service.discover for service in config.services if service.discover}
        for service in {**self._members, **sections}:
            members = self._members.setdefault(service, _Members(service))
            self._change_sections(members, sections.get(service, ()))
            self._apply(members)
            if service not in sections:
                del self._members[service]

    def _change_sections(self, members: _Members, sections: Sequence[DiscoverConfig]) -> None:
        before, members.followers = members.followers, []
        unchanged = {(follower.section, follower.registry): follower for follower in before}
        for index, section in enumerate(sections):
            follower = unchanged.pop((section, self._place_of(section)), None)
            if follower is None:
                follower = self._start(members, section)
                if index < len(before):
                    follower.inherit(before[index].found)
            members.followers.append(follower)
        for follower in before:
            if follower not in members.followers:
                follower.running.cancel()

    def _start(self, members: _Members, section: DiscoverConfig) -> Follower:
        assert self._nursery is not None
        wanted, place = Wanted(section, self._is_own), self._place_of(section)
        is_etcd = place.startswith(ETCD)
        source: Source
        if is_etcd:
            source = EtcdSource(place, self._registries)
        else:
            uri = None if place == ANY_NAME_SERVER else Uri(f"PYRO:registry@{place}")
            host, port = (None, None) if uri is None else (uri.host, uri.port)
            source = NameServerSource(host, port, wanted.query, section.interval, self._settings)
        origin, changed = "etcd" if is_etcd else "ns", partial(self._apply, members)
        follower = Follower(section, wanted, source, origin, place, changed, members.service)
        self._nursery.start_soon(follower.run)
        return follower

    def _place_of(self, section: DiscoverConfig) -> str:
        return section.registry or self._config.registry or self._config.nameserver or ANY_NAME_SERVER

    # -- backends

    def _apply(self, members: _Members) -> None:
        """Bring what its registries say into a service, unless that is gone."""
        service = self._directory.services.get(members.service)
        if service is None or self._members.get(members.service) is not members:
            return
        fixed = [backend for backend in service.group.backends if backend.origin == IN_FILE]
        before, members.backends = members.backends, {}
        names = {backend.name for backend in (*fixed, *(backend for backend, _ in before.values()))}
        taken = {backend.uri for backend in fixed}
        for follower in members.followers:
            for found in follower.found:
                if found.uri not in taken:
                    taken.add(found.uri)
                    backend = self._backend_for(service, members, before.pop(found.uri, None), found, names)
                    backend.origin = follower.origin
                    members.backends[found.uri] = backend, found
        service.group.backends = (*fixed, *(backend for backend, _ in members.backends.values()))
        service.group.why_empty = _why_empty(members.followers)
        self._see_off(service, members, before.values())
        service.admission.changed()

    def _backend_for(
        self,
        service: Service,
        members: _Members,
        known: tuple[Backend, Found] | None,
        found: Found,
        names: set[str],
    ) -> Backend:
        """The backend that is there already, the one that had just left, or a new one."""
        if known is not None:
            backend, was = known
            if was != found:
                found.shape(backend, was)
            return backend
        left = members.leaving.pop(found.uri, None)
        if left is not None and _is_used(left) and not left.failures:
            backend = left
            backend.draining = backend.disabled = False
        else:
            label = found.label if found.label not in names else f"{found.label}/{found.uri.object}"
            refused = PROTOCOLS - found.protocols if found.protocols else frozenset()
            backend = Backend(label, found.uri, refused_versions=set(refused))
        found.shape(backend)
        names.add(backend.name)
        note(logging.INFO, "backend_found", service=members.service, backend=backend.name, uri=found.uri)
        self._appeared(service, backend)
        return backend

    def _see_off(self, service: Service, members: _Members, gone: Iterable[tuple[Backend, Found]]) -> None:
        members.leaving = {uri: backend for uri, backend in members.leaving.items() if _is_used(backend)}
        for backend, _ in gone:
            note(logging.INFO, "backend_left", service=service.name, backend=backend.name, uri=backend.uri)
            members.leaving[backend.uri] = backend
            self._take_out(service, backend)


def _is_used(backend: Backend) -> bool:
    return backend.in_flight > 0 or backend.clients > 0


def _why_empty(followers: Iterable[Follower]) -> str:
    said = {FOLLOWING: "has none", WAITING: "has not answered yet"}
    states = [
        f"{follower.registry} {said.get(follower.state, f'is lost ({follower.reason})')}" for follower in followers
    ]
    return "; ".join(states) or "it has none"
