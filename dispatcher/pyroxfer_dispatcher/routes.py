"""From a blob's routing annotation to a service. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from pyroxfer_core.wire import BlobInfo, Body, read_blob_info, write_blob_info

from .admission import Admission
from .backends import BackendGroup
from .ejection import Ejection
from .listeners import Forget, Listeners, uri_of
from .retries import RetryBudget

WILDCARD: Final = "*"
REGISTER: Final = "register"
HERE: Final = (REGISTER, "unregister")
"""What clients can call of the dispatcher itself, where a service takes listeners."""
_SPECIAL: Final = frozenset("*?[")
MAX_REMEMBERED: Final = 1024
"""Routing annotations whose meaning is remembered; then remembering begins anew."""
MAX_REMEMBERED_BYTES: Final = 256
"""Longer annotations are read each time."""
MAX_SHOWN: Final = 80
"""Characters of a peer's text that are repeated in an error."""


class RouteTable:
    """Patterns, each leading to one service: exact topics, prefixes (``orders.*``), and globs (``*.orders.eu-?``).

    An exact topic wins over every prefix, a longer prefix over a shorter one, a prefix over a glob, a glob over those
    that come after it; a bare ``*`` takes the rest.

    Args:
        routes: pattern to service name.

    Raises:
        ValueError: a pattern is empty.
    """

    def __init__(self, routes: Mapping[str, str] | Iterable[tuple[str, str]]) -> None:
        self._exact: dict[str, str] = {}
        self._prefixes: dict[str, str] = {}
        self._globs: list[tuple[re.Pattern[str], str]] = []
        self._patterns: list[str] = []
        for pattern, service in dict(routes).items():
            check_pattern(pattern)
            self._patterns.append(pattern)
            if _SPECIAL.isdisjoint(pattern):
                self._exact[pattern] = service
            elif pattern.endswith(WILDCARD) and _SPECIAL.isdisjoint(pattern[:-1]):
                self._prefixes[pattern[:-1]] = service
            else:
                self._globs.append((re.compile(fnmatch.translate(pattern)), service))
        self._rest = self._prefixes.pop("", None)
        self._lengths = sorted({len(prefix) for prefix in self._prefixes}, reverse=True)

    def find(self, topic: str) -> str | None:
        """The service for a topic, or None when no pattern matches."""
        service = self._exact.get(topic)
        if service is not None:
            return service
        prefixes = self._prefixes
        for length in self._lengths:
            service = prefixes.get(topic[:length])
            if service is not None:
                return service
        for glob, service in self._globs:
            if glob.match(topic):
                return service
        return self._rest

    def __repr__(self) -> str:
        return f"<RouteTable {', '.join(self._patterns)}>"


def check_pattern(pattern: str) -> None:
    """Refuse what is no pattern.

    Raises:
        ValueError: with a sentence that says what is wrong.
    """
    if not pattern:
        raise ValueError("a pattern is an exact topic, a prefix followed by * or a glob, not an empty text")


def topic_of(info: object) -> str | None:
    """The topic in a blob's info: the text itself, or the first item of a tuple or list. None when there is none."""
    if isinstance(info, (tuple, list)) and info:
        info = info[0]
    return info if isinstance(info, str) else None


@dataclass(frozen=True, slots=True)
class Service:
    """Where a topic or an object leads."""

    name: str
    admission: Admission
    ejection: Ejection
    """Which of its backends are left out because their calls fail."""
    method: str | None = None
    """Called on the backends instead of the method the client called."""
    stateless: bool = False
    """Its objects keep nothing of a connection: each call of a client may go to another backend."""
    idempotent: frozenset[str] = frozenset()
    """Methods that may run twice; ``*`` stands for all."""
    by_connection: bool = False
    """Each connection counts as a client, not each host."""
    retries: RetryBudget = field(default_factory=RetryBudget)
    tally: Counter[str] = field(default_factory=Counter)
    """What became of its calls, by name."""
    fan_out: bool = False
    """Every backend gets every blob."""
    listeners: Listeners[Service] | None = None
    """Backends that register themselves for topics, each topic a service of its own."""
    forget: Forget | None = None
    """Of a topic: to be called with a listener that cannot be reached any more."""
    answer_timeout_s: float = inf
    """How long a backend may take before its answer begins."""

    @property
    def group(self) -> BackendGroup:
        """Its backends."""
        return self.admission.group


class Party:
    """A client, as queues see it.

    Args:
        peer: its address, port included.
    """

    __slots__ = ("host",)

    def __init__(self, peer: str) -> None:
        self.host = peer.rpartition(":")[0] or peer

    def key_for(self, service: Service) -> Hashable:
        """What counts as one client there."""
        return self if service.by_connection else self.host


