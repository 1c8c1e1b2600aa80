"""The proxy for programs without a loop: Pyro's own, but usable from any thread and without blind retries."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..client.calls import (
    DAEMON_OBJECT,
    CallOptions,
    StreamStart,
    encode_call,
    hangs_up_after,
    read_reply,
    read_value,
    user_annotations,
)
from ..client.handshake import read_metadata
from ..client.proxy import CLOCK_SLACK_S
from ..client.retry import Attempts, RetryBudget, is_cut_off, loses_session, pause_before, session_lost
from ..client.uploads import check_streams_fit
from ..errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    ProtocolError,
    PyroError,
    SerializeError,
    TimeoutError,
)
from ..futures import FutureResult
from ..objects.expose import Metadata
from ..objects.invoke import BATCH_METHOD
from ..serializers.base import SerializerContext, StreamArgumentError
from ..serializers.blob import SerializedBlob
from ..serializers.vocabulary import ProxyState, served_as
from ..settings import Settings
from ..uri import Uri, uri_of
from ..wire.features import STOCK
from ..wire.message import Body, Flags, Message, MessageType
from .ahead import AheadIterator
from .asynchronous import call_async
from .config import config
from .connecting import ConnectingTurn, check_time, open_link
from .context import NO_OPTIONS, call_options, current_context
from .link import BlockingLink, ContextFactory
from .members import NO_MEMBERS, Members, keep, knows_its_methods
from .pushed import PushedIterator
from .streams import StreamIterator
from .uploads import call_with_streams

if TYPE_CHECKING:
    from .batch import BatchProxy

T = TypeVar("T")

_UNANSWERED: Final = (Outcome.UNKNOWN, Outcome.NOT_SENT)
_NONE: Final[frozenset[str]] = frozenset()
_ONEWAY, _BATCH = Flags.ONEWAY, Flags.BATCH


@knows_its_methods
class Proxy(Members):
    """A remote object, as in Pyro5: ``proxy.method(...)``, ``proxy.attribute``, ``proxy.attribute = value``.

    Connects at first use, and again when the connection was lost between calls. Any thread may use it: calls run at
    once between two ends of this library, and take turns towards a stock peer. A call is never sent twice once it may
    have run: every communication error has an ``outcome``.

    Args:
        uri: where the object is; with ``connected_socket`` the object's id.
        connected_socket: talk over this socket, which stays the caller's: there is no handshake on it, and it is
            never closed here.
        background: read the connection in a thread of its own, so that the daemon at the other end can call objects
            of this process on it.
        settings: limits, timeouts, serializer; those of ``config`` when left out.

    Raises:
        PyroError: the URI is not one.
    """

    _pyroUri: Uri
    _pyroSettings: Settings
    _pyroTimeout: float | None
    _pyroMaxRetries: int
    _pyroBudget: RetryBudget
    _pyroSerializer: str | None
    _pyroConnecting: ConnectingTurn
    _pyroHooked: bool
    # What most proxies leave as it is stands in the class: it need not be set for each.
    _pyroHandshake: Any = "hello"
    _pyroLink: BlockingLink | None = None
    _pyroGreeted: BlockingLink | None = None
    """The connection whose handshake is being judged."""
    _pyroLastSeq = 0
    """Of the connections before this one."""
    _pyroSocket: socket.socket | None = None
    _pyroBackground = False
    _pyroVia: Callable[[], Any] | None = None
    """The way to the object over a connection that the other side made, while there is one."""

    def __init__(
        self,
        uri: Uri | str,
        connected_socket: socket.socket | None = None,
        *,
        background: bool = False,
        settings: Settings | None = None,
    ) -> None:
        if connected_socket is not None:
            uri = f"PYRO:{uri}@<<connected-socket>>:0"
        self._pyroBegin(uri, connected_socket, background, settings or config.settings())
        if connected_socket is not None:
            self._pyroConnected(self._pyroDeadline())

    def _pyroBegin(
        self, uri: Uri | str, connected_socket: socket.socket | None, background: bool, settings: Settings
    ) -> None:
        """What every proxy starts with; copies do without ``__init__``, whose arguments are a subclass's affair."""
        keep(self, "_pyroUri", uri_of(uri))
        keep(self, "_pyroSettings", settings)
        keep(self, "_pyroTimeout", settings.call_timeout_s)
        keep(self, "_pyroMaxRetries", config.MAX_RETRIES)
        keep(self, "_pyroBudget", RetryBudget())
        keep(self, "_pyroSerializer", settings.serializer)
        keep(self, "_pyroConnecting", ConnectingTurn())
        if connected_socket is not None:
            keep(self, "_pyroSocket", connected_socket)
        if background:
            keep(self, "_pyroBackground", True)
        kind = type(self)
        hooked = (
            kind._pyroAnnotations is not Proxy._pyroAnnotations
            or kind._pyroResponseAnnotations is not Proxy._pyroResponseAnnotations
        )
        keep(self, "_pyroHooked", hooked)

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

    def __eq__(self, other: object) -> bool:
        return other is self or (isinstance(other, Proxy) and other._pyroUri == self._pyroUri)

    def __hash__(self) -> int:
        return hash(self._pyroUri)

    def __copy__(self) -> Proxy:
        """The same object, over a connection of its own."""
        if self._pyroSocket is not None:
            raise PyroError("a proxy on a connected socket cannot be copied: there is only one socket")
        copy = object.__new__(type(self))
        copy._pyroBegin(self._pyroUri, None, self._pyroBackground, self._pyroSettings)
        copy._pyroHandshake, copy._pyroTimeout = self._pyroHandshake, self._pyroTimeout
        copy._pyroSerializer, copy._pyroMaxRetries = self._pyroSerializer, self._pyroMaxRetries
        copy._pyroMeta, copy._pyroAsynchronous = self._pyroMeta, self._pyroAsynchronous
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return proxy_from_state, (self._pyroState(), self._pyroSettings, self._pyroKind)

    @property
    def _pyroSeq(self) -> int:
        """The number of the last request; the numbers go on over a reconnect."""
        link = self._pyroLink
        return self._pyroLastSeq if link is None else link.session.seq

    @property
    def _pyroConnection(self) -> BlockingLink | None:
        """The connection, None without one. While `_pyroValidateHandshake` runs, the one that is being made."""
        return self._pyroGreeted or self._pyroLink

    @property
    def _pyroLocalSocket(self) -> Any:
        """The address of this end of the connection; None without one."""
        link = self._pyroLink
        return None if link is None or link.closed else link.sock.getsockname()

    @property
    def _pyroHmacKey(self) -> bytes | None:
        """The shared secret of protocol 48, which leaves no other protocol."""
        return self._pyroSettings.hmac_key

    @_pyroHmacKey.setter
    def _pyroHmacKey(self, key: bytes | str | None) -> None:
        self._pyroSettings = with_key(self._pyroSettings, key)

    def _pyroLater(self, method: str, /, *args: Any, **kwargs: Any) -> FutureResult:
        """``proxy.method(*args, **kwargs)`` in the asynchronous mode."""
        return call_async(self, method, *args, **kwargs)

    def _pyroBatch(self) -> BatchProxy:
        """Pyro4's way to make a `BatchProxy`."""
        from .batch import BatchProxy

        return BatchProxy(self)

    # --- hooks -----------------------------------------------------------------------------------------------------

    def _pyroValidateHandshake(self, response: Any) -> None:
        """Called with the daemon's handshake response; override it and raise to refuse. The connection is closed."""

    def _pyroAnnotations(self) -> dict[str, Body]:
        """Pyro4's hook: override it to send annotations with every call of this proxy."""
        return {}

    def _pyroResponseAnnotations(self, annotations: dict[str, Body], msgtype: int) -> None:
        """Pyro4's hook: override it to see the annotations of every answer."""

    # --- connection ------------------------------------------------------------------------------------------------

    def _pyroClaimOwnership(self) -> None:
        """Nothing: a proxy belongs to no thread. Pyro5's programs call it when they hand one to another thread."""

    def _pyroBind(self) -> bool:
        """Connect now, and stay with the address that a PYRONAME resolved to. False when connected already."""
        if self._pyroLink is not None and self._pyroLink.usable:
            return False
        link = self._pyroConnected(self._pyroDeadline())
        if self._pyroUri.protocol != "PYRO":
            self._pyroUri = Uri(f"PYRO:{link.object_id}@{link.location}")
        return True

    def _pyroRelease(self) -> None:
        """Close the connection; the next call connects again. Nothing happens to a socket of the user's."""
        if self._pyroSocket is not None:
            return
        link = self._pyroLink
        if link is not None:
            keep(self, "_pyroLink", None)
            keep(self, "_pyroLastSeq", link.session.seq)
            link.released = True
            link.close()

    def _pyroReconnect(self, tries: int = 100000000) -> None:
        """Connect anew, trying again with growing pauses.

        Raises:
            ConnectionClosedError: it could not be done.
        """
        self._pyroRelease()
        last: CommunicationError | None = None
        for attempt in range(tries):
            try:
                self._pyroConnected(self._pyroDeadline())
                return
            except CommunicationError as error:
                last = error
            if attempt + 1 < tries:
                time.sleep(pause_before(attempt))
        raise ConnectionClosedError("failed to reconnect") from last

    def _pyroMetadata(self) -> Metadata | None:
        if self._pyroMeta is not None:
            return self._pyroMeta
        return self._pyroAttempts(self._pyroDeadline(), lambda link: link.metadata)

    def _pyroDeadline(self, seconds: float | None = None) -> float | None:
        """When what begins now must be over, on the monotonic clock; after ``_pyroTimeout`` unless it is said."""
        limit = seconds or self._pyroTimeout
        return time.monotonic() + limit if limit else None

    def _pyroConnected(self, deadline: float | None) -> BlockingLink:
        link = self._pyroLink
        if link is not None and link.usable:
            return link
        return self._pyroConnecting.during(deadline, partial(self._pyroConnectedInTurn, deadline))

    def _pyroConnectedInTurn(self, deadline: float | None) -> BlockingLink:
        link = self._pyroLink
        if link is not None:
            if link.usable:
                return link
            self._pyroLastSeq = link.session.seq
            if self._pyroLosesSession(link):
                self._pyroLink = None
                raise session_lost(self._pyroUri)
        return self._pyroConnectAnew(deadline)

    def _pyroLosesSession(self, link: BlockingLink) -> bool:
        """Whether an object of the caller's may be gone with a connection. What a parent process had is not ours."""
        used = link.session.seq != link.first_seq and not link.forsaken
        return used and loses_session(link.metadata, link.grant, self._pyroSettings)

    def _pyroConnectAnew(self, deadline: float | None) -> BlockingLink:
        link = self._pyroVia() if self._pyroVia is not None else None
        if link is None:
            sock = self._pyroSocket
            link = self._pyroOnSocket(sock, deadline) if sock is not None else open_link(self, deadline)
        try:
            if link.metadata is not None and not link.metadata.methods and not link.metadata.attrs:
                raise PyroError(f"remote object at {self._pyroUri} doesn't expose any methods or attributes")
            if self._pyroVia is None or link.response is not None:
                keep(self, "_pyroGreeted", link)
                self._pyroValidateHandshake(link.response)
        except BaseException:
            link.close()
            raise
        finally:
            keep(self, "_pyroGreeted", None)
        if link.metadata is not None:
            self._pyroKnow(link.metadata)
        keep(self, "_pyroLink", link)
        return link

    def _pyroOnSocket(self, sock: socket.socket, deadline: float | None) -> BlockingLink:
        """Use the user's socket, on which the first thing said is a question for the members of the object."""
        if self._pyroLink is not None:
            raise ConnectionClosedError("the connected socket of this proxy is broken", outcome=Outcome.NOT_SENT)
        object_id = str(self._pyroUri.object)
        version = self._pyroSettings.protocol or (48 if self._pyroSettings.hmac_key else 502)
        link = BlockingLink(sock, version, self._pyroSettings, object_id, "<<connected-socket>>:0")
        link.assume_connected(self._pyroContexts())
        until = time.monotonic() + self._pyroSettings.connect_timeout_s
        until = until if deadline is None else min(until, deadline)
        try:
            members = self._pyroCallOn(link, "get_metadata", [object_id], {}, 0, DAEMON_OBJECT, until)
        except TimeoutError as error:
            text = (
                "the daemon at the other end of the socket does not answer; one of Pyro4 needs Settings(protocol=48)"
            )
            raise TimeoutError(text, outcome=Outcome.NOT_SENT) from error
        if not isinstance(members, dict):
            raise ProtocolError("the daemon answered the question for members with something else")
        link.metadata = read_metadata(members)
        return link

    def _pyroContexts(self) -> ContextFactory:
        """What makes the serializer context of a connection, which must not keep the proxy alive."""
        return partial(_context, self._pyroSettings, self._pyroSerializer)

    def _pyroState(self) -> ProxyState:
        meta = self._pyroMeta or NO_MEMBERS
        return ProxyState(
            str(self._pyroUri), meta.oneway, meta.methods, meta.attrs, self._pyroHandshake, self._pyroSerializer
        )

    # --- calls -----------------------------------------------------------------------------------------------------

    def _pyroInvokeBatch(self, calls: list[Any], oneway: bool = False) -> Any:
        """Send noted calls together; the results as they came, None when one-way."""
        flags = Flags.BATCH | (Flags.ONEWAY if oneway else 0)
        return self._pyroInvoke(BATCH_METHOD, calls, None, flags)

    def _pyroInvoke(
        self,
        methodname: str,
        vargs: Any,
        kwargs: dict[str, Any] | None,
        flags: int = 0,
        objectId: str | None = None,
    ) -> Any:
        """Run one call; once more on a fresh connection when the old one turned out to be gone before it left."""
        link = self._pyroLink
        timeout = self._pyroTimeout
        deadline = time.monotonic() + timeout if timeout else None  # as `_pyroDeadline`, which would be another step
        failed: CommunicationError | None = None
        if link is not None:
            try:
                if (
                    methodname in link.plain_methods
                    and deadline is None
                    and not (flags & ~_BATCH or objectId or self._pyroHooked)
                    and not (vargs and isinstance(vargs[0], SerializedBlob))
                    and call_options() is NO_OPTIONS
                ):
                    return self._pyroCallPlain(link, methodname, vargs, kwargs, flags)
                return self._pyroCallOn(link, methodname, vargs, kwargs, flags, objectId, deadline)
            except CommunicationError as error:
                failed = error
        return self._pyroInvokeAgain(failed, link, deadline, (methodname, vargs, kwargs, flags, objectId))

    def _pyroCallPlain(
        self, link: BlockingLink, method: str, args: Any, kwargs: dict[str, Any] | None, flags: int
    ) -> Any:
        """`_pyroCallOn` for a call that has nothing but arguments, in fewer steps."""
        name = self._pyroSerializer or link.preferred
        serializer = link.serializers.get(name) or link.serializer(name)
        try:
            body = serializer.dumps_call(link.object_id, method, args, kwargs)
        except StreamArgumentError:
            return self._pyroCallOn(link, method, args, kwargs, flags)
        except SerializeError as error:
            error.outcome = Outcome.NOT_SENT
            raise
        answer = link.call_plain(name, body, flags)
        if isinstance(answer, bytes):
            return read_value(answer, serializer)
        return self._pyroResult(link, method, answer, None, NO_OPTIONS)

    def _pyroInvokeAgain(
        self,
        error: CommunicationError | None,
        failed: BlockingLink | None,
        deadline: float | None,
        call: tuple[str, Any, dict[str, Any] | None, int, str | None],
    ) -> Any:
        """Run a call for which there was no connection, or none that was still there."""

        def run(link: BlockingLink) -> Any:
            return self._pyroCallOn(link, *call, deadline=deadline)

        return self._pyroAttempts(deadline, run, call[0], link=failed, error=error)

    def _pyroCallWith(self, options: CallOptions, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """``proxy.method.options(...)(*args, **kwargs)``."""
        deadline = self._pyroDeadline(options.deadline)

        def run(link: BlockingLink) -> Any:
            return self._pyroCallOn(link, method, args, kwargs, deadline=deadline, options=options)

        return self._pyroAttempts(deadline, run, method, keyed=options.key is not None)

    def _pyroAttempts(
        self,
        deadline: float | None,
        run: Callable[[BlockingLink], T],
        method: str = "",
        *,
        keyed: bool = False,
        link: BlockingLink | None = None,
        error: CommunicationError | None = None,
    ) -> T:
        """Connect and run; again at once when a connection turned out to be gone, else as `Attempts` allows.

        Args:
            link, error: how the first attempt failed, when it was made already.
        """
        attempts = Attempts(self._pyroBudget, keyed=keyed, retries=self._pyroMaxRetries)
        fresh = self._pyroLink is None
        while True:
            if error is not None:
                if not fresh and is_cut_off(link, error):
                    fresh = True
                else:
                    self._pyroTryAgain(attempts, link, error, deadline, method)
            link = None
            try:
                link = self._pyroConnected(deadline)
                attempts.check_daemon(link.grant)
                check_time(deadline)
                return run(link)
            except CommunicationError as caught:
                error = caught

    def _pyroTryAgain(
        self,
        attempts: Attempts,
        link: BlockingLink | None,
        error: CommunicationError,
        deadline: float | None,
        method: str,
    ) -> None:
        """Wait before the next attempt of a call that failed, or raise what became of it."""
        pause = None
        if link is None:
            pause = attempts.failed(error, self._pyroLastSeq, STOCK, idempotent=False)
        elif not link.released:
            idempotent = link.metadata is not None and method in link.metadata.idempotent
            pause = attempts.failed(error, link.session.seq, link.grant, idempotent=idempotent)
        if pause is None or (deadline is not None and time.monotonic() + pause >= deadline):
            raise attempts.verdict(error)
        time.sleep(pause)

    def _pyroCallOn(
        self,
        link: BlockingLink,
        method: str,
        args: Any,
        kwargs: dict[str, Any] | None,
        flags: int = 0,
        object_id: str | None = None,
        deadline: float | None = None,
        options: CallOptions | None = None,
    ) -> Any:
        """Run one call on this connection, whatever becomes of it."""
        meta = link.metadata
        if meta is not None and method in meta.oneway and object_id is None:
            flags |= _ONEWAY
        grant, serializers = link.session.grant, link.serializers
        name = self._pyroSerializer or link.preferred
        serializer = serializers.get(name) or link.serializer(name)
        object_id = object_id or link.object_id
        options = self._pyroOptions(options) if self._pyroHooked or options is not None else call_options()
        settings, left = self._pyroSettings, None if deadline is None else deadline - time.monotonic()
        try:
            request = encode_call(
                serializer, grant, link.version, object_id, method, args, kwargs, flags, options, settings, left
            )
        except StreamArgumentError:
            check_streams_fit(flags & _ONEWAY != 0, options.key is not None)
            rest = grant, link.version, object_id, method, args, kwargs, flags, options, settings, left
            answer = call_with_streams(link, lambda serializer: encode_call(serializer, *rest), deadline)
        else:
            if flags & _ONEWAY:
                link.send_oneway(request, deadline)
                return None
            answer = link.call(request, deadline)
        return self._pyroResult(link, method, answer, deadline, options)

    def _pyroResult(
        self, link: BlockingLink, method: str, answer: Message, deadline: float | None, options: CallOptions
    ) -> Any:
        """What a call gives to its caller."""
        if answer.annotations:
            self._pyroAnswered(answer)
        try:
            reader = link.serializers.get(answer.serializer) or link.serializer(answer.serializer)
            result = read_reply(answer, reader, link.session.grant, self._pyroSettings)
        except PyroError as error:
            if hangs_up_after(answer, error, link.session.grant):
                link.close()
            if not isinstance(error, CommunicationError) or deadline is None:
                raise
            if error.outcome not in _UNANSWERED or time.monotonic() < deadline - CLOCK_SLACK_S:
                raise
            raise TimeoutError(f"{method} took too long: {error}", outcome=error.outcome) from error
        return result if type(result) is not StreamStart else self._pyroStream(link, result, options.read_ahead)

    def _pyroStream(self, link: BlockingLink, start: StreamStart, read_ahead: int | None) -> StreamIterator:
        if start.number is not None:
            return PushedIterator(self, link, start.stream_id, start.number, read_ahead)
        if read_ahead is not None and read_ahead > 1 and self._pyroSocket is None:
            return AheadIterator(self, link, start.stream_id, read_ahead)
        return StreamIterator(self, link, start.stream_id)

    def _pyroOpenPipeline(self, deadline: float | None) -> BlockingLink:
        """A connection of its own on which item requests to a stock peer may be sent ahead."""
        link = open_link(self, deadline)
        link.session.pipelined = True
        return link

    def _pyroClosingMessage(self, link: BlockingLink, stream_id: str) -> Message:
        serializer = link.serializer(self._pyroSerializer or link.preferred)
        body = serializer.dumps_call(DAEMON_OBJECT, "close_stream", [stream_id], {})
        return Message(MessageType.INVOKE, 0, serializer.name, Flags.ONEWAY, body)

    def _pyroOptions(self, own: CallOptions | None = None) -> CallOptions:
        """What a call carries: what belongs to this thread, what the hook adds, and options of its own."""
        options = call_options()
        hooked = self._pyroAnnotations() if self._pyroHooked else None
        if not hooked and own is None:
            return options
        own = own or NO_OPTIONS
        annotations = {**options.annotations, **(hooked or {}), **own.annotations}
        correlation_id = own.correlation_id or options.correlation_id
        return CallOptions(None, annotations, correlation_id, own.read_ahead, own.key, options.chain)

    def _pyroAnswered(self, answer: Message) -> None:
        annotations = user_annotations(answer)
        current_context.answered(annotations)
        if self._pyroHooked:
            self._pyroResponseAnnotations(annotations, answer.type)


def _context(settings: Settings, serializer: str | None, version: int) -> SerializerContext:
    unsafe = _NONE
    if settings.knows_daemons:
        unsafe = settings.with_changes(serializer=serializer).unsafe_for(known=True)
    return SerializerContext(
        version=version,
        proxy_factory=lambda state: proxy_from_state(state, settings),
        proxy_state_of=proxy_state_of,
        autoproxy=served_as,
        unsafe=unsafe,
    )


def with_key(settings: Settings, key: bytes | str | None) -> Settings:
    """The settings with another HMAC key."""
    return settings.with_changes(hmac_key=key.encode() if isinstance(key, str) else key)


def proxy_from_state(state: ProxyState, settings: Settings, kind: type[Proxy] = Proxy) -> Proxy:
    """Make a proxy that arrived in a value, with the receiver's settings."""
    proxy = object.__new__(kind)
    proxy._pyroBegin(state.uri_text, None, False, settings)
    proxy._pyroHandshake = state.handshake
    if state.serializer in settings.accepted_serializers:
        proxy._pyroSerializer = state.serializer
    return proxy


def proxy_state_of(value: object) -> ProxyState | None:
    """The state of a proxy as it travels; None for anything else."""
    return value._pyroState() if isinstance(value, Proxy) else None
