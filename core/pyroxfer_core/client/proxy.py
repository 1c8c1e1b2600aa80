"""The trio proxy: calls, attributes and item streams of a remote object, shared by any number of tasks."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncIterator, Generator, Mapping
from types import TracebackType
from typing import Any, Final

import trio

from ..errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    ProtocolError,
    PyroError,
    RemoteError,
    SerializeError,
    TimeoutError,
)
from ..objects.context import current_context_var
from ..objects.expose import Metadata
from ..serializers.base import SerializerContext
from ..serializers.vocabulary import ProxyState
from ..settings import Settings
from ..transport.connection import open_connection
from ..uri import Uri
from ..wire.features import Feature
from ..wire.message import Body, Flags, Message
from .calls import CallOptions, StreamStart, correlation_bytes, encode_call, read_reply, user_annotations
from .items import ItemStream
from .link import Link, greet
from .versions import remember_version, versions_to_try

_NO_OPTIONS: Final = CallOptions()
CLOCK_SLACK_S: Final = 0.25
"""How much earlier than here a deadline may be noticed at the daemon."""


class Proxy:
    """A remote object. Connects at the first call, and again when the connection was lost between calls.

    ``proxy.name(...)`` is a call, which starts when awaited or iterated; ``await proxy.name`` reads an attribute;
    ``proxy.name.options(...)`` sets options for one call. Whatever is not remote begins with ``_pyro``.

    Between two ends of this library calls of many tasks run at once on the one connection; towards a stock peer they
    queue for it. Every communication error has an ``outcome``; nothing that may have run is ever sent twice.

    Args:
        uri: where the object is; PYRONAME and PYROMETA are looked up at every connect.
        settings: limits, timeouts, serializer.

    Raises:
        PyroError: the URI is not one.
    """

    _pyroHandshake: Any
    """Sent to the daemon when connecting; any serializable value."""

    def __init__(self, uri: Uri | str, *, settings: Settings | None = None) -> None:
        self._pyroUri = uri if isinstance(uri, Uri) else Uri(uri)
        self._pyroSettings = settings or Settings()
        self._pyroHandshake = "hello"
        self._pyroMetadata: Metadata | None = None
        self._pyroLink: Link | None = None
        self._pyroLeaving: list[Link] = []
        """Connections to a daemon that is going away, with calls still in flight."""
        self._pyroSeq = 0
        self._pyroConnecting = trio.Lock()

    def __repr__(self) -> str:
        state = "connected" if self._pyroLink is not None else "not connected"
        return f"<{type(self).__name__} for {self._pyroUri}, {state}>"

    def __getattr__(self, name: str) -> Member:
        if name.startswith("_pyro") or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        self._pyroCheckMember(name)
        return Member(self, name, _NO_OPTIONS)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_pyro"):
            raise AttributeError(f"use `await proxy._pyroSet({name!r}, value)` to set a remote attribute")
        super().__setattr__(name, value)

    async def __aenter__(self) -> Proxy:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pyroRelease()

    def _pyroRelease(self) -> None:
        """Close the connection; calls in flight end with ConnectionClosedError. The next call connects again."""
        link, self._pyroLink = self._pyroLink, None
        if link is not None:
            self._pyroSeq = link.session.seq
            self._pyroLeaving.append(link)
        leaving, self._pyroLeaving = self._pyroLeaving, []
        for link in leaving:
            link.released = True
            link.close()

    async def _pyroBind(self) -> None:
        """Connect now, and stay with the address that a PYRONAME resolved to."""
        link = await self._pyroConnected()
        self._pyroUri = link.uri

    def _pyroValidateHandshake(self, response: Any) -> None:
        """Called with the daemon's handshake response; override it and raise to refuse. The connection is closed."""

    async def _pyroSet(self, name: str, value: Any) -> None:
        """Set a remote attribute."""
        await self._pyroInvoke("__setattr__", (name, value), None, member=name)

    def _pyroCheckMember(self, name: str) -> None:
        meta = self._pyroMetadata
        if meta is not None and name not in meta.methods and name not in meta.attrs:
            raise AttributeError(f"remote object {self._pyroUri!s} has no exposed attribute or method {name!r}")

    async def _pyroInvoke(
        self,
        method: str,
        args: Any,
        kwargs: dict[str, Any] | None,
        *,
        options: CallOptions = _NO_OPTIONS,
        flags: int = 0,
        member: str | None = None,
        call: Call | None = None,
    ) -> Any:
        """Run one call. ``member`` is what must be in the object's metadata (default: the method)."""
        deadline = options.deadline if options.deadline is not None else self._pyroSettings.call_timeout_s
        if deadline is None:
            return await self._pyroAttempts(method, args, kwargs, options, flags, member, call, _Progress())
        progress = _Progress()
        with trio.move_on_after(deadline):
            return await self._pyroAttempts(method, args, kwargs, options, flags, member, call, progress)
        outcome = progress.outcome
        raise TimeoutError(f"{method} took longer than {deadline:g} s ({outcome.value})", outcome=outcome)

    async def _pyroAttempts(
        self,
        method: str,
        args: Any,
        kwargs: dict[str, Any] | None,
        options: CallOptions,
        flags: int,
        member: str | None,
        call: Call | None,
        progress: _Progress,
    ) -> Any:
        """Send; when the connection turns out to be gone before the call left whole, once more on a fresh one.

        A call that was only queued goes on to the next connection as often as others spoil the one it waits for.
        """
        fresh = self._pyroLink is None
        while True:
            link = await self._pyroConnected()
            if not flags & Flags.BATCH:
                self._pyroCheckMember(member or method)
            try:
                if link.session.concurrent:
                    return await self._pyroOnce(link, method, args, kwargs, options, flags, call, progress)
                async with link.turn:
                    if link.connection.broken and not link.released:
                        continue
                    return await self._pyroOnce(link, method, args, kwargs, options, flags, call, progress)
            except ConnectionClosedError as error:
                if fresh or error.outcome is not Outcome.NOT_SENT or link.released:
                    raise
                fresh = True

    async def _pyroOnce(
        self,
        link: Link,
        method: str,
        args: Any,
        kwargs: dict[str, Any] | None,
        options: CallOptions,
        flags: int,
        call: Call | None,
        progress: _Progress,
    ) -> Any:
        if link.connection.broken:
            raise ConnectionClosedError("the connection was lost while the call was queued", outcome=Outcome.NOT_SENT)
        settings = self._pyroSettings
        meta = link.metadata
        if meta is not None and method in meta.oneway:
            flags |= Flags.ONEWAY
        serializer = link.serializer(self._pyroSerializerName(link))
        object_id = link.object_id
        remaining = trio.current_effective_deadline()
        if remaining == -math.inf:
            await trio.lowlevel.checkpoint()  # cancelled already: nothing is sent
        deadline = None if remaining == math.inf else remaining - trio.current_time()
        request = encode_call(
            serializer, link.grant, link.version, object_id, method, args, kwargs, flags, options, settings, deadline
        )
        if request.correlation_id is None:
            request.correlation_id = _inherited_correlation()
        if flags & Flags.ONEWAY:
            progress.link, progress.end = link, link.post_oneway(request)
            await link.send_oneway(progress.end)
            return None
        waiter = link.post(request)
        progress.link, progress.end = link, waiter.end
        message = await link.wait(waiter)
        if call is not None:
            call._received(message)
        try:
            result = read_reply(message, link.serializer(message.serializer), link.grant, settings)
        except CommunicationError as error:
            unanswered = error.outcome is not Outcome.EXECUTED
            if unanswered and remaining - trio.current_time() < CLOCK_SLACK_S:
                progress.certain = error.outcome
                await trio.sleep_until(remaining)  # the daemon was a little faster: let the deadline speak here too
            raise
        except StopIteration as error:  # it cannot leave a coroutine as it is
            raise RemoteError("builtins.StopIteration", error.args) from error
        if type(result) is StreamStart:
            return ItemStream(self, link, result.stream_id, options.read_ahead)
        return result

    def _pyroSerializerName(self, link: Link) -> str:
        """What to write with on this connection."""
        return self._pyroSettings.serializer or ("msgpack" if link.grant.bits & Feature.TYPED else "serpent")

    async def _pyroConnected(self) -> Link:
        link = self._pyroLink
        if link is not None and link.usable:
            return link
        async with self._pyroConnecting:
            link = self._pyroLink
            if link is not None and link.usable:
                return link
            self._pyroLink = None
            if link is not None:
                self._pyroSeq = link.session.seq
                self._pyroRetire(link)
            link = await self._pyroConnect()
            self._pyroTakeMetadata(link)
            self._pyroLink = link
            return link

    def _pyroRetire(self, link: Link) -> None:
        """Close a connection that takes no new calls, unless calls are in flight: then it closes after the last."""
        self._pyroLeaving = [leaving for leaving in self._pyroLeaving if not leaving.connection.broken]
        if link.session.pending and not link.connection.broken:
            self._pyroLeaving.append(link)
        else:
            link.close()

    def _pyroTakeMetadata(self, link: Link) -> None:
        try:
            if link.metadata is not None and not link.metadata.methods and not link.metadata.attrs:
                raise PyroError(f"remote object {self._pyroUri!s} doesn't expose any methods or attributes")
            self._pyroValidateHandshake(link.response)
        except BaseException:
            link.close()
            raise
        self._pyroMetadata = link.metadata

    async def _pyroConnect(self) -> Link:
        settings = self._pyroSettings
        try:
            with trio.fail_after(settings.connect_timeout_s):
                uri = await self._pyroResolve()
                return await self._pyroConnectTo(uri)
        except trio.TooSlowError:
            text = f"cannot connect to {self._pyroUri!s}: no answer within {settings.connect_timeout_s:g} s"
            raise TimeoutError(text, outcome=Outcome.NOT_SENT) from None
        except CommunicationError as error:
            error.outcome = Outcome.NOT_SENT
            raise

    async def _pyroResolve(self) -> Uri:
        if self._pyroUri.protocol == "PYRO":
            return self._pyroUri
        from ..nameserver.lookup import resolve  # the name server room uses proxies, so it is imported late

        return await resolve(self._pyroUri, self._pyroSettings)

    async def _pyroConnectTo(self, uri: Uri) -> Link:
        """Try the protocols this place may speak; a stock Pyro4 closes or answers in its own on a 502 hello."""
        location = uri.location or ""
        failure: CommunicationError | None = None
        cut = False
        versions = versions_to_try(location, self._pyroSettings)
        for version in versions:
            connection = await open_connection(uri, version=version, settings=self._pyroSettings)
            try:
                link = await greet(
                    connection,
                    self._pyroSettings,
                    self._pyroContext,
                    object_id=str(uri.object),
                    location=location,
                    handshake=self._pyroHandshake,
                    serializer=self._pyroSettings.serializer or "serpent",
                    first_seq=self._pyroSeq,
                    options=_NO_OPTIONS,
                )
            except (ProtocolError, ConnectionClosedError) as error:
                failure = failure or error
                cut = connection.ended
                continue
            if len(versions) > 1 and not cut:  # a connection that broke says nothing about what is spoken there
                remember_version(location, version)
            link.uri, link.object_id = uri, str(uri.object)
            return link
        assert failure is not None, "at least one protocol is tried"
        raise failure

    async def _pyroOpenPipeline(self) -> Link:
        """A connection of its own on which item requests to a stock peer may be sent ahead."""
        link = await self._pyroConnectTo((await self._pyroConnected()).uri)
        link.session.pipelined = True
        return link

    def _pyroContext(self, version: int, own: bool) -> SerializerContext:
        return SerializerContext(
            version=version, own=own, proxy_factory=self._pyroFromState, proxy_state_of=proxy_state_of
        )

    def _pyroFromState(self, state: ProxyState) -> Proxy:
        """A proxy that arrived in a value: same settings as this one."""
        return proxy_from_state(state, self._pyroSettings)

    def _pyroState(self) -> ProxyState:
        meta = self._pyroMetadata or Metadata(frozenset(), frozenset(), frozenset())
        return ProxyState(
            str(self._pyroUri),
            meta.oneway,
            meta.methods,
            meta.attrs,
            self._pyroHandshake,
            self._pyroSettings.serializer,
        )


