"""The tasks that serve connections: one leads, the others are busy with calls that wait, or parked."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import trio
from trio.lowlevel import Abort, RaiseCancelT

from ..transport.resume import WOKEN, resumed
from ..wire.message import Message
from .execute import Job
from .poller import Poller
from .quick import took_turn
from .turn import take_turn

if TYPE_CHECKING:
    from .peer import Peer

log = logging.getLogger(__name__)

IDLE_WORKERS: Final = 64
"""Tasks kept parked for calls to come; waking one costs half of starting one."""


class Worker:
    """A task that takes turns of connections and runs calls, one after another."""

    __slots__ = ("answer", "context", "cut", "job", "leads", "reads", "scope", "task")

    def __init__(self, *, job: Job | None = None, reads: Peer | None = None) -> None:
        self.job = job
        """The call that it runs, or shall run next."""
        self.reads = reads
        """The connection whose turn it has: nobody else reads from it."""
        self.context: contextvars.Context | None = None
        """That of the call, while it waits."""
        self.answer: Message | None = None
        self.cut = False
        """Its scope is cancelled, or was when it finished its last call."""
        self.leads = False
        """Whoever has something to say is its business."""
        self.scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None
        """Set while it is parked."""


class Crew:
    """The workers of a daemon, or of one connection that others read.

    The leader waits for the next connection that has something to say, and does itself what it asks for. Only when
    that waits for something does another worker go on as the leader: a call that never waits costs no switch between
    tasks, and however many connections are idle, they have no task at all.

    Args:
        nursery: where the workers run. What goes wrong with one connection does not end it.
        poller: whom they lead; without one, work comes by `start` only.
    """

    def __init__(self, nursery: trio.Nursery, poller: Poller | None = None) -> None:
        self.poller = poller
        self._nursery = nursery
        self._idle: list[Worker] = []
        self._tasks = 0
        """Workers, idle ones included, and whatever else runs for their connections."""
        self._led = poller is None
        self.context: Callable[[], contextvars.Context] = contextvars.copy_context().copy
        """Gives the context variables of a new call: those that the daemon was started with."""

    @property
    def is_alone(self) -> bool:
        """Whether one task is at work, and no other one would miss the loop."""
        return self._tasks - len(self._idle) == 1

    def begin(self) -> None:
        """Serve whoever is listened to."""
        self.pass_lead()

    def start(self, job: Job) -> None:
        """Run a call in a task of its own."""
        self._set_to_work(job, None)

    def attend(self, peer: Peer) -> None:
        """Give a connection, which nobody reads, its turn now."""
        self._set_to_work(None, peer)

    def pass_lead(self, worker: Worker | None = None) -> None:
        """Let another one lead: this worker is about to wait for something."""
        if worker is None or worker.leads:
            if worker is not None:
                worker.leads = False
            self._led = False
            self._set_to_work(None, None)

    def spawn(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run something beside, which keeps its errors to itself."""
        self._tasks += 1
        # elsewhere than in the context of a call, which it would keep alive
        self.context().run(self._nursery.start_soon, self._run, function, args)

    async def _run(self, function: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        try:
            await function(*args)
        finally:
            self._tasks -= 1

    def _set_to_work(self, job: Job | None, reads: Peer | None) -> None:
        if not self._idle:
            self.spawn(self._work, Worker(job=job, reads=reads))
            return
        worker = self._idle.pop()
        worker.job, worker.reads = job, reads
        task, worker.task = worker.task, None
        assert task is not None, "idle workers are parked"
        trio.lowlevel.reschedule(task, WOKEN)

    async def _work(self, worker: Worker) -> None:
        """Work until there are enough idle tasks.

        A call that is cut short costs its task the cancel scope, so the task goes on with a fresh one.
        """
        while True:
            with worker.scope:
                await self._work_in_scope(worker)
            self.pass_lead(worker)
            job, fresh = worker.job, Worker(reads=worker.reads)
            if job is not None:
                await job.client.calls.end_cut(fresh, job, worker.answer)
            elif fresh.reads is None:
                return
            worker = fresh

    async def _work_in_scope(self, worker: Worker) -> None:
        while not (worker.cut or worker.scope.cancel_called):
            job, peer = worker.job, worker.reads
            if job is not None:
                await job.client.calls.run(worker, job)
            elif peer is not None:
                await take_turn(peer, worker)
            elif not self._led:
                self._led = worker.leads = True
                await self._lead(worker)
            elif not await self._park(worker):
                return

    async def _lead(self, worker: Worker) -> None:
        """Serve whoever has something to say, until one of them has to be waited for."""
        assert self.poller is not None, "there is somebody to lead"
        following = self.poller.next
        while True:
            peer = worker.reads = await following(self.is_alone)
            begun = took_turn(peer, worker)
            if begun is None:
                continue
            turn = take_turn(peer, worker, begun)
            try:
                request = turn.send(None)
            except StopIteration:
                if worker.job is None:
                    continue
                return  # it was cut
            self.pass_lead(worker)
            await resumed(turn, request)
            return

    async def _park(self, worker: Worker) -> bool:
        """Wait for more to do; False when there are enough waiting already."""
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


def let_others_read(peer: Peer, worker: Worker) -> None:
    """A call is about to wait: the worker that read it does not read on."""
    worker.reads = None
    connection, poller = peer.connection, peer.poller
    if not (connection.decoder.data or connection.pending or connection.broken):
        poller.listen(peer)
    elif worker.leads:
        poller.put_last(peer)
    else:
        peer.crew.attend(peer)


class PeerTasks:
    """What runs beside the calls of one connection, and ends with it.

    Args:
        crew: where it runs.
        failed: told of what goes wrong with one of them.
        ended: awaited when the last one has ended.
    """

    __slots__ = ("_crew", "_ended", "_failed", "_scopes")

    def __init__(self, crew: Crew, failed: Callable[[], None], ended: Callable[[], Awaitable[None]]) -> None:
        self._crew = crew
        self._failed = failed
        self._ended = ended
        self._scopes: set[trio.CancelScope] = set()

    def __bool__(self) -> bool:
        return bool(self._scopes)

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run something as long as the connection lives."""
        scope = trio.CancelScope()
        self._scopes.add(scope)
        self._crew.spawn(self._run, scope, function, args)

    async def _run(
        self, scope: trio.CancelScope, function: Callable[..., Awaitable[object]], args: tuple[Any, ...]
    ) -> None:
        try:
            with scope:
                await function(*args)
        except Exception:
            log.exception("a connection ended with an unexpected error")
            self._failed()
        finally:
            self._scopes.discard(scope)
            if not self._scopes:
                await self._ended()

    def cancel(self) -> None:
        """The connection is over."""
        for scope in self._scopes:
            scope.cancel()
