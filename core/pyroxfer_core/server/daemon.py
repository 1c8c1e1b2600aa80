"""The trio daemon: serves objects on one port, to both Pyro protocols and to raw side streams."""

from __future__ import annotations

import contextlib
import inspect
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import ConnectionClosedError, DaemonError, PyroError, RefusedError
from ..objects.context import CallContext, current_context_var
from ..objects.expose import Metadata
from ..objects.table import DAEMON_ID, ObjectTable, refuse_to_share
from ..serializers.base import Serializer, SerializerContext
from ..serializers.vocabulary import ProxyState
from ..settings import Settings
from ..transport.busypoll import BusyPoll
from ..transport.connection import Connection
from ..transport.listen import serve_connections
from ..transport.side import SideStreamHandler
from ..uri import Uri
from ..wire.message import Body, Message
from .about import DaemonObject
from .address import Address
from .crew import Crew
from .door import is_guarded
from .handshake import USUAL_RESPONSE, usual_object, welcome_usual
from .hello import Hello, Judge, Verdict
from .keys import KeyTable
from .peer import Peer
from .poller import Poller
from .streams import StreamTable
from .watchdog import Watchdog
from .workers import WorkerPool

if TYPE_CHECKING:
    from ..processes.worker import Worker
    from .callee import Callee

log = logging.getLogger(__name__)

READERS: Final = 2
"""Large requests read at once: each may inflate to the limit of a message."""
FIRST_CALL_S: Final = 0.5
"""How long a daemon that closes waits for the first calls of those who have just connected: until then they cannot be
told that it goes away, and would not know whether the call that was on its way has run."""
NAMED_CUTS: Final = 20
"""Calls that are named in the log when a daemon cuts them."""
SWEEP_S: Final = 2.0
"""How often lingering item streams are looked at, as in Pyro."""


@dataclass(frozen=True, slots=True)
class DaemonStatistics:
    """A daemon at one moment."""

    connections: int
    calls_in_flight: int
    busy_threads: int
    streams: int
    objects: int


@dataclass(frozen=True, slots=True)
class CutCall:
    """A call that was not finished when its daemon stopped."""

    caller: str
    """Where it came from."""
    object_id: str
    method: str
    oneway: bool
    """Nobody waits for it."""

    def __str__(self) -> str:
        return f"{self.object_id}.{self.method} for {self.caller}{', one-way' if self.oneway else ''}"


