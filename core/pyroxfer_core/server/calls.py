"""The calls of one client: begun, kept in order, cut short, answered."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

import trio

from ..errors import CommunicationError, Outcome, ProtocolError, PyroError, RefusedError
from ..serializers.base import Serializer
from ..transport.resume import resumed
from ..wire.features import Feature
from ..wire.message import Flags, Message
from .crew import Worker, let_others_read
from .execute import Job, Read, decode, execute, failure
from .keys import run_keyed
from .lanes import Lanes
from .quick import FLUSH_AT

if TYPE_CHECKING:
    from .peer import Peer

log = logging.getLogger(__name__)

_ONEWAY, _BATCH, _CONCURRENT = Flags.ONEWAY, Flags.BATCH, Feature.CONCURRENT
ONEWAY_BYTES: Final = 16 * 1024 * 1024
"""With more than this in one-way calls that have not ended, the next one is waited for before more is read."""


class Calls:
    """What one client has asked for and not got yet.

    Whoever reads a request also runs it. Only when the call of a peer of ours waits for something may others read on.

    Without agreed features calls run strictly one after another, as in Pyro. With them they run at once, except those
    on a session object and those that fetch items of one stream, which keep their order.
    """

    __slots__ = (
        "_flush_planned",
        "_lanes",
        "_oneway_bytes",
        "_oneways",
        "_peer",
        "_running",
        "in_flight",
        "unbegun",
    )

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._running: dict[int, Worker | None] = {}
        """By sequence number; None while one waits in its lane."""
        self.in_flight = 0
        """Calls running or waiting in a lane, and answers that leave in pieces."""
        self._lanes: Lanes | None = None
        self._oneways: set[Job] | None = None
        """One-way calls that run in the daemon."""
        self._oneway_bytes = 0
        """What they hold."""
        self.unbegun: deque[Job] | None = None
        """Those whose tasks have not begun to run; None for none."""
        self._flush_planned = False

    # --- what there is ----------------------------------------------------------------------------------------

    def running(self) -> list[Job]:
        """The calls that run."""
        workers = list(self._running.values())  # a thread may change it
        return [job for worker in workers if worker is not None and (job := worker.job) is not None]

    def unfinished(self) -> list[Job]:
        """The calls that run or wait."""
        waiting = () if self._lanes is None else self._lanes.waiting()
        return [*self.running(), *waiting, *(self._oneways or ())]

    @property
    def none(self) -> bool:
        """Whether there are none, one-way ones included."""
        return self.in_flight == 0 and not self._oneways

    @property
    def any_running(self) -> bool:
        """Whether a worker is busy with one of them, one-way calls of the daemon left out."""
        return any(self._running.values())

    def gave_up(self, job: Job) -> bool:
        """Whether the caller said that it does not want the answer of a running call."""
        worker = self._running.get(job.message.seq)
        return worker is not None and worker.cut

    # --- beginning --------------------------------------------------------------------------------------------

    def begin(self, message: Message, read: Read | None) -> Job | None:
        """The job of a request, if it is to run here and now. Other answers are queued.

        Raises:
            ProtocolError: its sequence number is in use.
        """
        peer = self._peer
        if message.seq in self._running:
            raise ProtocolError(f"the sequence number {message.seq} belongs to a call in flight")
        if self.in_flight >= peer.settings.max_calls_in_flight:
            error = RefusedError(f"busy: {self.in_flight} calls are in flight on this connection")
            serializer = peer.serializer(message.serializer)
            job: Job | Message | None = failure(peer, message, serializer, error, dispatched=False)
        else:
            job = self._decode(message, read)
        if not isinstance(job, Job):
            if job is not None:
                self.queue(job)
            return None
        # a batch keeps its order with later calls, as in Pyro
        if message.flags & (_ONEWAY | _BATCH) == _ONEWAY and self._detach(job):
            return None
        self.in_flight += 1  # a flood of one-way calls runs here, which slows it down to what can be done
        if not (peer.session.grant.bits & _CONCURRENT and job.entry.keeps_order) or self._enter_lane(job):
            return job
        self._running[message.seq] = None
        return None

    def _decode(self, message: Message, read: Read | None) -> Job | Message | None:
        """The job, or the answer to a request that is none."""
        peer = self._peer
        serializer: Serializer | None = None
        try:
            serializer = peer.serializer(message.serializer)
            if peer.daemon.draining:
                raise RefusedError("draining: the daemon is closing")
            job = decode(peer, message, serializer, read)
            peer.check(job)
            return job
        except Exception as error:
            if isinstance(error, PyroError) and serializer is None:
                peer.finishing = True
            if isinstance(error, CommunicationError):
                error.outcome = Outcome.NOT_SENT
            return failure(peer, message, serializer, error, dispatched=False)

    def _enter_lane(self, job: Job) -> bool:
        if self._lanes is None:
            self._lanes = Lanes()
        return self._lanes.enter(job)

    def may_begin(self, message: Message) -> bool:
        """Whether a request may run now, before all others."""
        return (
            message.seq not in self._running
            and self.in_flight < self._peer.settings.max_calls_in_flight
            and not self.unbegun
            and not self._peer.daemon.draining
        )

    def begun(self, worker: Worker, seq: int) -> None:
        """A worker has begun a request."""
        self._running[seq] = worker
        self.in_flight += 1

    def pause(self) -> None:
        """A thread that has the connection has answered a call, and none is in flight until `resume`."""
        self.in_flight -= 1

    def resume(self) -> None:
        """The end of `pause`."""
        self.in_flight += 1

    def follows(self, worker: Worker, before: Job, job: Job) -> None:
        """A thread that has the connection begins another call."""
        self._running[job.message.seq] = worker
        del self._running[before.message.seq]

    def done(self, seq: int) -> None:
        """The end of `begun`, when there was nothing to wait for, before the answer is queued."""
        del self._running[seq]
        self.ended()

    # --- one-way calls ----------------------------------------------------------------------------------------

    def _detach(self, job: Job) -> bool:
        """Let a one-way call run in the daemon; False when there are too many of them."""
        if self._oneways is None:
            self._oneways = set()
        if len(self._oneways) >= self._peer.settings.max_calls_in_flight or self._oneway_bytes >= ONEWAY_BYTES:
            return False
        self._oneways.add(job)
        self._oneway_bytes += len(job.message.body)
        if self.unbegun is None:
            self.unbegun = deque()
        self.unbegun.append(job)
        self._peer.daemon.run_detached(self._run_next_oneway)
        return True

    async def _run_next_oneway(self) -> None:
        """Whichever task the loop starts first takes the call that came first."""
        assert self.unbegun and self._oneways is not None, "one task was started for each"
        job = self.unbegun.popleft()
        if not self.unbegun:
            self.unbegun = None
        held = len(job.message.body)
        try:
            await (execute(self._peer, job) if type(job) is Job else run_keyed(self._peer, job))
        finally:
            self._oneways.discard(job)
            self._oneway_bytes -= held

    async def let_oneways_begin(self) -> None:
        """Calls begin in the order in which they came."""
        while self.unbegun:
            await trio.lowlevel.checkpoint()

    # --- running ----------------------------------------------------------------------------------------------

    async def run(self, worker: Worker, job: Job | None) -> None:
        """Run a call, and those that waited for it in its lane; for a worker that does not read.

        One that is cut leaves the end of the call to `end_cut`.
        """
        try:
            while job is not None:
                rest = self.start(worker, job)
                if rest is not None:
                    job = await self.go_on(worker, job, rest)
                if worker.cut:
                    return
                if worker.reads is None:
                    job = await self.answer(worker, job)
                else:
                    job = self.answer_soon(worker, job)
        except Exception:
            await self._fail(worker)

    async def _fail(self, worker: Worker) -> None:
        """An error that nobody expected ends the connection, and nothing else."""
        log.exception("a call of %s ended with an unexpected error", self._peer.address)
        self.drop(worker)
        self._peer.close()
        await self._peer.leave_if_over()

    def drop(self, worker: Worker) -> None:
        """The call of a worker has no end."""
        job, worker.job, worker.answer = worker.job, None, None
        if job is not None and self._running.pop(job.message.seq, None) is not None:
            self.in_flight -= 1

    def start(self, worker: Worker, job: Job) -> Awaitable[Message | None] | None:
        """Run a job until it waits for something; the rest, to be awaited by the worker, or None when it is done."""
        worker.job = job
        self._running[job.message.seq] = worker
        if job.deadline is not None and not self._limit(worker, job.deadline):
            worker.answer = self._refused(job, "the deadline passed before the call began")
            return None
        peer = self._peer
        context = peer.crew.context()
        running = execute(peer, job) if type(job) is Job else run_keyed(peer, job)
        try:
            request = context.run(running.send, None)
        except StopIteration as finished:
            worker.answer = finished.value
            if job.deadline is not None:
                self._unlimit(worker)
            return None
        worker.context = context
        return resumed(running, request)

    async def go_on(self, worker: Worker, job: Job, rest: Awaitable[Message | None]) -> Job:
        """Go on with a job that waits.

        Meanwhile others may read, if it is the call of a peer of ours: then the worker does not read any more.

        Returns:
            The job that has ended: a thread that had the connection may have gone on with others.
        """
        assert worker.context is not None, "it was begun"
        if worker.reads is not None:
            # a one-way call that runs here is one too many: reading waits for it
            if self._peer.session.grant.bits & _CONCURRENT and not job.message.flags & _ONEWAY:
                let_others_read(self._peer, worker)
            self._peer.flush_some()
        task = trio.lowlevel.current_task()
        usual, task.context = task.context, worker.context
        try:
            worker.answer = await rest
        finally:
            task.context = usual
            worker.context = None
            if worker.reads is None:
                self._peer.go_on_with_rest()
        if job.deadline is not None:
            self._unlimit(worker)
        if worker.job is not None and worker.job is not job:
            job = worker.job
        return job

    @staticmethod
    def _limit(worker: Worker, deadline: float) -> bool:
        """Let the worker's scope end at a deadline, unless that is over already."""
        if deadline <= trio.current_time():
            return False
        worker.scope.deadline = deadline
        return True

    @staticmethod
    def _unlimit(worker: Worker) -> None:
        worker.cut = worker.cut or worker.scope.cancel_called
        worker.scope.deadline = float("inf")

    async def end_cut(self, fresh: Worker, job: Job, answer: Message | None) -> None:
        """Answer a call whose worker was cut; what is left to do must not be cancelled, so another one does it."""
        fresh.answer = answer
        try:
            if answer is None and not self._peer.ended:
                fresh.answer = self._cut_short(job)
            if fresh.reads is not None:
                fresh.job = self.answer_soon(fresh, job)
            else:
                fresh.job = await self.answer(fresh, job)
        except Exception:
            fresh.job = job
            await self._fail(fresh)

    def _cut_short(self, job: Job) -> Message | None:
        text = "the call was cancelled, or its deadline passed, while it was running"
        error = CommunicationError(text, outcome=Outcome.UNKNOWN)
        return failure(self._peer, job.message, job.serializer, error, dispatched=False)

    # --- cutting ----------------------------------------------------------------------------------------------

    def cancel(self, seq: int) -> None:
        """The caller does not want the answer any more."""
        if seq not in self._running:
            self._peer.cancel_leaving(seq)
            return
        worker = self._running[seq]
        if worker is not None:
            worker.cut = True
            worker.scope.cancel()
            return
        job = None if self._lanes is None else self._lanes.remove(seq)
        if job is not None:
            del self._running[seq]
            self.ended()
            answer = self._refused(job, "cancelled before it began")
            if answer is not None:
                self.queue(answer)

    def cut_all(self) -> None:
        """The connection is over: those that run are cancelled, those that wait are forgotten."""
        for worker in self._running.values():
            if worker is not None:
                worker.scope.cancel()

    def _refused(self, job: Job, text: str) -> Message | None:
        """The answer to a call that was not begun."""
        return failure(self._peer, job.message, job.serializer, RefusedError(text), dispatched=False)

    # --- answering --------------------------------------------------------------------------------------------

    def ended(self) -> None:
        """One call less in flight."""
        self.in_flight -= 1
        if self._peer.daemon.draining:
            self._peer.daemon.call_ended()

    def _ended(self, worker: Worker, job: Job) -> Message | None:
        """A call has ended: its answer."""
        answer, worker.answer, worker.job = worker.answer, None, None
        del self._running[job.message.seq]
        self.in_flight -= 1
        if self._peer.daemon.draining:
            self._peer.daemon.call_ended()
        return answer

    def answer_soon(self, worker: Worker, job: Job) -> Job | None:
        """Queue an answer, which leaves before the worker waits; gives the next call of its lane, if there is one."""
        answer = self._ended(worker, job)
        if answer is not None:
            self.queue(answer)
        return None if job.lane is None or self._lanes is None else self._lanes.leave(job)

    async def answer(self, worker: Worker, job: Job) -> Job | None:
        """Send the answer to a call that had to wait; returns the next one of its lane, if there is one."""
        answer = self._ended(worker, job)
        following = None if job.lane is None or self._lanes is None else self._lanes.leave(job)
        if answer is not None and not self._peer.ended:
            connection = self._peer.connection
            try:
                await self._send_with_others(answer)
            except PyroError as error:
                log.debug("an answer to %s could not be sent: %s", connection.peer, error)
                connection.close()
            except Exception:
                log.exception("an answer to %s could not be sent", connection.peer)
                connection.close()
        if self._peer.ended:
            await self._peer.leave_if_over()
            return None
        return following

    async def _send_with_others(self, answer: Message) -> None:
        """Send now when nothing else is running; else let the others of this turn add theirs first."""
        connection = self._peer.connection
        self.queue(answer)
        if self.in_flight == 0 or len(answer.body) > FLUSH_AT:
            await connection.flush()
        elif not self._flush_planned:
            self._flush_planned = True
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._flush_planned = False
            await connection.flush()

    def queue(self, answer: Message) -> None:
        """Queue an answer; one that cannot be written is replaced by the reason."""
        try:
            self._peer.connection.queue(answer)
        except PyroError as error:
            self._peer.connection.queue(self._unwritable(answer, error))

    def _unwritable(self, answer: Message, error: PyroError) -> Message:
        text = f"the call ran, but its result cannot be sent: {error}"
        serializer = self._peer.serializer(answer.serializer)
        replacement = failure(self._peer, answer, serializer, PyroError(text), dispatched=True)
        assert replacement is not None, "the answer to a two-way call"
        return replacement
