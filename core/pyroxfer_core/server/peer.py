"""One client of a daemon, from its first byte to its last."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import trio
from trio.lowlevel import Abort, RaiseCancelT

from ..errors import ConnectionClosedError, ProtocolError, PyroError, RefusedError, SerializeError
from ..objects.context import TrackedResources
from ..objects.table import DAEMON_ID, Entry, ObjectTable
from ..serializers.base import Serializer, SerializerContext
from ..serializers.factory import make_serializer
from ..settings import Settings
from ..transport.connection import Connection
from ..wire.features import Feature
from ..wire.message import Body, Message, MessageType
from ..wire.session import ServerSession
from .execute import Job, decode, execute, failure
from .handshake import accept_handshake
from .streams import StreamTable
from .workers import WorkerPool

if TYPE_CHECKING:
    from .daemon import Daemon

log = logging.getLogger("pyroxfer.server")

IDLE_WORKERS: Final = 64
"""Tasks a connection keeps parked for its next calls; waking one costs half of starting one."""
FLUSH_AT: Final = 64 * 1024
"""Replies above this size are sent before the next call is taken."""


class _Worker:
    """A task that runs the calls of a connection, one after another."""

    __slots__ = ("answer", "job", "scope", "task")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.answer: Message | None = None
        self.scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None


class _Lane:
    """Calls that run one at a time, in the order in which they came."""

    __slots__ = ("busy", "waiting")

    def __init__(self) -> None:
        self.busy = False
        self.waiting: deque[Job] = deque()


class Peer:
    """Serves one connection. Handlers find it as ``current_call.client``.

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
        self.resources = TrackedResources()
        self.finishing = False
        """Close once the answer that is due has left."""
        tracebacks = self.settings.remote_tracebacks
        self.sends_tracebacks = connection.is_local if tracebacks is None else tracebacks
        self._serializers: dict[str, Serializer] = {}
        self._running: dict[int, _Worker] = {}
        self._in_flight = 0
        self._idle: list[_Worker] = []
        self._lanes: dict[object, _Lane] = {}
        self._flush_planned = False
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<Peer {self.connection.peer}, protocol {self.version}>"

    @property
    def version(self) -> int:
        """48 or 502."""
        return self.connection.codec.version

    @property
    def in_flight(self) -> int:
        """Calls running or waiting in a lane."""
        return self._in_flight

    def serializer(self, name: str) -> Serializer:
        """The serializer of that name for this peer.

        Raises:
            SerializeError: this daemon does not accept it.
        """
        serializer = self._serializers.get(name)
        if serializer is None:
            if name not in self.settings.accepted_serializers:
                raise SerializeError(f"message used serializer that is not accepted: {name}")
            serializer = self._serializers[name] = make_serializer(name, self._context())
        return serializer

    def _context(self) -> SerializerContext:
        own = self.session.grant.bits & Feature.TYPED != 0
        return self.daemon.serializer_context(self.version, own)

    def known_instance(self, entry: Entry) -> Any:
        """The object of a registered class if it exists already; None when it must be made."""
        return self.instances.get(entry.target) if entry.mode == "session" else None

    def daemon_annotations(self) -> dict[str, Body]:
        """What the daemon adds to every answer."""
        return self.daemon.annotations()

    async def serve(self) -> None:
        """Greet the client and answer its requests until it leaves.

        Calls that are running when it leaves are cancelled; one-way calls run on in the daemon.
        """
        connection, daemon = self.connection, self.daemon
        hello = await accept_handshake(
            connection, self.session, self.settings, daemon.handshake_context(connection), daemon.judge_for(self)
        )
        if hello is None:
            return
        connection.decoder.max_message = self.settings.max_message_bytes
        daemon.peers.add(self)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            daemon.peers.discard(self)
            connection.close()
            self.resources.close_all()
            with trio.CancelScope(shield=True):
                await self.streams.connection_lost(self)
            daemon.client_left(self)

    async def _read(self) -> None:
        connection, session = self.connection, self.session
        try:
            while not self.finishing:
                message = await connection.receive()
                if message is None:
                    return
                if type(message) is not Message:
                    raise ProtocolError("a message came in pieces that were not asked for")
                session.receive(message)
                if message.type == MessageType.INVOKE:
                    if session.grant.bits & Feature.CONCURRENT:
                        await self._begin(message)
                    else:
                        await self._serve_serially(message)
                elif message.type == MessageType.PING:
                    await connection.send(Message(MessageType.PING, message.seq, message.serializer, 0, b"pong"))
                else:
                    self._cancel(message.seq)
        except ConnectionClosedError as error:
            log.debug("%s", error)
        except PyroError as error:
            log.info("connection of %s ended: %s", connection.peer, error)

    def _decode(self, message: Message) -> Job | Message | None:
        """The job, or the answer to a request that is none."""
        serializer: Serializer | None = None
        try:
            serializer = self.serializer(message.serializer)
            if self.daemon.draining:
                raise RefusedError("draining: the daemon is closing")
            return decode(self, message)
        except Exception as error:
            if isinstance(error, PyroError) and serializer is None:
                self.finishing = True
            return failure(self, message, serializer, error, dispatched=False)

    async def _serve_serially(self, message: Message) -> None:
        job = self._decode(message)
        if isinstance(job, Job):
            if job.oneway:
                self.daemon.run_oneway(self, job)
                return
            self._in_flight += 1
            try:
                job_answer = await execute(self, job)
            finally:
                self._call_ended()
        else:
            job_answer = job
        if job_answer is not None:
            await self._send(job_answer)

    def _call_ended(self) -> None:
        self._in_flight -= 1
        if self.daemon.draining:
            self.daemon.call_ended_while_draining()

    async def _send(self, answer: Message) -> None:
        """Send an answer; one that cannot be written is replaced by the reason."""
        try:
            self.connection.queue(answer)
        except PyroError as error:
            answer = self._unwritable(answer, error)
            self.connection.queue(answer)
        await self.connection.flush()

    def _unwritable(self, answer: Message, error: PyroError) -> Message:
        text = f"the call ran, but its result cannot be sent: {error}"
        serializer = self.serializer(answer.serializer)
        replacement = failure(self, answer, serializer, PyroError(text), dispatched=True)
        assert replacement is not None, "the answer to a two-way call"
        return replacement

    async def _begin(self, message: Message) -> None:
        """Start a call beside those that are running."""
        if self._in_flight >= self.settings.max_calls_in_flight:
            error = RefusedError(f"busy: {self._in_flight} calls are in flight on this connection")
            job: Job | Message | None = failure(
                self, message, self.serializer(message.serializer), error, dispatched=False
            )
        else:
            job = self._decode(message)
        if isinstance(job, Message):
            await self._send(job)
        elif job is not None and job.oneway:
            self.daemon.run_oneway(self, job)
        elif job is not None:
            self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        self._in_flight += 1
        key = self._lane_key(job)
        if key is not None:
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = _Lane()
            job.lane = key
            if lane.busy:
                lane.waiting.append(job)
                return
            lane.busy = True
        self._start(job)

    @staticmethod
    def _lane_key(job: Job) -> object:
        """What a call must keep its order with; None for nothing."""
        entry = job.entry
        if not entry.concurrent and entry.mode == "session":
            return entry.target
        if entry.object_id == DAEMON_ID and job.method == "get_next_stream_item" and job.args:
            return str(job.args[0])
        return None

    def _start(self, job: Job) -> None:
        if not self._idle:
            worker = self._running[job.message.seq] = _Worker(job)
            assert self._nursery is not None, "the connection is being served"
            self._nursery.start_soon(self._work, worker)
            return
        worker = self._running[job.message.seq] = self._idle.pop()
        worker.job = job
        task, worker.task = worker.task, None
        assert task is not None, "idle workers are parked"
        trio.lowlevel.reschedule(task)

    async def _work(self, worker: _Worker) -> None:
        """Run jobs until there are none. A job that is cancelled costs its worker the scope, so it gets a new one."""
        while True:
            with worker.scope:
                await self._work_in_scope(worker)
            job = worker.job
            if job.message.seq not in self._running:
                return
            del self._running[job.message.seq]
            following = await self._answer(job, worker.answer or self._cut_short(job))
            if following is None:
                return
            worker = self._running[following.message.seq] = _Worker(following)

    async def _work_in_scope(self, worker: _Worker) -> None:
        """Run jobs until there are none, or the scope was cancelled: then the last one is still to be answered."""
        while True:
            job = worker.job
            worker.answer = None
            if job.deadline_ms is not None:
                worker.scope.deadline = trio.current_time() + job.deadline_ms / 1000
            worker.answer = await execute(self, job)
            if worker.scope.cancel_called:
                return
            if job.deadline_ms is not None:
                worker.scope.deadline = float("inf")
            del self._running[job.message.seq]
            following = await self._answer(job, worker.answer)
            if following is not None:
                worker.job = following
                self._running[following.message.seq] = worker
            elif not await self._park(worker):
                return

    def _cut_short(self, job: Job) -> Message | None:
        error = PyroError("the call was cancelled, or its deadline passed, while it was running")
        return failure(self, job.message, job.serializer, error, dispatched=True)

    async def _answer(self, job: Job, answer: Message | None) -> Job | None:
        """Send the answer to a job; the next one of its lane, if there is one."""
        self._call_ended()
        following = self._next_in_lane(job)
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
        try:
            connection.queue(answer)
        except PyroError as error:
            connection.queue(self._unwritable(answer, error))
        if self._in_flight == 0 or len(answer.body) > FLUSH_AT:
            await connection.flush()
        elif not self._flush_planned:
            self._flush_planned = True
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._flush_planned = False
            await connection.flush()

    def _next_in_lane(self, job: Job) -> Job | None:
        if job.lane is None:
            return None
        lane = self._lanes[job.lane]
        if lane.waiting:
            return lane.waiting.popleft()
        del self._lanes[job.lane]
        return None

    async def _park(self, worker: _Worker) -> bool:
        """Wait for another job; False when there are enough waiting already."""
        if len(self._idle) >= IDLE_WORKERS:
            return False
        worker.task = trio.lowlevel.current_task()
        self._idle.append(worker)

        def abort(_: RaiseCancelT) -> Abort:
            if worker in self._idle:
                self._idle.remove(worker)
            return Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        return True

    def _cancel(self, seq: int) -> None:
        """The caller does not want the answer any more."""
        worker = self._running.get(seq)
        if worker is not None:
            worker.scope.cancel()
            return
        for lane in self._lanes.values():
            for job in lane.waiting:
                if job.message.seq == seq:
                    lane.waiting.remove(job)
                    self._call_ended()
                    self._refuse_cancelled(job)
                    return

    def _refuse_cancelled(self, job: Job) -> None:
        answer = failure(
            self, job.message, job.serializer, RefusedError("cancelled before it began"), dispatched=False
        )
        if answer is not None:
            self.connection.queue(answer)
            self.connection.flush_nowait()

    def close(self) -> None:
        """Cut the connection."""
        self.connection.close()
