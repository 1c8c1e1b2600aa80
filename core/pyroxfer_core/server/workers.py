"""Plain functions run in a bounded pool of threads; beyond its bounded queue a call is refused at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import trio

from ..errors import RefusedError


class PoolBusyError(RefusedError):
    """The pool did not take the function. A class of its own, as methods may fail with a RefusedError themselves."""


class WorkerPool:
    """Threads for synchronous methods.

    Args:
        threads: functions running at once.
        queue: functions waiting for a thread.
    """

    def __init__(self, threads: int, queue: int) -> None:
        self._limiter = trio.CapacityLimiter(threads)
        self._queue = queue

    @property
    def busy(self) -> int:
        """Threads running a function, abandoned ones included."""
        return int(self._limiter.borrowed_tokens)

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function in a thread, with the context variables of this task.

        Raises:
            PoolBusyError: all threads are busy and the queue is full; the function was not run.

        Cancelling abandons the function: it runs on and keeps its thread until it ends.
        """
        limiter = self._limiter
        if limiter.available_tokens < 1 and limiter.statistics().tasks_waiting >= self._queue:
            raise PoolBusyError("busy: all worker threads are in use and the queue is full; try again later")
        return await trio.to_thread.run_sync(
            functools.partial(function, *args, **kwargs), limiter=limiter, abandon_on_cancel=True
        )
