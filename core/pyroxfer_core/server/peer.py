"""One client of a daemon, from its first byte to its last."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import trio

from ..access import Identity
from ..errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    ProtocolError,
    PyroError,
    RefusedError,
    SerializeError,
)
from ..objects.context import TrackedResources
from ..objects.table import Entry, ObjectTable
from ..serializers.base import Call, Serializer, SerializerContext
from ..serializers.factory import make_serializer
from ..serializers.vocabulary import ProxyState
from ..settings import Settings
from ..transport.connection import Connection, Event
from ..transport.resume import resumed
from ..transport.tls import TlsSocket
from ..transport.turns import TurnSender
from ..wire.features import Feature
from ..wire.message import Flags, Message, MessageType
from ..wire.pieces import Outgoing
from ..wire.session import IN_PIECES, ServerSession, alive
from .execute import KEPT_BYTES, SLOW_BYTES, Job, Read, decode, execute, failure, is_slow_to_read, read_call
from .handshake import accept_handshake
from .keys import run_keyed
from .lanes import Lanes
from .large import LargeMessages
from .oneways import OneWays, is_detached
from .push import PushedStreams
from .reverse import ReverseCalls
from .small import Unusual, Waiting, prepare, run_small
from .streams import StreamTable
from .uploads import ArgumentStream, ArgumentStreams
from .worker import IdleWorkers, Worker
from .workers import WorkerPool

if TYPE_CHECKING:
    from .daemon import Daemon
    from .lending import Loan

log = logging.getLogger(__name__)

LEND_LATER: Final = 64
"""Calls of plain functions before the connection of a client that was busy otherwise is lent to a thread again."""
TAKE_AT_ONCE: Final = 64
"""Requests in a row that came together before other connections get a turn."""
_INVOKE, _ONEWAY, _BATCH, _CONCURRENT = MessageType.INVOKE, Flags.ONEWAY, Flags.BATCH, Feature.CONCURRENT
MAX_UNSENT: Final = 8 * 1024 * 1024
"""Bytes of answers to a peer of ours that may wait for it while its next requests are read."""
ALIVE_S: Final = 1.0
"""How often a client is told that its large request is still being read."""
_ABOUT_REVERSE: Final = (MessageType.SERVES, MessageType.RESULT)
FLUSH_AT: Final = 64 * 1024
"""Replies above this size are sent before the next call is taken."""


def _raise(error: Exception) -> NoReturn:
    raise error


def _same(call: Call) -> Call:
    return call


class Peer:
    """Serves one connection. Handlers find it as ``current_call.client``.

    Whoever reads a request also runs it. Only when the call waits for something does another task of the connection
    go on reading: a call that never waits costs no switch between tasks, and requests that came together are answered
    together.

    Without agreed features calls run strictly one after another, as in Pyro. With them they run at once, except those
    on a session object and those that fetch items of one stream, which keep their order.
    """

    def __init__(self, daemon: Daemon, connection: Connection) -> None:
        self.daemon = daemon
        self.connection = connection
        self.settings: Settings = daemon.settings
        self.table: ObjectTable = daemon.table
        self.pool: WorkerPool = daemon.pool
        self.streams: StreamTable = daemon.streams
        self.session = ServerSession(daemon.epoch)
        self.instances: dict[type, Any] = {}
        """The session objects of this connection."""
        self._making = trio.Lock()
        self.resources = TrackedResources()
        self.reverse: ReverseCalls | None = None
        """Calls to objects of the client's own daemon."""
        self.finishing = False
        """Close once the answer that is due has left."""
        tracebacks = self.settings.remote_tracebacks
        self.sends_tracebacks = connection.is_local if tracebacks is None else tracebacks
        self.identity: Identity | None = None
        """Who the client is; None when nobody asked."""
        self.annotates = daemon.adds_annotations
        """Whether the daemon adds annotations to every answer."""
        self.known_serializers: dict[str, Serializer] = {}
        """Those it has used."""
        self.loan: Loan | None = None
        """The thread that has the connection."""
        self._lend_later = 0
        self.kept: Event | None = None
        """What a thread has read of the connection and handed back."""
        self._takes_small = not (self.annotates or self.settings.compression or self.settings.hmac_key)
        self._running: dict[int, Worker | None] = {}
        """Calls by sequence number; None while one waits in its lane."""
        self._in_flight = 0
        self._idle = IdleWorkers()
        self._lanes = Lanes()
        self._reading = False
        self._ended = False
        self._taken = 0
        self._oneways = OneWays(self)
        self._flush_planned = False
        self._nursery: trio.Nursery | None = None
        self._large: LargeMessages | None = None
        self._pushed: PushedStreams | None = None
        self._uploads: ArgumentStreams | None = None

    def __repr__(self) -> str:
        return f"<Peer {self.connection.peer}, protocol {self.version}>"

    @property
    def address(self) -> str:
        """The other side, for people."""
        return self.connection.peer

    @property
    def version(self) -> int:
        """48 or 502."""
        return self.connection.codec.version

    def identify(self, identity: Identity | None) -> None:
        """Take note of who the client is."""
        self.identity = identity
        if identity is not None and self.settings.remote_tracebacks is None:
            self.sends_tracebacks = True

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The client's certificate, as `ssl.SSLSocket.getpeercert` gives it; None without TLS."""
        sock = self.connection.sock
        return sock.getpeercert(binary_form) if isinstance(sock, TlsSocket) else None

    @property
    def is_own(self) -> bool:
        """Whether the other side is this library, which speaks both protocols."""
        return self.session.grant.bits != 0

    @property
    def is_serial(self) -> bool:
        """Whether the client makes one call after another on this connection."""
        return not self.session.grant.bits & _CONCURRENT

    def may_be_lent(self) -> bool:
        """Whether a thread may use the connection for a call that is about to begin: nobody else does."""
        if not self.pool.lends or type(self.connection.sock) is not socket.socket:
            return False
        if self.is_serial:
            return True
        if self._lend_later:
            self._lend_later -= 1
            return False
        is_quiet = self._in_flight == 0 and not self._oneways.running and not self.connection.decoder.data
        others = self._large, self._pushed, self._uploads, self.reverse
        return is_quiet and others == (None, None, None, None)

    def lend_later(self) -> None:
        """The client does more than one thing at once, or long ones: a thread would be in the way for some time."""
        self._lend_later = LEND_LATER

    @property
    def in_flight(self) -> int:
        """Calls running or waiting in a lane."""
        return self._in_flight

    def running(self) -> list[Job]:
        """The calls that run."""
        workers = list(self._running.values())  # a thread may change it
        return [job for worker in workers if worker is not None and (job := worker.job) is not None]

    def unfinished(self) -> list[Job]:
        """The calls that run or wait."""
        return [*self.running(), *self._lanes.waiting(), *self._oneways.running]

    def serializer(self, name: str) -> Serializer:
        """The serializer of that name for this peer.

        Raises:
            SerializeError: this daemon does not accept it.
        """
        serializer = self.known_serializers.get(name)
        if serializer is None:
            if name not in self.settings.accepted_serializers:
                raise SerializeError(f"message used serializer that is not accepted: {name}")
            serializer = self.known_serializers[name] = make_serializer(name, self.context())
        return serializer

    def context(self) -> SerializerContext:
        """How values are written for and read from this peer."""
        grant = self.session.grant
        context = self.daemon.serializer_context(self.version, Feature.TYPED in grant).granted(grant)
        if Feature.UPLOAD in grant:
            context = replace(context, stream_reader=self._make_stream)
        unsafe = self.settings.unsafe_for(known=self.identity is not None or self.daemon.validates)
        context = replace(context, unsafe=unsafe)
        return replace(context, proxy_factory=self._make_proxy) if Feature.REVERSE in grant else context

    def _make_stream(self, number: int) -> ArgumentStream:
        return self.uploads.make(number)

    def known_instance(self, entry: Entry) -> Any:
        """The object that a call goes to if it exists already; None when it must be made."""
        return self.table.known_instance(entry, self.instances)

    async def make_instance(self, entry: Entry, run: Callable[..., Awaitable[Any]]) -> Any:
        """Make the object that a call goes to; one for the whole connection is made once, whoever asks meanwhile.

        Args:
            run: runs a function in a thread.
        """
        if entry.mode != "session":
            return await run(self.table.instance, entry, self.instances)
        async with self._making:
            instance = self.known_instance(entry)
            return instance if instance is not None else await run(self.table.instance, entry, self.instances)

    async def serve(self, *, greeted: bool = False) -> None:
        """Greet the client, unless both ends of a socket were connected by hand, and answer until it leaves.

        Calls that are running when it leaves are cancelled; one-way calls run on in the daemon.
        """
        connection, daemon = self.connection, self.daemon
        if greeted:
            self.session.assume_connected()
        elif not await self._greet():
            return
        connection.decoder.max_message = self.settings.max_message_bytes
        connection.in_pieces = self._in_pieces
        daemon.peers.add(self)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._work(Worker())
        finally:
            daemon.peers.discard(self)
            daemon.call_ended()
            connection.in_pieces = None
            if self._uploads is not None:
                self._uploads.lose()
            connection.close()
            if self.reverse is not None:
                self.reverse.end()
            self.resources.close_all()
            await self.streams.connection_lost(self)
            daemon.client_left(self)

    async def _greet(self) -> bool:
        context, judge = self.daemon.handshake_context(self.connection), self.daemon.judge_for(self)
        return await accept_handshake(self.connection, self.session, self.settings, context, judge) is not None

    @property
    def sock(self) -> Any:
        """The connection's socket, for looking at."""
        return self.connection.sock

    async def _work(self, worker: Worker) -> None:
        """Read and run until the connection ends or there are enough idle tasks.

        A call that is cut short costs its task the cancel scope, so the task goes on with a fresh one.
        """
        while True:
            with worker.scope:
                await self._work_in_scope(worker)
            job = worker.job
            if job is None or job.message.seq not in self._running:
                return
            del self._running[job.message.seq]
            following = await self._answer(job, worker.answer or self._cut_short(job))
            worker = Worker(following)

    async def _work_in_scope(self, worker: Worker) -> None:
        while not self._ended:
            job = worker.job
            if job is not None:
                request = self._run(worker, job)
                waited = request is not None
                if waited:
                    assert worker.running is not None, "it was begun"
                    await self._run_on(worker, job, resumed(worker.running, request))
                if worker.cut:
                    return  # what is left to do must not be cancelled
                await self._job_ended(worker, job, waited)
            elif self._reading:
                if not await self._idle.park(worker):
                    return
            else:
                waiting = await self._read(worker)
                if waiting is not None:
                    assert worker.job is not None, "it was begun"
                    await self._run_on(worker, worker.job, waiting.rest)
                    if worker.cut:
                        return
                    await self._job_ended(worker, worker.job, waited=True)
                elif self._oneways.unbegun and worker.job is not None:
                    await self._oneways.let_begin()

    async def _job_ended(self, worker: Worker, job: Job, waited: bool) -> None:
        del self._running[job.message.seq]
        if len(job.message.body) > KEPT_BYTES:
            job.forget()
        if waited or self._reading:
            worker.job = await self._answer(job, worker.answer)
        else:  # this task reads on, and sends before it waits
            worker.job = self._answer_soon(job, worker.answer)
        worker.answer = None

    def _run_arrived(self, worker: Worker, event: Event | None) -> Unusual | Waiting | None:
        """Run what came, as long as it is usual and waits for nothing; None: there is no more for now.

        Args:
            event: taken from the decoder already.
        """
        connection, decoder = self.connection, self.connection.decoder
        small = self._takes_small and self.session.settled
        while True:
            if event is None:
                crowded = self._taken >= TAKE_AT_ONCE or connection.queued - connection.sent > FLUSH_AT
                if crowded or self.finishing or not decoder.data or (event := decoder.next_event()) is None:
                    return None
            self._taken += 1
            if not small or type(event) is not Message or event.type != _INVOKE or len(event.body) > SLOW_BYTES:
                return Unusual(event)
            self.session.last_seq = event.seq
            arrived = run_small(self, worker, event)
            if arrived is not None:
                return arrived
            event = None

    def may_begin(self, message: Message) -> bool:
        """Whether a request may run now, before all others."""
        return (
            message.seq not in self._running
            and self._in_flight < self.settings.max_calls_in_flight
            and not self._oneways.unbegun
            and not self.daemon.draining
        )

    def prepared(self, message: Message) -> tuple[Job, Callable[..., Any]] | None:
        """What a request that a thread has read calls, if it is another plain function."""
        prepared = prepare(self, message)
        if isinstance(prepared, Unusual) or prepared[2].is_async or prepared[2].is_inline:
            return None
        self.session.last_seq = message.seq
        return prepared[:2]

    async def flush(self) -> None:
        """Send what is queued, and nothing more on the connection of a thread.

        Raises:
            ConnectionClosedError: the client is gone.
        """
        if self.loan is not None:
            self.loan.recall()
        await self.connection.flush()

    def pause(self) -> None:
        """A thread that has the connection has answered a call, and none is in flight until `resume`."""
        self._in_flight -= 1

    def resume(self) -> None:
        """The end of `pause`."""
        self._in_flight += 1

    def follows(self, worker: Worker, before: Job, job: Job) -> None:
        """A thread that has the connection begins another call."""
        self._running[job.message.seq] = worker
        del self._running[before.message.seq]

    def begun(self, worker: Worker, seq: int) -> None:
        """A worker has begun a request."""
        self._running[seq] = worker
        self._in_flight += 1

    def ended(self, seq: int) -> None:
        """The end of `begun`, before the answer is queued."""
        del self._running[seq]
        self._call_ended()

    def _run(self, worker: Worker, job: Job) -> Any:
        """Run the worker's job until it waits for something, which is returned; None when it is done."""
        worker.answer = None
        self._running[job.message.seq] = worker
        if job.deadline is not None and not worker.limit(job.deadline):
            worker.answer = self._refused(job, "the deadline passed before the call began")
            return None
        running = worker.running = execute(self, job) if type(job) is Job else run_keyed(self, job)
        try:
            return running.send(None)
        except StopIteration as finished:
            worker.answer = finished.value
        if job.deadline is not None:
            worker.unlimit()
        return None

    async def _run_on(self, worker: Worker, job: Job, rest: Awaitable[Message | None]) -> None:
        """Go on with a job that waits; meanwhile others may read."""
        # a one-way call that runs here is one too many: reading waits for it
        if self.session.grant.bits & _CONCURRENT and not job.message.flags & _ONEWAY:
            self._hand_over_reading()
        worker.answer = await rest
        if job.deadline is not None:
            worker.unlimit()

    def _start(self, job: Job) -> None:
        """Run a call in a task of its own."""
        if not self._idle.wake(job):
            assert self._nursery is not None, "the connection is being served"
            self._nursery.start_soon(self._work, Worker(job))

    def _hand_over_reading(self) -> None:
        """A call is about to wait: let another task read."""
        if self._reading or self._ended or self._idle.wake(None):
            return
        assert self._nursery is not None, "the connection is being served"
        self._nursery.start_soon(self._work, Worker())

    async def _read(self, worker: Worker) -> Waiting | None:
        """Take what comes, and run what is small, until there is a job for the worker, or a call that waits.

        Both may be missing, when the connection has ended, or others shall have a turn.
        """
        worker.job = None
        self._reading = True
        try:
            if self.loan is not None:
                await self.loan.until_over()
            kept, self.kept = self.kept, None
            arrived = self._run_arrived(worker, kept)
            if arrived is None:
                event = None if self.finishing else await self._receive()
                if event is None:
                    if self.finishing:
                        await self.connection.finish()
                    self._end()
                    return None
                arrived = self._run_arrived(worker, event)
            if type(arrived) is Waiting:
                return arrived
            worker.job = await self._take(arrived) if type(arrived) is Unusual else None
            return None
        except ConnectionClosedError as error:
            log.debug("%s", error)
        except PyroError as error:
            log.info("connection of %s ended: %s", self.connection.peer, error)
        finally:
            self._reading = False
        self._end()
        return None

    async def _receive(self) -> Event | None:
        """The next event; answers that are queued leave before it is waited for. None: the client has left."""
        connection = self.connection
        self._taken = 0
        if not connection.flush_nowait():
            await self._make_room()
        if connection.decoder.data:
            await trio.lowlevel.checkpoint()  # much came together: others get a turn
            return await connection.receive()
        return await connection.receive_more()

    async def _take(self, arrived: Unusual) -> Job | None:
        """Take a message the long way. The job to run now, if it makes one."""
        message, read = arrived.event, arrived.read
        if type(message) is not Message:
            raise ProtocolError("a message came in pieces that were not asked for")
        if not self.session.settled:
            self._settle(message)
        elif message.type != _INVOKE:
            self.session.receive(message)
        if message.type == _INVOKE:
            self.session.last_seq = message.seq
        else:
            request = self._take_other(message)
            if request is None:
                return None
            message = request
        if len(message.body) > SLOW_BYTES and is_slow_to_read(message):
            read = await self._read_call(message)
        return self._begin(message, read)

    def _settle(self, message: Message) -> None:
        """Judge one of the first messages. Who comes while the daemon goes away is told as soon as it understands."""
        self.session.receive(message)
        if self.session.settled and self.daemon.draining:
            self.go_away()
            self.daemon.call_ended()

    async def _read_call(self, message: Message) -> Read | None:
        """Read a large request in a thread, so that only its own connection waits."""
        try:
            serializer = self.serializer(message.serializer)
        except SerializeError:
            return None  # it will be told so
        limit, readers = self.settings.max_message_bytes, self.daemon.readers
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say_alive)  # nobody reads questions meanwhile
            try:
                call = await trio.to_thread.run_sync(
                    read_call, message, serializer, limit, limiter=readers, abandon_on_cancel=True
                )
            except Exception as error:
                read: Read = partial(_raise, error)
            else:
                read = partial(_same, call)
            nursery.cancel_scope.cancel()
        return read

    async def _say_alive(self) -> None:
        """Tell a client again and again that it is not forgotten."""
        while Feature.HEARTBEAT in self.session.grant:
            await trio.sleep(ALIVE_S)
            try:
                self.connection.queue(alive())
                self.connection.flush_nowait()
            except PyroError:
                return

    def _take_other(self, message: Message) -> Message | None:
        """Take what is no request; the request that it completes."""
        if message.type == MessageType.PING:
            self.connection.queue(Message(MessageType.PING, message.seq, message.serializer, 0, b"pong"))
        elif message.type in IN_PIECES:
            whole = self._large_messages().take(message)
            if whole is None or whole.type == MessageType.INVOKE:
                return whole
            self.uploads.take(whole)
        elif message.type == MessageType.ITEMS:
            self.uploads.take(message)
        elif message.type == MessageType.CREDIT:
            self.pushed_streams().credit(message)
        elif message.type == MessageType.STOP:
            self.pushed_streams().stop(message.seq)
        elif message.type == MessageType.HEARTBEAT:
            self.connection.queue(alive())
        elif message.type == MessageType.ALIVE:
            if self.reverse is not None:
                self.reverse.alive()
        elif message.type == MessageType.CANCEL:
            self._cancel(message.seq)
        elif message.type in _ABOUT_REVERSE:
            self._take_reverse(message)
        return None

    def _large_messages(self) -> LargeMessages:
        if self._large is None:
            assert self._nursery is not None, "the connection is being served"
            self._large = LargeMessages(self, self._nursery)
        return self._large

    def _in_pieces(self, answer: Message) -> Outgoing | None:
        if not self.takes_pieces or answer.type != MessageType.RESULT:
            return None
        return self._large_messages().leave(answer)

    def answer_leaves(self) -> None:
        """A large answer counts as a call in flight until it has left."""
        self._in_flight += 1

    def answer_left(self) -> None:
        """The end of `answer_leaves`."""
        self._call_ended()

    async def _make_room(self) -> None:
        """See that what is queued leaves, before more is read; wait for it if it is much, or the peer is stock.

        A peer of ours may be sending something large without reading: it would wait for us as we for it.
        """
        connection = self.connection
        if not self.session.grant.bits & _CONCURRENT:
            await connection.flush()
            return
        self.flush_soon()
        while connection.queued - connection.sent > MAX_UNSENT:
            await connection.flush()

    def flush_soon(self) -> None:
        """See that what is queued leaves, in a task of its own."""
        if not self.connection.flushing:
            assert self._nursery is not None, "the connection is being served"
            self._nursery.start_soon(self._flush)

    @property
    def takes_pieces(self) -> bool:
        """Whether large bodies leave in pieces."""
        return Feature.PIECES in self.session.grant

    def turns(self) -> TurnSender:
        """What sends them."""
        return self._large_messages().sender

    @property
    def uploads(self) -> ArgumentStreams:
        """The streams that this client sends as arguments."""
        if self._uploads is None:
            self._uploads = ArgumentStreams(self)
        return self._uploads

    def pushed_streams(self) -> PushedStreams:
        """The item streams that this client may be pushed."""
        if self._pushed is None:
            assert self._nursery is not None, "the connection is being served"
            self._pushed = PushedStreams(self, self._nursery)
        return self._pushed

    async def _flush(self) -> None:
        try:
            await self.connection.flush()
        except PyroError as error:
            log.debug("%s", error)
            self.connection.close()

    def _take_reverse(self, message: Message) -> None:
        """The client serves objects itself, or answers a call to one."""
        if self.reverse is None:
            self.reverse = ReverseCalls(self)
        if message.type == MessageType.SERVES:
            self.reverse.served(message)
        else:
            self.reverse.take(message)

    def _make_proxy(self, state: ProxyState) -> Any:
        """The proxy that arrived in a value; one for an object of the client's calls over this connection."""
        proxy = self.daemon.make_proxy(state)
        if self.reverse is not None:
            self.reverse.lead(proxy, state)
        return proxy

    def _end(self) -> None:
        """The connection is over: running calls are cancelled."""
        self._ended = True
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _decode(self, message: Message, read: Read | None) -> Job | Message | None:
        """The job, or the answer to a request that is none."""
        serializer: Serializer | None = None
        try:
            serializer = self.known_serializers.get(message.serializer) or self.serializer(message.serializer)
            if self.daemon.draining:
                raise RefusedError("draining: the daemon is closing")
            return decode(self, message, serializer, read)
        except Exception as error:
            if isinstance(error, PyroError) and serializer is None:
                self.finishing = True
            if isinstance(error, CommunicationError):
                error.outcome = Outcome.NOT_SENT
            return failure(self, message, serializer, error, dispatched=False)

    def _call_ended(self) -> None:
        self._in_flight -= 1
        if self.daemon.draining:
            self.daemon.call_ended()

    def _unwritable(self, answer: Message, error: PyroError) -> Message:
        text = f"the call ran, but its result cannot be sent: {error}"
        serializer = self.serializer(answer.serializer)
        replacement = failure(self, answer, serializer, PyroError(text), dispatched=True)
        assert replacement is not None, "the answer to a two-way call"
        return replacement

    def _begin(self, message: Message, read: Read | None) -> Job | None:
        """The job of a request, if it is to run here and now. Other answers are queued."""
        if message.seq in self._running:
            raise ProtocolError(f"the sequence number {message.seq} belongs to a call in flight")
        if self._in_flight >= self.settings.max_calls_in_flight:
            error = RefusedError(f"busy: {self._in_flight} calls are in flight on this connection")
            serializer = self.serializer(message.serializer)
            job: Job | Message | None = failure(self, message, serializer, error, dispatched=False)
        else:
            job = self._decode(message, read)
        if not isinstance(job, Job):
            if job is not None:
                self.queue(job)
            return None
        if is_detached(message) and self._oneways.has_room:
            self._oneways.start(job)
            return None
        self._in_flight += 1  # a flood of one-way calls runs here, which slows it down to what can be done
        if not (self.session.grant.bits & _CONCURRENT and job.entry.keeps_order) or self._lanes.enter(job):
            return job
        self._running[message.seq] = None
        return None

    def _cut_short(self, job: Job) -> Message | None:
        text = "the call was cancelled, or its deadline passed, while it was running"
        error = CommunicationError(text, outcome=Outcome.UNKNOWN)
        return failure(self, job.message, job.serializer, error, dispatched=False)

    def _answer_soon(self, job: Job, answer: Message | None) -> Job | None:
        """Queue the answer to a call that did not wait: it leaves before this task waits for the next request."""
        self._in_flight -= 1
        if self.daemon.draining:
            self.daemon.call_ended()
        if answer is not None:
            try:
                self.connection.queue(answer)
            except PyroError as error:
                self.connection.queue(self._unwritable(answer, error))
        return None if job.lane is None else self._lanes.leave(job)

    def queue(self, answer: Message) -> None:
        """Queue an answer; one that cannot be written is replaced by the reason."""
        try:
            self.connection.queue(answer)
        except PyroError as error:
            self.connection.queue(self._unwritable(answer, error))

    async def _answer(self, job: Job, answer: Message | None) -> Job | None:
        """Send the answer to a call that had to wait; returns the next one of its lane, if there is one."""
        self._call_ended()
        following = None if job.lane is None else self._lanes.leave(job)
        if answer is not None:
            try:
                await self._send_with_others(answer)
            except PyroError as error:
                log.debug("an answer to %s could not be sent: %s", self.connection.peer, error)
                self.connection.close()
        return following

    async def _send_with_others(self, answer: Message) -> None:
        """Send now when nothing else is running; else let the others of this turn add theirs first."""
        connection = self.connection
        self.queue(answer)
        if self._in_flight == 0 or len(answer.body) > FLUSH_AT:
            await connection.flush()
        elif not self._flush_planned:
            self._flush_planned = True
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._flush_planned = False
            await connection.flush()

    def _cancel(self, seq: int) -> None:
        """The caller does not want the answer any more."""
        if seq not in self._running:
            if self._large is not None:
                self._large.cancel(seq)
            return
        worker = self._running[seq]
        if worker is not None:
            worker.cut = True
            worker.scope.cancel()
            return
        job = self._lanes.remove(seq)
        if job is not None:
            del self._running[seq]
            self._call_ended()
            self._refuse_cancelled(job)

    def gave_up(self, job: Job) -> bool:
        """Whether the caller said that it does not want the answer of a running call."""
        worker = self._running.get(job.message.seq)
        return worker is not None and worker.cut

    def _refused(self, job: Job, text: str) -> Message | None:
        """The answer to a call that was not begun."""
        return failure(self, job.message, job.serializer, RefusedError(text), dispatched=False)

    def _refuse_cancelled(self, job: Job) -> None:
        answer = self._refused(job, "cancelled before it began")
        if answer is not None:
            self.queue(answer)

    def go_away(self) -> None:
        """Tell a client that can understand it to make no more calls here."""
        if self.session.grant.bits & Feature.GOAWAY:
            if self.loan is not None:
                self.loan.recall()
            try:
                self.connection.queue(self.session.goaway())
                self.connection.flush_nowait()
            except PyroError as error:
                log.debug("%s cannot be told to go away: %s", self.connection.peer, error)

    def close(self) -> None:
        """Cut the connection."""
        self.connection.close()
