"""The order of calls that must not run at once: one lane for each thing that they share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ..objects.table import DAEMON_ID
from .execute import Job


def lane_key(job: Job) -> object:
    """What a call must keep its order with: session objects of a class, items of a stream; None for nothing."""
    entry = job.entry
    if not entry.concurrent:
        return entry.target
    if entry.object_id == DAEMON_ID and job.method == "get_next_stream_item" and job.args:
        return str(job.args[0])
    return None


class Lanes:
    """The lanes of one connection. A lane exists while a call of it runs.

    A call that is made while working on the one that has the lane, directly or not, does not wait for it: it could do
    so for ever.
    """

    def __init__(self) -> None:
        self._waiting: dict[object, deque[Job]] = {}
        self._running: dict[object, Job] = {}

    def enter(self, job: Job) -> bool:
        """Whether a call may begin now; otherwise it waits in its lane."""
        key = lane_key(job)
        if key is None:
            return True
        job.lane = key
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = deque()
            self._running[key] = job
            return True
        chain = job.known_chain
        if chain is not None and self._running[key].known_chain == chain:
            job.lane = None
            return True
        waiting.append(job)
        return False

    def leave(self, job: Job) -> Job | None:
        """A call of a lane has ended; the one that may begin now."""
        waiting = self._waiting[job.lane]
        if waiting:
            following = self._running[job.lane] = waiting.popleft()
            return following
        del self._waiting[job.lane], self._running[job.lane]
        return None

    def waiting(self) -> Iterator[Job]:
        """The calls that wait."""
        for lane in self._waiting.values():
            yield from lane

    def remove(self, seq: int) -> Job | None:
        """Take out the waiting call with this sequence number."""
        for waiting in self._waiting.values():
            for job in waiting:
                if job.message.seq == seq:
                    waiting.remove(job)
                    return job
        return None
