"""The trio proxy: calls, attributes and item streams of a remote object, shared by any number of tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final

import trio
from trio.lowlevel import checkpoint_if_cancelled, enable_ki_protection, wait_task_rescheduled

from ..errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    ProtocolError,
    PyroError,
    RemoteError,
    TimeoutError,
)
from ..objects.context import CallContext, current_context_var
from ..objects.expose import Metadata
from ..serializers.base import SerializerContext, StreamArgumentError
from ..serializers.blob import SerializedBlob
from ..serializers.vocabulary import ProxyState, served_as
from ..settings import Settings
from ..transport.connection import open_connection
from ..transport.faults import TRAVEL
from ..uri import Uri
from ..wire.features import STOCK, Feature
from ..wire.message import Flags, Message
from ..wire.plain import plain_calls
from .calls import CallOptions, StreamStart, belongs_to, encode_call, hangs_up_after, read_reply, read_value
from .greeting import greet
from .handshake import name_place
from .items import ItemStream
from .link import Link
from .member import Call, Member
from .pushed import PushedStream
from .retry import Attempts, RetryBudget, is_cut_off, loses_session, session_lost
from .uploads import call_with_streams
from .versions import remember_version, versions_to_try
from .waiter import Waiter

_NO_OPTIONS: Final = CallOptions()
_ONEWAY: Final = Flags.ONEWAY
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
        self._pyroBudget = RetryBudget()
        self._pyroConnecting = trio.Lock()
        self._pyroVia: Callable[[], Link | None] | None = None
        """The way to the object over a connection that the other side made, while there is one."""

    def __repr__(self) -> str:
        state = "connected" if self._pyroLink is not None else "not connected"
        return f"<{type(self).__name__} for {self._pyroUri}, {state}>"

    def __getattr__(self, name: str) -> Member:
        meta = self._pyroMetadata
        if meta is None or name not in meta.methods:
            if name.startswith("_pyro") or (name.startswith("__") and name.endswith("__")):
                raise AttributeError(name)
            self._pyroCheckMember(name)
            return Member(self, name, _NO_OPTIONS)
        # the next look for it ends in the instance; only as long as the metadata are these
        member = self.__dict__[name] = Member(self, name, _NO_OPTIONS)
        return member

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

    @enable_ki_protection
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
    ) -> Any:
        """Run one call. ``member`` is what must be in the object's metadata (default: the method)."""
        return await Call(self, method, args, kwargs, options, flags, member)

    @enable_ki_protection
    def _pyroRun(self, call: Call) -> Coroutine[Any, Any, Any]:
        deadline = call.options.deadline
        if deadline is None:
            deadline = self._pyroSettings.call_timeout_s
        served = current_context_var.get(None)
        if deadline is not None or (served is not None and served.deadline is not None):
            return self._pyroWithin(call, deadline, served)
        link = self._pyroLink
        if served is None and link is not None and _is_plain(call, link):
            return self._pyroPlain(call, link)
        return self._pyroAttempts(call, None, served)

    @enable_ki_protection
    async def _pyroPlain(self, call: Call, link: Link) -> Any:
        """`_pyroAttempts` for a call that has nothing but arguments, in fewer steps when it is alone."""
        failure: CommunicationError | None = None
        await checkpoint_if_cancelled()
        alone = link.is_quiet()
        if alone or link.usable:
            try:
                small = link.post_small(call.method, call.args, call.kwargs)
                call.end, call.link = small.end, link
                if link.parks(small):
                    try:
                        await wait_task_rescheduled(small.abort)
                    except TRAVEL:
                        await link.abandon(small)
                        raise
                    link.woken()
                if small.body is None:
                    answer = await (link.wait_plain(small) if alone else link.wait(small))
                if small.body is not None:
                    return read_value(small.body, link.writer)
                call.reply = answer
                return self._pyroResult(link, call, answer)
            except StreamArgumentError:
                pass  # there is more to it
            except CommunicationError as error:
                failure = error
        return await self._pyroAttempts(call, None, None, link, failure)

    @enable_ki_protection
    async def _pyroWithin(self, call: Call, deadline: float | None, served: CallContext | None) -> Any:
        """Run a call that has a deadline of its own, or that of the call it is made for."""
        now = trio.current_time()
        at = math.inf if deadline is None else now + deadline
        if served is not None and served.deadline is not None:
            at = min(at, served.deadline)
        with trio.CancelScope(deadline=at):
            return await self._pyroAttempts(call, at, served)
        outcome = call.outcome
        raise TimeoutError(f"{call.method} took longer than {at - now:.3g} s ({outcome.value})", outcome=outcome)

    @enable_ki_protection
    async def _pyroAttempts(
        self,
        call: Call,
        deadline: float | None,
        served: CallContext | None,
        link: Link | None = None,
        error: CommunicationError | None = None,
    ) -> Any:
        """Send; at once on a fresh connection when the old one turns out to be gone before the call left whole.

        A call that was only queued goes on to the next connection as often as others spoil the one it waits for. What
        else may be sent again, and when, is decided by `Attempts`.

        Args:
            link, error: how the first attempt failed, when it was made already.
        """
        await checkpoint_if_cancelled()  # a call that is cancelled already does not leave
        fresh = self._pyroLink is None
        attempts: Attempts | None = None
        while True:
            if error is not None:
                if not fresh and is_cut_off(link, error):
                    fresh = True
                else:
                    attempts = attempts or Attempts(self._pyroBudget, keyed=call.options.key is not None)
                    await self._pyroTryAgain(call, link, error, attempts, deadline)
                error = None
            link = self._pyroLink
            try:
                if link is None or not link.usable:
                    link = None
                    link = await self._pyroConnected()
                if attempts is not None:
                    attempts.check_daemon(link.grant)
                if not link.concurrent:
                    await link.take_turn()
                    try:
                        if link.connection.broken and not link.released:
                            continue
                        return await self._pyroInTurn(link, call, deadline, served)
                    finally:
                        link.turn.release()
                waiter = self._pyroPost(link, call, deadline, served)
                if waiter is None:
                    await link.send_oneway(call.end)
                    return None
                call.reply = await link.wait(waiter)
                return self._pyroResult(link, call, call.reply)
            except StreamArgumentError:
                if link is None or Feature.UPLOAD not in link.grant:
                    raise
                return await call_with_streams(self, link, call, deadline, served)
            except CommunicationError as caught:
                error = caught

    async def _pyroTryAgain(
        self, call: Call, link: Link | None, error: CommunicationError, attempts: Attempts, deadline: float | None
    ) -> None:
        """Wait before the next attempt of a call that failed, or raise what became of it."""
        if (
            deadline is not None
            and error.outcome is not Outcome.EXECUTED
            and type(error) is not ConnectionClosedError
        ):
            call.certain = Outcome.UNKNOWN if attempts.unsure else error.outcome
            await self._pyroLetDeadlineSpeak(deadline)
        pause = None
        if link is None and self._pyroSeq:  # a place where nobody ever was is not asked again
            pause = attempts.failed(error, self._pyroSeq, STOCK, idempotent=False)
        elif link is not None and not link.released:
            idempotent = link.metadata is not None and call.method in link.metadata.idempotent
            pause = attempts.failed(error, link.session.seq, link.grant, idempotent=idempotent)
        if pause is None or (deadline is not None and trio.current_time() + pause >= deadline):
            raise attempts.verdict(error)
        call.certain = Outcome.UNKNOWN if attempts.unsure else None
        call.link = None
        await trio.sleep(pause)

    async def _pyroInTurn(self, link: Link, call: Call, deadline: float | None, served: CallContext | None) -> Any:
        """The same towards a peer that takes one call at a time."""
        waiter = self._pyroPost(link, call, deadline, served)
        if waiter is None:
            await link.send_oneway(call.end)
            return None
        call.reply = await link.wait(waiter)
        return self._pyroResult(link, call, call.reply)

    def _pyroPost(self, link: Link, call: Call, deadline: float | None, served: CallContext | None) -> Waiter | None:
        """Queue the request of a call; None when nobody waits for an answer."""
        if link.connection.broken:
            raise ConnectionClosedError("the connection was lost while the call was queued", outcome=Outcome.NOT_SENT)
        flags, meta = call.flags, link.metadata
        if meta is not None:
            if call.method in meta.oneway:
                flags |= _ONEWAY
            elif call.method not in meta.methods and not flags & Flags.BATCH:
                self._pyroCheckMember(call.member or call.method)
        request = encode_call(
            link.writer,
            link.grant,
            link.version,
            link.object_id,
            call.method,
            call.args,
            call.kwargs,
            flags,
            call.options,
            self._pyroSettings,
            None if deadline is None else deadline - trio.current_time(),
        )
        if served is not None:
            belongs_to(served, request, link.grant)
        waiter: Waiter | None = None
        if flags & _ONEWAY:
            call.end = link.post_oneway(request)
        else:
            waiter = link.post(request)
            call.end = waiter.end
        call.link = link
        return waiter

    def _pyroResult(self, link: Link, call: Call, message: Message) -> Any:
        try:
            serializer = link.serializers.get(message.serializer) or link.serializer(message.serializer)
            result = read_reply(message, serializer, link.grant, self._pyroSettings)
        except StopIteration as error:  # it cannot leave a coroutine as it is
            raise RemoteError("builtins.StopIteration", error.args) from error
        except PyroError as error:
            if hangs_up_after(message, error, link.grant):
                link.close()
            raise
        if type(result) is StreamStart:
            read_ahead = call.options.read_ahead
            if result.number is not None:
                return PushedStream(self, link, result.stream_id, read_ahead, result.number)
            return ItemStream(self, link, result.stream_id, read_ahead)
        return result

    @staticmethod
    async def _pyroLetDeadlineSpeak(deadline: float) -> None:
        """The daemon noticed a deadline a little earlier than this side: both shall say the same."""
        if deadline - trio.current_time() < CLOCK_SLACK_S:
            await trio.sleep_until(deadline)

    @enable_ki_protection
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
                if loses_session(link.metadata, link.grant, self._pyroSettings) and self._pyroSeq != link.first_seq:
                    raise session_lost(self._pyroUri)
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
            if self._pyroVia is None or link.response is not None:
                self._pyroValidateHandshake(link.response)
        except BaseException:
            link.close()
            raise
        if link.metadata != self._pyroMetadata:
            for name in [name for name in self.__dict__ if not name.startswith("_pyro")]:
                del self.__dict__[name]
        self._pyroMetadata = link.metadata

    async def _pyroConnect(self) -> Link:
        link = None if self._pyroVia is None else self._pyroVia()
        if link is not None:
            return link
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
        cut, refused = False, 0
        versions = versions_to_try(location, self._pyroSettings)
        for version in versions:
            if version == refused:
                continue
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
                refused = refused if cut else version
                continue
            if len(versions) > 1 and (
                version == 502 or not cut
            ):  # a connection that broke says nothing about what is spoken there
                remember_version(location, version)
            link.uri, link.object_id = uri, str(uri.object)
            own = link.grant.bits & Feature.TYPED
            link.writer = link.serializer(self._pyroSettings.serializer or ("msgpack" if own else "serpent"))
            if link.plain_methods:
                link.plain_calls = plain_calls(link.writer.name)
            return link
        assert failure is not None, "at least one protocol is tried"
        name_place(failure, location)
        raise failure

    @enable_ki_protection
    async def _pyroOpenPipeline(self) -> Link:
        """A connection of its own on which item requests to a stock peer may be sent ahead."""
        link = await self._pyroConnectTo((await self._pyroConnected()).uri)
        link.session.pipelined = True
        return link

    def _pyroContext(self, version: int, own: bool) -> SerializerContext:
        return SerializerContext(
            version=version,
            own=own,
            proxy_factory=self._pyroFromState,
            proxy_state_of=proxy_state_of,
            autoproxy=served_as,
            unsafe=self._pyroSettings.unsafe_for(known=self._pyroSettings.knows_daemons),
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


def _is_plain(call: Call, link: Link) -> bool:
    """Whether a call has nothing but arguments."""
    return (
        call.method in link.plain_methods
        and not call.flags
        and call.options is _NO_OPTIONS
        and not (call.args and isinstance(call.args[0], SerializedBlob))
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