def key_of(info: object) -> str:
    """What a blob is told apart by where equal keys go to the same backend: the second item of its info, or all."""
    if isinstance(info, (tuple, list)) and len(info) > 1:
        info = info[1]
    return info if isinstance(info, str) else repr(info)


class Aim:
    """Where one routing annotation leads.

    Args:
        info: the sender's label, which stays untouched.
        method: what is called on the backend.
    """

    __slots__ = ("_info", "_method", "_written", "idempotent", "key", "service")

    def __init__(self, service: Service, info: object, method: str) -> None:
        self.service = service
        self._info = info
        self._method = method
        self._written: dict[str, bytes] = {}
        self.idempotent = not service.idempotent.isdisjoint({method, "*"})
        self.key = key_of(info)

    def annotation_for(self, object_id: str) -> bytes:
        """The annotation that leads on to an object of a backend."""
        written = self._written.get(object_id)
        if written is None:
            written = self._written[object_id] = write_blob_info(self._info, object_id, self._method)
        return written


class Directory:
    """Everything a conversation can reach.

    Args:
        object_id: the dispatcher's own.
        services: by the names to which the routes lead.
        objects: routes from object ids, for clients that know nothing of the dispatcher.
        default: the service for clients that do not say which object they want.
    """

    def __init__(
        self,
        object_id: str,
        routes: RouteTable,
        services: Mapping[str, Service],
        objects: RouteTable | None = None,
        default: str | None = None,
    ) -> None:
        self.object_id = object_id
        self.routes = routes
        self.services = services
        self.objects = RouteTable(()) if objects is None else objects
        self._default = default
        self._known: dict[bytes, Aim] = {}
        self.takes_listeners = any(service.listeners is not None for service in services.values())

    def become(self, other: Directory) -> None:
        """Lead where another directory leads, for everybody who holds this one."""
        self.routes, self.services, self.objects = other.routes, other.services, other.objects
        self.takes_listeners = other.takes_listeners
        self._default = other._default
        self._known.clear()

    def admissions(self) -> Iterator[Admission]:
        """Every queue."""
        for service in self.services.values():
            yield service.admission
            if service.listeners is not None:
                yield from (topic.admission for topic in service.listeners.topics())

    def call_here(self, object_id: str, method: str, args: list[Any]) -> bool:
        """A call of the dispatcher itself: ``register(topic, listener)`` or ``unregister(topic, listener)``.

        Returns:
            Whether it was one.

        Raises:
            LookupError: with a sentence for the caller.
        """
        if object_id != self.object_id or method not in HERE:
            return False
        if len(args) != 2 or not isinstance(args[0], str):
            raise LookupError(f"{method} takes a topic and a listener")
        topic, uri = args[0], uri_of(args[1])
        name = self.routes.find(topic)
        listeners = None if name is None else self.services[name].listeners
        if listeners is None:
            raise LookupError(f"nobody can listen to topic {_shown(topic)} here")
        if method == REGISTER:
            listeners.register(topic, uri)
        else:
            listeners.unregister(topic, uri)
        self._known.clear()
        return True

    def service_of(self, object_id: str | None) -> Service | None:
        """The service that a client wants which knows nothing of the dispatcher; None for every other client."""
        if object_id is None:
            name = self._default
        else:
            name = None if object_id == self.object_id else self.objects.find(object_id)
        return None if name is None else self.services[name]

    def find(self, annotation: Body) -> Aim:
        """Where a blob is meant to go. Reading an annotation costs more than the rest of a call, so it is remembered.

        Raises:
            LookupError, ProtocolError: with a sentence for the caller.
        """
        annotation = bytes(annotation)
        aim = self._known.get(annotation)
        if aim is None:
            aim = self._aim_of(read_blob_info(annotation))
            if len(annotation) <= MAX_REMEMBERED_BYTES:
                if len(self._known) >= MAX_REMEMBERED:
                    self._known.clear()
                self._known[annotation] = aim
        return aim

    def _aim_of(self, target: BlobInfo) -> Aim:
        if target.object_id != self.object_id:
            raise LookupError(f"unknown object {_shown(target.object_id)}; this is {self.object_id!r}")
        topic = topic_of(target.info)
        if topic is None:
            raise LookupError("no route: the blob's info is neither a text nor a tuple that begins with one")
        name = self.routes.find(topic)
        if name is None:
            raise LookupError(f"no route for topic {_shown(topic)}")
        service = self.services[name]
        if service.listeners is not None:
            service = service.listeners.topic(topic)
        return Aim(service, target.info, service.method or target.method)


def _shown(text: str) -> str:
    """A peer's text, escaped and bounded."""
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")
