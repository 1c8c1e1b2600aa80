"""The proxy for programs without a loop: Pyro's own, but usable from any thread and without blind retries."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from ..client.calls import (
    DAEMON_OBJECT,
    CallOptions,
    StreamStart,
    correlation_bytes,
    encode_call,
    read_reply,
    user_annotations,
)
from ..client.versions import remember_version, versions_to_try
from ..errors import CommunicationError, ConnectionClosedError, Outcome, ProtocolError, PyroError
from ..objects.expose import Metadata
from ..serializers.base import SerializerContext
from ..serializers.vocabulary import ProxyState
from ..settings import Settings
from ..uri import Uri
from ..wire.message import Flags, Message
from .context import current_context
from .link import BlockingLink, connect

_NO_OPTIONS: Final = CallOptions()
_EMPTY: Final = Metadata(frozenset(), frozenset(), frozenset())


class Proxy:
    """A remote object, as in Pyro5: ``proxy.method(...)``, ``proxy.attribute``, ``proxy.attribute = value``.

    Connects at first use, and again when the connection was lost between calls. Any thread may use it; calls of
    several threads take turns on its connection. A call is never sent twice once it may have run: every
    communication error has an ``outcome``.

    Args:
        uri: where the object is.
        settings: limits, timeouts, serializer.

    Raises:
        PyroError: the URI is not one.
    """

    def __init__(self, uri: Uri | str, *, settings: Settings | None = None) -> None:
        self._pyroUri = uri if isinstance(uri, Uri) else Uri(uri)
        self._pyroSettings = settings or Settings()
        self._pyroHandshake: Any = "hello"
        self._pyroTimeout: float | None = self._pyroSettings.call_timeout_s
        self._pyroSerializer: str | None = self._pyroSettings.serializer
        self._pyroMeta: Metadata | None = None
        self._pyroLink: BlockingLink | None = None
        self._pyroSeq = 0
        self._pyroConnecting = threading.RLock()

    def __repr__(self) -> str:
        state = "connected" if self._pyroLink is not None else "not connected"
        return f"<{type(self).__module__}.{type(self).__name__} for {self._pyroUri}, {state}>"

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *args: object) -> None:
        self._pyroRelease()

    def __del__(self) -> None:
        link = self.__dict__.get("_pyroLink")
        if link is not None:
            link.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_pyro"):
            raise AttributeError(name)
        meta = self._pyroMeta
        if meta is not None and name in meta.methods:
            return partial(self._pyroCall, name)
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        meta = self._pyroMetadata()
        if meta is None or name in meta.methods:
            return partial(self._pyroCall, name)
        if name in meta.attrs:
            return self._pyroInvoke("__getattr__", (name,), None)
        raise AttributeError(f"remote object '{self._pyroUri}' has no exposed attribute or method '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_pyro"):
            super().__setattr__(name, value)
            return
        meta = self._pyroMetadata()
        if meta is None or name not in meta.attrs:
            raise AttributeError(f"remote object '{self._pyroUri}' has no exposed attribute '{name}'")
        self._pyroInvoke("__setattr__", (name, value), None)

    def __dir__(self) -> list[str]:
        meta = self._pyroMeta or _EMPTY
        return sorted({*super().__dir__(), *meta.methods, *meta.attrs})

    def __eq__(self, other: object) -> bool:
        return other is self or (isinstance(other, Proxy) and other._pyroUri == self._pyroUri)

    def __hash__(self) -> int:
        return hash(self._pyroUri)

    def __copy__(self) -> Proxy:
        """The same object, over a connection of its own."""
        copy = type(self)(self._pyroUri, settings=self._pyroSettings)
        copy._pyroHandshake, copy._pyroTimeout = self._pyroHandshake, self._pyroTimeout
        copy._pyroSerializer = self._pyroSerializer
        return copy

    @property
    def _pyroMethods(self) -> frozenset[str]:
        return (self._pyroMeta or _EMPTY).methods

    @property
    def _pyroAttrs(self) -> frozenset[str]:
        return (self._pyroMeta or _EMPTY).attrs

    @property
    def _pyroOneway(self) -> frozenset[str]:
        return (self._pyroMeta or _EMPTY).oneway

    def _pyroBind(self) -> bool:
        """Connect now, and stay with the address that a PYRONAME resolved to. False when connected already."""
        if self._pyroLink is not None:
            return False
        link = self._pyroConnected()
        self._pyroUri = Uri(f"PYRO:{link.object_id}@{link.location}")
        return True

    def _pyroRelease(self) -> None:
        """Close the connection; the next call connects again."""
        link, self._pyroLink = self._pyroLink, None
        if link is not None:
            self._pyroSeq = link.session.seq
            link.close()

    def _pyroReconnect(self, tries: int = 100000000) -> None:
        """Connect anew.

        Raises:
            ConnectionClosedError: it could not be done.
        """
        self._pyroRelease()
        last: CommunicationError | None = None
        for _ in range(tries):
            try:
                self._pyroConnected()
                return
            except CommunicationError as error:
                last = error
        raise ConnectionClosedError("failed to reconnect") from last

    def _pyroValidateHandshake(self, response: Any) -> None:
        """Called with the daemon's handshake response; override it and raise to refuse. The connection is closed."""

    def _pyroMetadata(self) -> Metadata | None:
        if self._pyroMeta is None:
            return self._pyroConnected().metadata
        return self._pyroMeta

    def _pyroCall(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """``proxy.method(*args, **kwargs)``."""
        return self._pyroInvoke(method, args, kwargs)

    def _pyroInvoke(
        self,
        method: str,
        args: Any,
        kwargs: dict[str, Any] | None,
        flags: int = 0,
        object_id: str | None = None,
    ) -> Any:
        """Run one call; once more on a fresh connection when the old one turned out to be gone before it left."""
        fresh = self._pyroLink is None
        while True:
            link = self._pyroConnected()
            try:
                with link.lock:
                    return self._pyroOnce(link, method, args, kwargs, flags, object_id)
            except ConnectionClosedError as error:
                if self._pyroLink is link and link.closed:
                    self._pyroRelease()
                if fresh or error.outcome is not Outcome.NOT_SENT:
                    raise
                fresh = True

    def _pyroOnce(
        self,
        link: BlockingLink,
        method: str,
        args: Any,
        kwargs: dict[str, Any] | None,
        flags: int,
        object_id: str | None,
    ) -> Any:
        if link.closed or not link.still_there():
            link.close()
            raise ConnectionClosedError("the connection was lost between calls", outcome=Outcome.NOT_SENT)
        meta = link.metadata
        if meta is not None and method in meta.oneway and object_id is None:
            flags |= Flags.ONEWAY
        request = encode_call(
            link.serializer(self._pyroSerializer or ("msgpack" if link.own else "serpent")),
            link.grant,
            link.version,
            object_id or link.object_id,
            method,
            args,
            kwargs,
            flags,
            self._pyroOptions(),
            self._pyroSettings,
            self._pyroTimeout,
        )
        if flags & Flags.ONEWAY:
            link.send_oneway(request, self._pyroTimeout)
            return None
        return self._pyroRead(link, link.call(request, self._pyroTimeout))

    def _pyroOptions(self) -> CallOptions:
        annotations, correlation_id = current_context.outgoing()
        if not annotations and correlation_id is None:
            return _NO_OPTIONS
        return CallOptions(None, annotations, correlation_bytes(correlation_id))

    def _pyroRead(self, link: BlockingLink, message: Message) -> Any:
        if message.annotations:
            current_context.answered(user_annotations(message))
        result = read_reply(message, link.serializer(message.serializer), link.grant, self._pyroSettings)
        if type(result) is StreamStart:
            return StreamIterator(self, link, result.stream_id)
        return result

    def _pyroConnected(self) -> BlockingLink:
        link = self._pyroLink
        if link is not None and not link.closed:
            if not link.inherited:
                return link
            self._pyroLeaveToParent(link)
        with self._pyroConnecting:
            link = self._pyroLink  # another thread may have been faster
            return link if link is not None and not link.closed else self._pyroConnectAnew()

    def _pyroLeaveToParent(self, link: BlockingLink) -> None:
        """After a fork: the connection, and a lock that a thread may have held, belong to the other process."""
        if self._pyroLink is link:
            self._pyroLink = None
            self._pyroConnecting = threading.RLock()
        link.close()

    def _pyroConnectAnew(self) -> BlockingLink:
        link = self._pyroConnect()
        try:
            if link.metadata is not None and not link.metadata.methods and not link.metadata.attrs:
                raise PyroError(f"remote object at {self._pyroUri} doesn't expose any methods or attributes")
            self._pyroValidateHandshake(link.response)
        except BaseException:
            link.close()
            raise
        self._pyroMeta = link.metadata
        self._pyroLink = link
        return link

    def _pyroConnect(self) -> BlockingLink:
        """Try the protocols this place may speak; a stock Pyro4 closes or answers in its own on a 502 hello."""
        from .names import resolve  # it uses proxies itself

        uri = resolve(self._pyroUri, self._pyroSettings)
        settings = self._pyroSettings.with_changes(serializer=self._pyroSerializer)
        location = uri.location or ""
        failure: CommunicationError | None = None
        cut = False
        versions = versions_to_try(location, settings)
        for version in versions:
            sock = connect(uri, settings.connect_timeout_s)
            try:
                link = BlockingLink(
                    sock,
                    version,
                    settings,
                    self._pyroContext,
                    object_id=str(uri.object),
                    location=location,
                    handshake=self._pyroHandshake,
                    first_seq=self._pyroSeq,
                )
            except (ProtocolError, ConnectionClosedError) as error:
                failure = failure or error
                cut = isinstance(error, ConnectionClosedError)
                continue
            except CommunicationError as error:
                error.outcome = Outcome.NOT_SENT
                raise
            if len(versions) > 1 and not cut:  # a connection that broke says nothing about what is spoken there
                remember_version(location, version)
            return link
        assert failure is not None, "at least one protocol is tried"
        failure.outcome = Outcome.NOT_SENT
        raise failure

    def _pyroContext(self, version: int, own: bool) -> SerializerContext:
        return SerializerContext(
            version=version,
            own=own,
            proxy_factory=lambda state: proxy_from_state(state, self._pyroSettings),
            proxy_state_of=proxy_state_of,
        )

    def _pyroState(self) -> ProxyState:
        meta = self._pyroMeta or _EMPTY
        return ProxyState(
            str(self._pyroUri), meta.oneway, meta.methods, meta.attrs, self._pyroHandshake, self._pyroSerializer
        )


def proxy_from_state(state: ProxyState, settings: Settings) -> Proxy:
    """Make a proxy that arrived in a value, with the receiver's settings."""
    proxy = Proxy(state.uri_text, settings=settings)
    proxy._pyroHandshake = state.handshake
    if state.serializer in settings.accepted_serializers:
        proxy._pyroSerializer = state.serializer
    return proxy


def proxy_state_of(value: object) -> ProxyState | None:
    """The state of a proxy as it travels; None for anything else."""
    return value._pyroState() if isinstance(value, Proxy) else None


class StreamIterator:
    """The items of a remote iterator, one request each.

    ``close()``, the end of a ``with`` block, or the end of its life close the remote iterator.
    """

    def __init__(self, proxy: Proxy, link: BlockingLink, stream_id: str) -> None:
        self._proxy = proxy
        self._link: BlockingLink | None = link
        self._id = stream_id

    def __iter__(self) -> Iterator[Any]:
        return self

    def __enter__(self) -> StreamIterator:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __next__(self) -> Any:
        link = self._link
        if link is None:
            raise StopIteration
        if link.closed or link.inherited or self._proxy._pyroLink is not link:
            raise ConnectionClosedError("the proxy for this stream result has been closed")
        try:
            with link.lock:
                return self._proxy._pyroOnce(link, "get_next_stream_item", [self._id], {}, 0, DAEMON_OBJECT)
        except BaseException:  # the end, too, is an exception
            self._link = None
            raise

    def close(self) -> None:
        """Close the remote iterator. Nothing happens on one that has ended."""
        link, self._link = self._link, None
        if link is None or link.closed or link.inherited:
            return
        try:
            with link.lock:
                self._proxy._pyroOnce(link, "close_stream", [self._id], {}, Flags.ONEWAY, DAEMON_OBJECT)
        except CommunicationError:
            pass  # the connection is gone, and the remote iterator with it

    def __del__(self) -> None:
        link = self._link
        # the lock is not waited for here: the finalizer may run inside a call of this very thread
        if link is None or link.closed or link.inherited:
            return
        if link.lock.acquire(blocking=False):
            try:
                self._link = None
                self._proxy._pyroOnce(link, "close_stream", [self._id], {}, Flags.ONEWAY, DAEMON_OBJECT)
            except PyroError:
                pass
            finally:
                link.lock.release()
