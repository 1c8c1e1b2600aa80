"""One-way calls of a connection: each runs in the daemon, outlives its connection, and begins in its turn."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from ..wire.message import Flags, Message
from .execute import Job, execute
from .keys import run_keyed

if TYPE_CHECKING:
    from .peer import Peer

ONEWAY_BYTES: Final = 16 * 1024 * 1024
"""With more than this in one-way calls that have not ended, the next one is waited for before more is read."""
_ONEWAY, _BATCH = Flags.ONEWAY, Flags.BATCH


def is_detached(message: Message) -> bool:
    """Whether nothing waits for a call. A batch keeps its order with later calls, as in Pyro."""
    return message.flags & (_ONEWAY | _BATCH) == _ONEWAY


class OneWays:
    """The one-way calls that run in tasks of their own."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.running: set[Job] = set()
        """Those that have not ended."""
        self.unbegun: deque[Job] = deque()
        """Those whose tasks have not begun to run."""
        self._held = 0
        """Bytes of their requests."""

    @property
    def has_room(self) -> bool:
        """Whether another one may be started."""
        return len(self.running) < self._peer.settings.max_calls_in_flight and self._held < ONEWAY_BYTES

    def start(self, job: Job) -> None:
        """Run a call in a task of its own."""
        self.running.add(job)
        self._held += len(job.message.body)
        self.unbegun.append(job)
        self._peer.daemon.run_detached(self._run_next)

    async def _run_next(self) -> None:
        """Whichever task the loop starts first takes the call that came first."""
        job = self.unbegun.popleft()
        held = len(job.message.body)
        try:
            await (execute(self._peer, job) if type(job) is Job else run_keyed(self._peer, job))
        finally:
            self.running.discard(job)
            self._held -= held

    async def let_begin(self) -> None:
        """Calls begin in the order in which they came: what comes after these waits for that."""
        while self.unbegun:
            await trio.lowlevel.checkpoint()