def proxy_from_state(state: ProxyState, settings: Settings) -> Proxy:
    """Make a proxy that arrived in a value, with the receiver's settings."""
    if state.serializer is not None and state.serializer in settings.accepted_serializers:
        settings = settings.with_changes(serializer=state.serializer)
    proxy = Proxy(state.uri_text, settings=settings)
    proxy._pyroHandshake = state.handshake
    return proxy


def proxy_state_of(value: object) -> ProxyState | None:
    """The state of a proxy as it travels; None for anything else."""
    return value._pyroState() if isinstance(value, Proxy) else None


def _inherited_correlation() -> bytes | None:
    """The id of the call that this call is made for, inside a served method."""
    context = current_context_var.get(None)
    return None if context is None else context.known_correlation


class _Progress:
    """How far a call came, for the outcome of a time-out."""

    __slots__ = ("certain", "end", "link")

    def __init__(self) -> None:
        self.link: Link | None = None
        self.end = 0
        self.certain: Outcome | None = None
        """What the peer said about it."""

    @property
    def outcome(self) -> Outcome:
        if self.certain is not None:
            return self.certain
        return Outcome.NOT_SENT if self.link is None else self.link.outcome_at(self.end)


class Member:
    """``proxy.name``: call it, await it to read an attribute, or set options first."""

    __slots__ = ("_name", "_options", "_proxy")

    def __init__(self, proxy: Proxy, name: str, options: CallOptions) -> None:
        self._proxy = proxy
        self._name = name
        self._options = options

    def __repr__(self) -> str:
        return f"<remote member {self._name!r} of {self._proxy._pyroUri!s}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Call:
        return Call(self._proxy, self._name, args, kwargs, self._options)

    def __await__(self) -> Generator[Any, Any, Any]:
        read = self._proxy._pyroInvoke("__getattr__", (self._name,), None, options=self._options, member=self._name)
        return read.__await__()

    def options(
        self,
        *,
        deadline: float | None = None,
        annotations: Mapping[str, Body] | None = None,
        correlation_id: uuid.UUID | bytes | None = None,
        read_ahead: int = 1,
    ) -> Member:
        """The same member with options for the calls made through it.

        Args:
            deadline: seconds the call may take; a peer of ours stops working on it, too.
            annotations: four ASCII characters to bytes.
            correlation_id: a UUID that the daemon passes on to its own calls.
            read_ahead: item requests in flight when the call returns an item stream.

        Raises:
            PyroError: an option has an unusable value.
        """
        if deadline is not None and not 0 < deadline < math.inf:
            raise PyroError(f"a deadline is a positive number of seconds, not {deadline!r}")
        if not 1 <= read_ahead <= 1024:
            raise PyroError(f"read_ahead is 1 to 1024 requests, not {read_ahead!r}")
        options = CallOptions(deadline, dict(annotations or {}), correlation_bytes(correlation_id), read_ahead)
        return Member(self._proxy, self._name, options)


