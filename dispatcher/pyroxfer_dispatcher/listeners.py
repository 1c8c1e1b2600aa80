"""Those who registered for topics of a service, as in Pyro's blob-dispatch example. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from pyroxfer_core import Uri
from pyroxfer_core.errors import PyroError

from .backends import Backend, BackendGroup

MAX_LISTENERS: Final = 1000
"""Of one service, all topics together."""
GONE_AFTER: Final = 3
"""Connects that failed in a row after which a listener is forgotten."""


class HasGroup(Protocol):
    """What listens to one topic: a service of its own."""

    @property
    def group(self) -> BackendGroup: ...


Topic = TypeVar("Topic", bound=HasGroup)
Forget = Callable[[Backend], None]
"""Called with a listener that is gone."""


class Listeners(Generic[Topic]):
    """The listeners of one service, by topic.

    Args:
        make: makes what stands for a topic, without listeners, of its name and whom to tell of those that are gone.
    """

    def __init__(self, make: Callable[[str, Forget], Topic]) -> None:
        self._make = make
        self._topics: dict[str, Topic] = {}
        self.nobody = make("", lambda backend: None)
        """Stands for every topic that nobody listens to."""

    def topics(self) -> Iterable[Topic]:
        """All that anybody listens to."""
        return self._topics.values()

    def registered(self) -> Iterator[tuple[str, Uri]]:
        """Each listener, with the topic that it listens to."""
        return ((name, one.uri) for name, topic in self._topics.items() for one in topic.group.backends)

    def topic(self, name: str) -> Topic:
        """What a blob of this topic is meant for."""
        return self._topics.get(name, self.nobody)

    def register(self, name: str, uri: Uri) -> None:
        """Call this object for blobs of the topic from now on; twice is once.

        Raises:
            LookupError: there are too many listeners.
        """
        self.unregister(name, uri)
        if sum(len(topic.group.backends) for topic in self._topics.values()) >= MAX_LISTENERS:
            raise LookupError(f"{MAX_LISTENERS} listeners are registered already")
        if name not in self._topics:
            self._topics[name] = self._make(name, partial(self._forget, name))
        self._topics[name].group.add(Backend(str(uri), uri, origin="client"))

    def unregister(self, name: str, uri: Uri) -> None:
        """Do not call it any more; it need not have been registered."""
        topic = self._topics.get(name)
        for backend in () if topic is None else topic.group.backends:
            if backend.uri == uri:
                self._forget(name, backend)

    def _forget(self, name: str, backend: Backend) -> None:
        topic = self._topics.get(name)
        if topic is not None:
            topic.group.remove(backend)
            if not topic.group.backends:
                del self._topics[name]


def uri_of(listener: object) -> Uri:
    """Where a registered object is: what travels for a proxy or a URI, or its text.

    Raises:
        LookupError: it is none of these, or names no place.
    """
    if isinstance(listener, dict):
        state = listener.get("state")
        if isinstance(state, (tuple, list)) and state:
            listener = state[0] if len(state) != 5 else Uri.from_state(list(state))
    try:
        uri = Uri(listener) if isinstance(listener, (str, Uri)) else None
    except PyroError as error:
        raise LookupError(str(error)) from None
    if uri is None or uri.protocol == "PYROMETA":
        raise LookupError("a listener is a proxy, or the URI of an object")
    return uri
