"""Taking turns at a peer that takes one call at a time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from ..errors import ConnectionClosedError, Outcome, TimeoutError
from ..wire.message import Message
from .waiting import Waiter, seconds_left

if TYPE_CHECKING:
    from .link import BlockingLink

TURN_CHECK_S: Final = 1.0
"""How often a thread that waits for its turn looks whether the connection is still there."""


class CallTurn:
    """Which call is in flight on a connection that takes one at a time."""

    def __init__(self, link: BlockingLink) -> None:
        self._link = link
        self._lock = threading.Lock()
        """Held during a call."""
        self._in_flight: Message | None = None
        """The call that has the turn."""

    @property
    def taken(self) -> bool:
        """Whether a call is in flight."""
        return self._lock.locked()

    def run(self, waiter: Waiter | None, message: Message, deadline: float | None) -> Message | None:
        """Run a call when no other is in flight. Errors as `BlockingLink.call`.

        An interrupt that may have swallowed the turn ends the connection, so that nobody waits for it.
        """
        link = self._link
        try:
            self._take(message, deadline)
            try:
                link.sending.post(waiter, message, deadline)
                return None if waiter is None else link.reading.wait(waiter, message.seq, deadline)
            finally:
                self._in_flight = None
                self._lock.release()
        except Exception:
            raise
        except BaseException as error:
            if self._in_flight is message or (self._in_flight is None and self._lock.locked()):
                link.fail(error)
            raise

    def _take(self, message: Message, deadline: float | None) -> None:
        left = seconds_left(deadline)
        while not self._lock.acquire(timeout=TURN_CHECK_S if left < 0 else min(left, TURN_CHECK_S)):
            if self._link.closed:
                raise ConnectionClosedError("the connection was lost", outcome=Outcome.NOT_SENT)
            left = seconds_left(deadline)
            if left == 0:
                raise TimeoutError("the call waited too long for its turn", outcome=Outcome.NOT_SENT)
        self._in_flight = message
