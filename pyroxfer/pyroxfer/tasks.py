"""Small helpers around trio: nurseries whose errors arrive plain, and bounded worker threads for disk work."""

from __future__ import annotations

import contextlib
import select
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple

import trio

from .errors import TransferError, UnknownTransferError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

DISK_THREADS: Final = 16
"""Disk calls running at once in one event loop: they fill a disk's queue and do not crowd out other threads."""
WHOLE_FILE_THREADS: Final = 8
"""Files read from end to end at once before anything moves: each may take minutes, and holds up no short work."""
OWN_THREADS: Final = 2
"""Of one transfer: one reads or writes while the other digests or flushes."""

_disk_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("pyroxfer-disk-limiter")
_whole_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("pyroxfer-whole-limiter")


def _shared(limiters: trio.lowlevel.RunVar[trio.CapacityLimiter], threads: int) -> trio.CapacityLimiter:
    """The one of this event loop."""
    try:
        return limiters.get()
    except LookupError:
        limiter = trio.CapacityLimiter(threads)
        limiters.set(limiter)
        return limiter


def whole_file_threads() -> trio.CapacityLimiter:
    """Threads for work that reads a whole file, such as digesting what stands under a name."""
    return _shared(_whole_limiter, WHOLE_FILE_THREADS)


class Usage:
    """Counts who is at work on a descriptor, so that it is closed only when nobody is."""

    def __init__(self) -> None:
        self._users = 0
        self._over = False
        self._idle = trio.lowlevel.ParkingLot()

    @property
    def busy(self) -> bool:
        """Somebody is inside."""
        return self._users > 0

    def __enter__(self) -> None:
        if self._over:
            raise UnknownTransferError("the transfer is over")
        self._users += 1

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self._idle.unpark_all()

    async def finish(self) -> None:
        """Let nobody in any more, and wait for those inside."""
        self._over = True
        while self._users:
            await self._idle.park()


async def in_thread(function: Callable[[*Ts], T], *args: *Ts, limiter: trio.CapacityLimiter | None = None) -> T:
    """Run blocking disk work in a worker thread, one of those for everybody or of a transfer's own ``limiter``.

    Once begun it is not cancelled, unless it asks `check_cancelled`: its value comes back, so that what it opened or
    made finds its owner.
    """
    return await trio.to_thread.run_sync(function, *args, limiter=limiter or _shared(_disk_limiter, DISK_THREADS))


def check_cancelled() -> None:
    """For long work in a thread, where it can end.

    Raises:
        trio.Cancelled: whoever waits for the thread does not want it any more.
    """
    with contextlib.suppress(RuntimeError):  # a thread that trio did not start: nobody can cancel it
        trio.from_thread.check_cancelled()


def wait_for(fd: int, event: int) -> None:
    """Wait until a descriptor that does not wait by itself can be read from or written to. Blocking."""
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


class _Job:
    """One function to run for a task that waits for it."""

    __slots__ = ("args", "error", "function", "task", "value")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.task = trio.lowlevel.current_task()
        self.value: Any = None
        self.error: BaseException | None = None

    def do(self) -> None:
        try:
            self.value = self.function(*self.args)
        except BaseException as error:
            self.error = error

    def take(self) -> Any:
        """The value, or the error raised; it is not kept, for its traceback would keep the job."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
            return self.value
        finally:
            del error


class OwnThreads:
    """Threads of one transfer: however slow its disk is, others do not wait for it.

    A thread goes on with the next job by itself: the many blocks of a transfer wake none of them each. There is no
    cancelling and there are no context variables in them.
    """

    def __init__(self, most: int = OWN_THREADS) -> None:
        self._most = most
        self._running = 0
        self._waiting: deque[_Job] = deque()

    @trio.lowlevel.enable_ki_protection
    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run blocking work in one of the threads. Once begun it is not cancelled: its value comes back.

        Raises:
            RuntimeError: there is no thread to be had, and none of its own runs.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(function, args)
        self._waiting.append(job)
        try:
            self._engage()
        except RuntimeError:  # there is no thread to be had: one that runs will do it
            if not self._running:
                self._forget(job)
                raise
        await trio.lowlevel.wait_task_rescheduled(
            lambda _: trio.lowlevel.Abort.SUCCEEDED if self._forget(job) else trio.lowlevel.Abort.FAILED
        )
        value: T = job.take()
        return value

    def _forget(self, job: _Job) -> bool:
        """Whether no thread has begun with it, and none will."""
        try:
            self._waiting.remove(job)
        except ValueError:
            return False
        return True

    def _engage(self) -> None:
        if self._waiting and self._running < self._most:
            token = trio.lowlevel.current_trio_token()
            trio.lowlevel.start_thread_soon(partial(self._work, token), partial(self._leave, token))
            self._running += 1

    def _work(self, token: trio.lowlevel.TrioToken) -> _Job | None:
        """In a thread, until nothing waits; the last job is told of together with the end of the thread."""
        job = self._next()
        while job is not None:
            job.do()
            following = self._next()
            if following is None:
                break
            token.run_sync_soon(trio.lowlevel.reschedule, job.task)
            job = following
        return job

    def _next(self) -> _Job | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def _leave(self, token: trio.lowlevel.TrioToken, last: Any) -> None:
        """In a thread that found nothing more to do."""
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(self._left, last.unwrap())

    def _left(self, last: _Job | None) -> None:
        """A thread has ended; something may have come after it had looked."""
        self._running -= 1
        if last is not None:
            trio.lowlevel.reschedule(last.task)
        try:
            self._engage()
        except RuntimeError as error:  # there is no thread to be had: whoever counts on one is told so
            while self._waiting and not self._running:
                job = self._waiting.popleft()
                job.error = error
                trio.lowlevel.reschedule(job.task)


def most_telling(group: BaseExceptionGroup[Any]) -> BaseException:
    """The one error of a group to show: never a cancellation beside a cause, ours before a broken connection."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(most_telling(error) if isinstance(error, BaseExceptionGroup) else error)
    for wanted in (KeyboardInterrupt, TransferError, Exception):
        for leaf in leaves:
            if isinstance(leaf, wanted):
                return leaf
    return leaves[0]


@contextlib.asynccontextmanager
async def open_flat_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery for tasks of which one failure is the failure of all: it arrives as itself, not in a group."""
    error: BaseException
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        error = most_telling(group)
    else:
        return
    raise error
