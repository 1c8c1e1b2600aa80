"""Plain functions run in a bounded pool of threads; beyond its bounded queue a call is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from ..errors import PyroError, RefusedError


class PoolBusyError(RefusedError):
    """The pool did not take the function. A class of its own, as methods may fail with a RefusedError themselves."""


class ThreadEndedError(PyroError):
    """The function raised what ends a thread or a program in Pyro: SystemExit, KeyboardInterrupt, GeneratorExit..."""


def _run_here(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any]:
    """In the thread, where Ctrl-C does not come: a KeyboardInterrupt, too, is the function's own.

    The result is in a tuple because trio refuses a coroutine, and some functions hand out one.
    """
    try:
        return (function(*args, **kwargs),)
    except (Exception, trio.Cancelled):
        raise
    except BaseException as error:
        raise ThreadEndedError(f"{type(error).__name__} in a method") from error


class _Slots:
    """A capacity limiter that costs no turn of the loop where nobody has to wait: the thread is waited for anyway."""

    def __init__(self, total: int) -> None:
        self._limiter = trio.CapacityLimiter(total)
        self.release_on_behalf_of = self._limiter.release_on_behalf_of
        self.waiting = 0
        """How many wait, or have stopped waiting in this turn of the loop; may be read by any thread."""

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        try:
            self._limiter.acquire_on_behalf_of_nowait(borrower)
        except trio.WouldBlock:
            self.waiting += 1
            try:
                await self._limiter.acquire_on_behalf_of(borrower)
            finally:
                self.waiting -= 1

    @property
    def borrowed(self) -> int:
        return int(self._limiter.borrowed_tokens)

    @property
    def queued(self) -> int:
        return self._limiter.statistics().tasks_waiting

    @property
    def exhausted(self) -> bool:
        return self._limiter.available_tokens < 1


class WorkerPool:
    """Threads for synchronous methods.

    Args:
        threads: functions running at once.
        queue: functions waiting for a thread.
    """

    def __init__(self, threads: int, queue: int) -> None:
        self.threads = 2 * threads
        """How many there are, those for nested calls included."""
        self._slots = _Slots(threads)
        self._patient = trio.CapacityLimiter(max(1, threads // 2))
        self._reserve = _Slots(threads)
        self._queue = queue
        self.lingering: set[object] = set()
        """Who has a thread and runs nothing in it at the moment."""

    @property
    def busy(self) -> int:
        """Threads running a function, abandoned ones included."""
        return self._slots.borrowed + self._reserve.borrowed - len(self.lingering)

    @property
    def full(self) -> bool:
        """Whether a function would have to wait for a thread."""
        return self._slots.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether also a nested call would have to wait for a thread."""
        return self._slots.exhausted and self._reserve.exhausted

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a thread. May be asked in any thread."""
        return self._slots.waiting > 0

    @property
    def lends(self) -> bool:
        """Whether a function may go on in its thread with what is not its own."""
        return True

    async def run_patiently(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Like `run`, but waits for its turn however long the queue is: a one-way call cannot be told to come again.

        At most half of the threads do such work, so that a flood of it leaves room for calls that are waited for.

        Raises:
            ThreadEndedError, and whatever else the function raises.
        """
        async with self._patient:
            return await self._run(function, args, kwargs)

    async def run_iterator(self, function: Callable[..., Any], *args: Any) -> Any:
        """Like `run_patiently`, for fetching items of a stream: its reader waits for nothing else."""
        return await self.run_patiently(function, *args)

    async def run_nested(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Like `run`, for a call that is made while working on another one: that may have the thread it waits for.

        There are as many threads for such calls as for others; when those are in use too, it waits like any other.
        """
        if self._reserve.exhausted:
            return await self.run(function, *args, **kwargs)
        return await self._run(function, args, kwargs, self._reserve)

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function in a thread, with the context variables of this task.

        Raises:
            PoolBusyError: all threads are busy and the queue is full; the function was not run.
        ThreadEndedError: the function raised something that is no Exception.
        whatever else the function raises.

        Cancelling abandons the function: it runs on and keeps its thread until it ends.
        """
        if self._slots.exhausted and self._slots.queued >= self._queue + len(self.lingering):
            raise PoolBusyError("busy: all worker threads are in use and the queue is full; try again later")
        return await self._run(function, args, kwargs)

    async def _run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        slots: _Slots | None = None,
    ) -> Any:
        limiter: Any = slots or self._slots  # trio takes whatever has these two methods
        (result,) = await trio.to_thread.run_sync(
            _run_here, function, args, kwargs, limiter=limiter, abandon_on_cancel=True
        )
        return result