class Daemon:
    """Serves registered objects and classes.

    ``async with`` starts listening and serving; requests are served while its body runs, and at its end new calls are
    refused, running ones may go on for ``settings.shutdown_grace_s``, then what is left is cut.

    Args:
        host: where to listen; empty listens everywhere, several hosts listen at once, on one port. Beyond loopback
            needs TLS, and one of: tokens, client certificates, an authenticator, an ``hmac_key``, an overridden
            `validateHandshake`. Or ``Settings(insecure=True)``.
        port: 0 picks a free one.
        unixsocket: path to listen on instead.
        nathost: host name published in URIs instead of ``host``.
        natport: port published with it; 0 is the same as the internal one.
        advertise: ``HOST`` or ``HOST:PORT`` that URIs lead to, said in one word instead of the two above.
            Without any of them URIs lead to the first host that others can reach, and to this machine's address in
            place of a wildcard; objects in answers to the address at which the caller came in.
        settings: limits, timeouts, accepted serializers.
        listeners: sockets that listen already (see `inherited_listeners`), instead of ``host``, ``port`` and
            ``unixsocket``; URIs lead to the first. They belong to the daemon, which closes them at its end and leaves
            the file of a unix socket to who made it.
        worker: which of several processes this is, that serve the same objects on its ``listeners``. Objects there
            are only one of must be declared ``stateless``. A key is good in all workers together; one that came to
            another worker before is answered as Unknown.

    Raises:
        ValueError: ``nathost``, ``natport`` and ``advertise`` do not go together as given, or there is no host.
        CommunicationError: one of the ``listeners`` does not listen, or not for streams.
    """

    def __init__(
        self,
        host: str | Sequence[str] = "localhost",
        port: int = 0,
        unixsocket: str | None = None,
        nathost: str | None = None,
        natport: int | None = None,
        settings: Settings | None = None,
        *,
        advertise: str | None = None,
        listeners: Sequence[socket.socket] = (),
        worker: Worker | None = None,
    ) -> None:
        self._address = Address(
            host, port, unixsocket, nathost, natport, advertise, listeners if worker is None else worker.listeners
        )
        self.settings = settings or Settings()
        self.table = ObjectTable(self)
        self.pool = WorkerPool(self.settings.worker_threads, self.settings.worker_queue)
        self.streams = StreamTable(self.pool, self.settings.stream_linger_s, self.settings.stream_lifetime_s)
        self.readers = trio.CapacityLimiter(READERS)
        """Threads that read large requests."""
        claims = None if worker is None else worker.claims(self.settings.key_lifetime_s)
        self.keys = KeyTable(self.settings, claims)
        self.epoch = secrets.token_bytes(16)
        """Changes with every daemon."""
        self.peers: set[Peer] = set()
        self.callees: set[Callee] = set()
        """Answer on connections that this process made to other daemons."""
        self.draining = False
        self.home: trio.lowlevel.TrioToken | None = None
        """The loop that serves it, while it is served."""
        self.side_stream_handler: SideStreamHandler | None = None
        """Called with each raw side stream, in a task of its own; the stream is closed when it returns."""
        self._worker = worker
        self._nursery: trio.Nursery | None = None
        self._crew: Crew | None = None
        self._stock: dict[tuple[int, frozenset[str]], dict[str, Serializer]] = {}
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._drained: trio.Event | None = None
        self._watchdog: Watchdog | None = None
        self._detached = 0
        """Calls running that belong to no connection."""
        self.table.register(DaemonObject(self), DAEMON_ID)

    def __repr__(self) -> str:
        place = self.location if self.listeners else "not listening"
        return f"<Daemon on {place}, {len(self.table.ids())} objects>"

    # --- objects -----------------------------------------------------------------------------------------------

    def register(self, thing: Any, object_id: str | None = None, force: bool = False) -> Uri:
        """Serve an object, or a class whose instances are made as its ``@behavior`` says.

        Raises:
            DaemonError: the id or the object is taken already (``force`` overrides), or cannot be used, or the daemon
                has no address yet, or is one of several workers and each would have an object of its own.
        """
        if self._worker is not None:
            refuse_to_share(thing)
        where = self.published_location  # before anything is changed: it may not be known yet
        object_id = self.table.register(thing, object_id, force)
        return Uri(f"PYRO:{object_id}@{where}")

    def unregister(self, thing: Any) -> None:
        """Stop serving an object, a class, or an id. Running calls go on.

        Raises:
            DaemonError: the object is not registered.
        """
        self.table.unregister(thing)

    def uri_for(self, thing: Any, nat: bool = True) -> Uri:
        """The URI of an object, class or id; ``nat=False`` gives the internal address.

        Raises:
            DaemonError: the object is not registered, or the daemon has no address yet.
        """
        object_id = thing if isinstance(thing, str) else self.table.id_of(thing)
        if object_id is None:
            raise DaemonError("object is not registered in this daemon")
        return Uri(f"PYRO:{object_id}@{self.published_location if nat else self.location}")

    def reset_metadata_cache(self, thing: Any) -> None:
        """Look at the members of a class anew, after they were changed; connections that there are know the old ones.

        Raises:
            DaemonError: an id under which nothing is served.
        """
        self.table.look_anew(self.table.get(thing).target if isinstance(thing, str) else thing)

    # --- address -----------------------------------------------------------------------------------------------

    def bind(self) -> None:
        """Take the address, without serving yet. Entering ``async with`` does it; twice is fine.

        Raises:
            CommunicationError: the address cannot be had.
            SecurityError: the address is reachable from other machines and nothing protects it.
        """
        self._address.bind(self.settings, guarded=self.validates)

    @property
    def listeners(self) -> list[socket.socket]:
        """What it listens on, once it is bound: for a parent that binds for its workers, and never serves."""
        return list(self._address.listeners)

    @property
    def open_door(self) -> str | None:
        """What is wrong with where it listens; None when only this machine reaches it, or it asks for TLS and a
        proof."""
        return self._address.problem(self.settings, guarded=self.validates)

    @property
    def location(self) -> str:
        """``host:port`` of the first host, or ``./u:path``, on this side of any NAT.

        Raises:
            DaemonError: not bound yet.
        """
        return self._address.location

    @property
    def bound_address(self) -> str | None:
        """The numeric address it listens on; None for a unix socket.

        Raises:
            DaemonError: not bound yet.
        """
        return self._address.numeric

    @property
    def nat_location(self) -> str | None:
        """The published address when it differs from the internal one."""
        return self._address.nat_location

    @property
    def published_location(self) -> str:
        """Where the URIs of its objects lead to.

        Raises:
            DaemonError: not bound yet.
        """
        return self._address.published

    def location_for(self, peer: Peer | None) -> str:
        """Where the URIs that a client gets in answers lead to: it can reach the address at which it came in."""
        return self._address.published if peer is None else self._address.towards(peer.connection.sock)

    # --- serving -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Daemon:
        self.bind()
        self._manager = trio.open_nursery()
        nursery = await self._manager.__aenter__()
        try:
            await nursery.start(self._serve_all)
            self.home = trio.lowlevel.current_trio_token()
            if self.settings.slow_handler_s:
                self._watchdog = Watchdog.start(self.settings.slow_handler_s)
        except BaseException as error:  # the block that would end it does not begin
            self.close()
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; an error of the body goes on as it is, not in a group."""
        try:
            await self.aclose()
        finally:
            try:
                await self._leave_nursery(kind, error, trace)
            finally:
                await self.streams.close_all()  # of calls that took no notice of being cut

    async def _leave_nursery(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        manager, self._manager = self._manager, None
        assert manager is not None, "entered"
        if error is None or _is_cancellation(error):
            await manager.__aexit__(kind, error, trace)  # serving may have failed, and cancelled the body
        else:
            with contextlib.suppress(BaseException):
                await manager.__aexit__(None, None, None)

    async def aclose(self) -> list[CutCall]:
        """Stop serving: no new connections, new calls refused, running ones get their grace, the rest is cut.

        Clients of ours are told, so that those without a call connect elsewhere for their next one.

        Returns:
            The calls that were cut because they did not end in time; they are named in the log, too.
        """
        nursery = self._nursery
        if nursery is None:
            return []
        self.draining = True
        self.home = None
        try:
            with trio.move_on_after(self.settings.shutdown_grace_s):
                for peer in (*self.peers, *self.callees):
                    peer.go_away()
                # an answer that leaves in pieces counts once it has begun to leave
                await self._until(lambda: not self._calls_running)
                with trio.move_on_after(FIRST_CALL_S):
                    await self._until(lambda: not any(peer.session.may_confirm for peer in self.peers))
                await self._send_last_answers()
        finally:
            cut = self._unfinished()
            nursery.cancel_scope.cancel()
            self._nursery = None
            if self._watchdog is not None:
                self._watchdog.stop()
                self._watchdog = None
            self.close()
            await self.streams.close_all()
        return cut

    def _unfinished(self) -> list[CutCall]:
        jobs = [job for peer in (*self.peers, *self.callees) for job in peer.unfinished()]
        seen = dict.fromkeys([*jobs, *self.keys.running()])
        cut = [CutCall(job.client.address, job.entry.object_id, job.method, job.oneway) for job in seen]
        if cut:
            more = f" and {len(cut) - NAMED_CUTS} more" if len(cut) > NAMED_CUTS else ""
            log.warning("%r stops and cuts %s%s", self, "; ".join(map(str, cut[:NAMED_CUTS])), more)
        return cut

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for what `call_ended` may bring about."""
        while not condition():
            self._drained = trio.Event()
            await self._drained.wait()

    @property
    def _calls_running(self) -> bool:
        return self._detached > 0 or any(peer.in_flight for peer in (*self.peers, *self.callees))

    async def _send_last_answers(self) -> None:
        for peer in (*self.peers, *self.callees):
            try:
                await peer.flush()
            except ConnectionClosedError:
                continue

    def call_ended(self) -> None:
        """A call, or a whole connection, tells that it may have been the last to be waited for."""
        if self._drained is not None:
            self._drained.set()

    def close(self) -> None:
        """Give up the address. Serving, if it was begun, is ended by `aclose`."""
        if self._crew is not None and self._crew.poller is not None:
            for listener in self.listeners:
                self._crew.poller.unwatch(listener)
        self._address.close(watched=self._nursery is not None or trio.lowlevel.in_trio_run())

    async def _serve_all(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Everything that `aclose` cuts; what runs in the body of ``async with`` is not among it."""
        poller = Poller(BusyPoll(self.settings.busy_poll_s))
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._crew = Crew(nursery, poller)
                self._crew.begin()
                nursery.start_soon(self._sweep_streams)
                task_status.started()
                await self._serve_clients()
        finally:  # nobody serves them any more
            for peer in self.peers:
                peer.ended = True
            for peer in list(self.peers):
                await peer.leave()
            poller.close()

    async def _serve_clients(self) -> None:
        await serve_connections(
            self.listeners,
            self._serve,
            settings=self.settings,
            side_handler=self._serve_side_stream,
            share=None if self._worker is None else self._worker.share,
            at_once=self._serve_at_once if self._welcomes_all else None,
            watch=None if self._crew is None else self._crew.poller,
        )

    @property
    def _welcomes_all(self) -> bool:
        """Whether every client is welcomed with the same words, and nobody is asked."""
        return not (self.is_guarded or self.adds_annotations or self.settings.compression)

    def _serve_at_once(self, message: Message, make: Callable[[], Connection]) -> bool:
        """Serve a client that says the usual, which then has no task of its own even for its handshake."""
        if self.draining or self.validates or self.adds_annotations:  # a hook may have been set at any time
            return False
        object_id = usual_object(message, self.settings)
        if object_id is None:
            return False
        try:
            metadata = self._metadata(object_id)
        except PyroError:
            return False  # it will be told so
        peer = self.new_peer(make())
        try:
            welcome_usual(peer.connection, peer.session, message, metadata)
        except ConnectionClosedError as error:
            log.debug("%s", error)
        peer.begin()
        if peer.connection.unsent:
            peer.flush_soon()
        return True

    async def _serve(self, connection: Connection) -> None:
        peer = self.new_peer(connection)
        if await peer.greet():
            peer.begin()

    def new_peer(self, connection: Connection) -> Peer:
        """The client at the other end of a connection."""
        assert self._crew is not None, "served"
        return Peer(self, connection, self._crew)

    async def _serve_side_stream(self, stream: Any) -> None:
        if self.side_stream_handler is not None:
            await self.side_stream_handler(stream)

    async def _sweep_streams(self) -> None:
        while True:
            await trio.sleep(SWEEP_S)
            await self.streams.sweep()
            self.keys.sweep()

    def run_detached(self, run_call: Callable[[], Awaitable[None]]) -> None:
        """Run a call that goes on when its client leaves."""
        if self._nursery is not None and self._crew is not None:
            self._detached += 1
            self._crew.spawn(self._run_detached, run_call)

    async def _run_detached(self, run_call: Callable[[], Awaitable[None]]) -> None:
        try:
            await run_call()
        finally:
            self._detached -= 1
            self.call_ended()

    def answer_over(self, link: Any) -> None:
        """Let the daemon at the other end of a client's connection call the objects served here, on that connection.

        Nothing happens unless this daemon is being served in the loop that the connection belongs to. Nor when its
        callers have to say who they are: then they connect, and do so.
        """
        if self._nursery is None or self.draining or self.is_guarded or not link.in_own_loop():
            return
        from .callee import Callee  # only programs that hand out their own objects need it

        callee = link.callee = Callee(self, link)
        link.connection.queue(link.session.serves(self.published_location))
        self.begin_answering(callee)

    def begin_answering(self, callee: Callee) -> None:
        """Let it answer as long as this daemon is served."""
        nursery = self._nursery
        if nursery is None or nursery.cancel_scope.cancel_called:
            callee.over = True
            return
        self.callees.add(callee)
        nursery.start_soon(callee.serve)

    @property
    def is_guarded(self) -> bool:
        """Whether callers have to prove anything."""
        return self.validates or is_guarded(self.settings)

    def lead_back(self, proxy: Any, way: Callable[[], Any]) -> None:
        """Have a proxy that a client sent call over that client's connection, as long as ``way`` gives a link."""
        proxy._pyroVia = way

    def statistics(self) -> DaemonStatistics:
        """Counts at this moment."""
        return DaemonStatistics(
            connections=len(self.peers),
            calls_in_flight=sum(peer.in_flight for peer in (*self.peers, *self.callees)),
            busy_threads=self.pool.busy,
            streams=len(self.streams),
            objects=len(self.table.ids()),
        )

    # --- hooks -------------------------------------------------------------------------------------------------

    def validateHandshake(self, conn: Peer, data: Any) -> Any:  # Pyro's name
        """Decide about a client by what it sent when connecting; may be ``async``. Raise to refuse it.

        Returns:
            The handshake response for the client, any serializable value.
        """
        return USUAL_RESPONSE

    def clientDisconnect(self, conn: Peer) -> None:  # Pyro's name
        """A client that had been accepted is gone."""

    def annotations(self) -> dict[str, Body]:
        """Annotations for every answer."""
        return {}

    @property
    def adds_annotations(self) -> bool:
        """Whether `annotations` is overridden, or set for this one daemon."""
        return "annotations" in self.__dict__ or type(self).annotations is not Daemon.annotations

    def client_left(self, peer: Peer) -> None:
        """Tell the hook; its errors stay here."""
        try:
            self.clientDisconnect(peer)
        except Exception:
            log.exception("clientDisconnect failed")

    @property
    def validates(self) -> bool:
        """Whether `validateHandshake` is overridden, or set for this one daemon."""
        return "validateHandshake" in self.__dict__ or type(self).validateHandshake is not Daemon.validateHandshake

    # --- what a connection needs -------------------------------------------------------------------------------

    def judge_for(self, peer: Peer) -> Judge:
        """What decides about the client of this connection."""

        async def judge(hello: Hello) -> Verdict:
            context = CallContext(peer, hello.message)
            current_context_var.set(context)
            if self.draining:
                raise RefusedError("the daemon is closing")
            peer.identify(hello.identity)
            response = await self.ask_validate(peer, hello.handshake)
            metadata = self._metadata(hello.object_id)
            return Verdict(response, metadata, {**self.annotations(), **context.response_annotations})

        return judge

    async def ask_validate(self, peer: Peer, data: Any) -> Any:
        """Run `validateHandshake`, async or not."""
        response = self.validateHandshake(peer, data)
        return await response if inspect.isawaitable(response) else response

    def _metadata(self, object_id: str | None) -> Metadata:
        if object_id is None:
            return Metadata(frozenset(), frozenset(), frozenset())
        try:
            entry = self.table.get(object_id)
            metadata = entry.exposed.metadata
            return metadata if entry.mode != "session" else replace(metadata, session=True)
        except PyroError:
            raise PyroError("unknown object") from None

    def handshake_context(self, connection: Connection) -> SerializerContext | None:
        """How CONNECT is read: before the protocol is known there is nothing to say."""
        return None

    def serializer_context(self, version: int, own: bool) -> SerializerContext:
        """How values are written for and read from a peer."""
        return SerializerContext(
            version=version,
            own=own,
            proxy_factory=self.make_proxy,
            proxy_state_of=self.state_of_proxy,
            autoproxy=self.autoproxy,
        )

    def stock_serializers(self, version: int, unsafe: frozenset[str]) -> dict[str, Serializer]:
        """The serializers, by name, that all stock clients of a protocol share which are trusted with the same."""
        return self._stock.setdefault((version, unsafe), {})

    def make_proxy(self, state: ProxyState) -> Any:
        """The proxy that arrived in a call."""
        from ..client.proxy import proxy_from_state  # only daemons that receive proxies need the client room

        return proxy_from_state(state, self.settings)

    def state_of_proxy(self, value: Any) -> ProxyState | None:
        """The state of a proxy that a method returns; None for anything else."""
        from ..client.proxy import proxy_state_of

        return proxy_state_of(value)

    def autoproxy(self, value: Any) -> ProxyState | None:
        """The proxy that stands for a served object wherever it appears in a value; None for anything else."""
        object_id = self.table.id_of(value)
        if object_id is None or isinstance(value, type):
            return None
        meta = self.table.get(object_id).exposed.metadata
        served = current_context_var.get(None)
        caller = served.client if served is not None and isinstance(served.client, Peer) else None
        where = self.location_for(caller if caller is not None and caller.daemon is self else None)
        return ProxyState(f"PYRO:{object_id}@{where}", meta.oneway, meta.methods, meta.attrs)


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
