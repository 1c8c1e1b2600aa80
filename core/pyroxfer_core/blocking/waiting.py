"""Calls that wait for their answers, and the errors they end with."""

from __future__ import annotations

import builtins
import threading
import time

from ..errors import CommunicationError, ConnectionClosedError, Outcome, TimeoutError
from ..transport.sockets import lost_connection, reason_of
from ..wire.message import Message


class Waiter:
    """A call in flight. What it begins with stands in the class: making one for every call runs nothing."""

    reply: Message | None = None
    error: CommunicationError | None = None
    wake: threading.Lock | None = None
    """Held while a thread sleeps for this call because another one reads; released to wake it."""
    abandoned = False
    answered = False
    """An answer came, even if it was none that can be used."""

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self.reply is not None or self.error is not None


def lost_between_calls() -> ConnectionClosedError:
    """The error of a call that found no connection any more; it may go on another one."""
    return ConnectionClosedError("the connection was lost between calls", outcome=Outcome.NOT_SENT)


def seconds_left(deadline: float | None) -> float:
    """As `threading.Lock.acquire` takes it."""
    return -1 if deadline is None else max(deadline - time.monotonic(), 0)


def copy_for(error: BaseException, outcome: Outcome | None) -> CommunicationError:
    """The error for one of several calls that it ended."""
    if isinstance(error, CommunicationError):
        mine = type(error)(*error.args)
        mine.outcome = outcome
        return mine
    lost = lost_connection(error, f"connection lost: {reason_of(error)}")
    lost.outcome = outcome
    return lost


def as_ours(error: BaseException, what: str, outcome: Outcome | None = None) -> BaseException:
    """What to raise for an error of the socket; other errors stay themselves."""
    if isinstance(error, builtins.TimeoutError):
        return TimeoutError(f"the {what} took too long", outcome=outcome)
    if isinstance(error, OSError):
        return copy_for(error, outcome or lost_connection(error, "").outcome)
    if isinstance(error, CommunicationError) and error.outcome is None:
        error.outcome = outcome
    return error
