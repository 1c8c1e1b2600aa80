"""Plain functions of a client that makes one call after another: the thread that runs one goes on with the next.

Handing a call to a thread and its answer back costs several times what a small call does. So the thread answers by
itself, and waits a moment for the next request. Everything that is not another small call of a plain function is
handed back to the loop, and the connection with it; also when somebody else wants the thread.

A client of ours may say more while its call runs. So the loop takes its connection back when one function takes long.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import PyroError
from ..objects.context import current_context_var
from ..transport.connection import RECEIVE_BYTES, Event
from ..wire.message import Message, MessageType
from ..wire.scattered import JOIN_BELOW
from .execute import SLOW_BYTES, Job, failed, result, runner
from .streams import PLAIN

if TYPE_CHECKING:
    from .crew import Worker
    from .peer import Peer

LINGER_MS: Final = 5
"""How long a thread waits for the next request."""
PATIENCE_S: Final = 0.02
"""How long a function may run before the loop reads the connection of a client of ours again."""
_NOTHING: Final = object()


class Loan:
    """A connection in the hands of a thread. Its socket and decoder are touched under the lock, until it is over."""

    def __init__(self, peer: Peer, worker: Worker, job: Job) -> None:
        self._peer = peer
        self._worker = worker
        self._lock = threading.Lock()
        self._over = False
        self._is_idle = False
        self._begun = 0
        self._ended = trio.Event()
        self._poll = select.poll()
        self._poll.register(peer.connection.sock, select.POLLIN)
        self._context = peer.crew.context()
        self.job = job
        """The last call that was begun."""
        self.value: Any = _NOTHING
        """What it returned, if that is for the loop to answer."""
        self.answer: Message | None = None
        """The answer to it, if that is still to be sent."""
        self.error: Exception | None = None
        """What it raised."""
        peer.loan = self  # last: whoever finds it waits for its end

    def recall(self) -> None:
        """From now on the thread leaves the connection alone, even if it is running a function."""
        with self._lock:
            self._over = True

    def end(self) -> None:
        """The worker has the connection again, and the last call as its job."""
        with self._lock:
            self._over = True
            self._resume(self.job)
        self._peer.loan = None
        self._ended.set()

    async def until_over(self) -> None:
        """Wait until the loop may read the connection."""
        while not self._over:
            begun = self._begun
            with trio.move_on_after(PATIENCE_S):
                await self._ended.wait()
            if begun == self._begun and not self._is_idle and not self._over:
                self.recall()
                self._peer.lend_later()

    def _pause(self) -> None:
        """There is no call from now on."""
        self._is_idle = True
        self._worker.job = None
        self._peer.calls.pause()
        self._peer.pool.lingering.add(self)

    def _resume(self, job: Job) -> None:
        self._worker.job = job
        if self._is_idle:
            self._is_idle = False
            self._peer.calls.resume()
            self._peer.pool.lingering.discard(self)

    def work(self, function: Callable[..., Any]) -> None:
        """Run the job's function, answer, and go on with what comes next; in a thread."""
        following: Callable[..., Any] | None = function
        while following is not None:
            following = self._next() if self._answer(following) else None

    def _answer(self, function: Callable[..., Any]) -> bool:
        """Run one call and answer it. False: the loop has to go on."""
        job, context = self.job, self._context.copy()
        context.run(current_context_var.set, job)
        try:
            value = context.run(function, *job.args, **(job.kwargs or {}))
            if type(value) not in PLAIN:
                self.value = value
                return False
            answer = context.run(result, self._peer, job, value)
        except Exception as error:
            self.error = error
            return False
        assert answer is not None, "one-way calls are not lent for"
        with self._lock:
            if not self._over and type(answer.body) is bytes and len(answer.body) <= JOIN_BELOW:
                return self._send(answer)
        self.answer = answer
        return False

    def _send(self, answer: Message) -> bool:
        connection = self._peer.connection
        try:
            connection.queue(answer)
        except PyroError:
            self.answer = answer  # the loop says why it cannot be written
            return False
        self._pause()  # who gets the answer shall find none in flight
        try:
            return connection.flush_nowait()
        except PyroError:
            return False  # the loop will find out

    def _next(self) -> Callable[..., Any] | None:
        """Wait for another small call of a plain function. None: something else came, nothing came, or it is over."""
        peer = self._peer
        if peer.daemon.draining or peer.finishing or peer.pool.wanted or peer.connection.decoder.data:
            return None
        if not self._poll.poll(LINGER_MS):
            return None
        with self._lock:
            event = None if self._over else self._receive()
            return None if event is None else self._begin(event)

    def _receive(self) -> Event | None:
        connection = self._peer.connection
        try:
            return connection.decoder.take(connection.sock.recv(RECEIVE_BYTES))
        except (OSError, PyroError):
            return None  # the loop will find out

    def _begin(self, event: Event) -> Callable[..., Any] | None:
        peer = self._peer
        if type(event) is Message and event.type == MessageType.INVOKE and len(event.body) <= SLOW_BYTES:
            prepared = peer.prepared(event)
            if prepared is not None:
                job, function = prepared
                peer.calls.follows(self._worker, self.job, job)
                self.job = job
                self._begun += 1
                self._resume(job)
                return function
        peer.kept = event
        return None


async def lend(peer: Peer, worker: Worker, job: Job, function: Callable[..., Any]) -> Message | None:
    """Run a job of a plain function in a thread, and what follows it on this connection.

    Returns:
        The answer to the last call; None when it was given.
    """
    loan = Loan(peer, worker, job)
    try:
        await runner(peer, job)(loan.work, function)
        if loan.error is not None:
            raise loan.error
        if loan.value is _NOTHING:
            return loan.answer
        value = loan.value
        current_context_var.set(loan.job)
        return result(peer, loan.job, await value if hasattr(value, "__await__") else value)
    except BaseException as error:
        return failed(peer, loan.job, error)
    finally:
        loan.end()
        peer.flush_some()  # the client may have had no room for an answer that the thread gave