class Call:
    """A call that starts when it is awaited, or iterated when it returns an item stream. Use it once."""

    __slots__ = ("_args", "_kwargs", "_name", "_options", "_proxy", "_reply")

    def __init__(
        self, proxy: Proxy, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> None:
        self._proxy = proxy
        self._name = name
        self._args = args
        self._kwargs = kwargs
        self._options = options
        self._reply: Message | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        run = self._proxy._pyroInvoke(self._name, self._args, self._kwargs, options=self._options, call=self)
        return run.__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return _LateStream(self)

    def _received(self, message: Message) -> None:
        self._reply = message

    @property
    def response_annotations(self) -> dict[str, Body]:
        """Annotations of the reply; empty before it came."""
        return {} if self._reply is None else user_annotations(self._reply)

    @property
    def correlation_id(self) -> uuid.UUID | None:
        """The correlation id of the reply."""
        data = None if self._reply is None else self._reply.correlation_id
        return None if data is None else uuid.UUID(bytes=data)


class _LateStream:
    """Iterates over the stream that a call will return; the call is made at the first item."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._stream: ItemStream | None = None

    def __aiter__(self) -> _LateStream:
        return self

    async def __anext__(self) -> Any:
        if self._stream is None:
            result = await self._call
            if not isinstance(result, ItemStream):
                raise SerializeError(f"{self._call._name} returned no item stream", outcome=Outcome.EXECUTED)
            self._stream = result
        return await self._stream.__anext__()

    async def aclose(self) -> None:
        """Close the remote iterator."""
        if self._stream is not None:
            await self._stream.aclose()
