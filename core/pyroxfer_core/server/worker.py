"""The tasks of a connection that read its requests and run its calls."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final

import trio
from trio.lowlevel import Abort, RaiseCancelT

from ..wire.message import Message
from .execute import Job

IDLE_WORKERS: Final = 64
"""Tasks a connection keeps parked for its next calls; waking one costs half of starting one."""


class Worker:
    """A task that reads requests and runs calls, one after another."""

    __slots__ = ("answer", "cut", "job", "running", "scope", "task")

    def __init__(self, job: Job | None = None) -> None:
        self.job = job
        """What it is running, or shall run next."""
        self.running: Coroutine[Any, Any, Message | None] | None = None
        """The job, once it was begun."""
        self.answer: Message | None = None
        self.cut = False
        """Its scope is cancelled, or was when it finished its last job."""
        self.scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None
        """Set while it is parked."""

    def limit(self, deadline: float) -> bool:
        """Let its scope end at a deadline, unless that is over already."""
        if deadline <= trio.current_time():
            return False
        self.scope.deadline = deadline
        return True

    def unlimit(self) -> None:
        """The end of `limit`."""
        self.cut = self.cut or self.scope.cancel_called
        self.scope.deadline = float("inf")


class IdleWorkers:
    """Those that wait for something to do."""

    def __init__(self) -> None:
        self._parked: list[Worker] = []

    async def park(self, worker: Worker) -> bool:
        """Wait for another job; False when there are enough waiting already."""
        if len(self._parked) >= IDLE_WORKERS:
            return False
        worker.task = trio.lowlevel.current_task()
        self._parked.append(worker)

        def abort(_: RaiseCancelT) -> Abort:
            if worker in self._parked:
                self._parked.remove(worker)
            return Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        return True

    def wake(self, job: Job | None) -> bool:
        """Let one of them go on, with this job or, without one, by reading; False when there is none."""
        if not self._parked:
            return False
        worker = self._parked.pop()
        if job is not None:
            worker.job = job
        task, worker.task = worker.task, None
        assert task is not None, "idle workers are parked"
        trio.lowlevel.reschedule(task)
        return True
