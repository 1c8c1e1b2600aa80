"""When a call that failed is sent again: only if it cannot have run, or if running it twice does no harm. No I/O.

A call that was `NotSent` may always go again. One that is `Unknown` may only when its method is ``@idempotent``, or
when it carries a key and reaches the very daemon that may have seen it. At most `MAX_ATTEMPTS` in all, with growing
pauses, inside the deadline, and at most one retry for ten calls: a crowd of clients must not bury a slow daemon.
"""

from __future__ import annotations

import random
from typing import Any, Final, Protocol

from ..errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    ProtocolError,
    RefusedError,
    SessionLost,
    TimeoutError,
)
from ..objects.expose import Metadata
from ..settings import Settings
from ..wire.features import Feature, Grant
from ..wire.session import ClientSession

MAX_ATTEMPTS: Final = 3
CALLS_PER_RETRY: Final = 10
FIRST_RETRIES: Final = 3
"""Retries that a proxy has before it made thirty calls."""
MOST_SAVED: Final = 100
"""Retries that can be saved up: a long quiet time must not end in a storm."""
BACKOFF_S: Final = 0.05
"""First pause before a call is tried again; it doubles, with jitter, up to `MAX_BACKOFF_S`."""
MAX_BACKOFF_S: Final = 2.0

_NOT_SENT, _UNKNOWN = Outcome.NOT_SENT, Outcome.UNKNOWN
_AGAIN: Final = (ConnectionClosedError, RefusedError)
_SEQUENCE: Final = 0x10000
_OUT_OF_ORDER: Final = 1024
"""How many calls behind the last one another one's failure may be told."""


def pause_before(attempt: int) -> float:
    """Seconds to wait before the next attempt: doubling, and never the same for two clients."""
    longest: float = min(BACKOFF_S * 2.0 ** min(attempt, 16), MAX_BACKOFF_S)
    return longest * random.uniform(0.5, 1.0)


class RetryBudget:
    """The retries of one proxy: at most a tenth of its calls.

    Calls are counted by their sequence numbers when something fails, so that those that work pay nothing.
    """

    __slots__ = ("_calls", "_seq", "_spent")

    def __init__(self) -> None:
        self._calls = 0
        self._seq = 0
        self._spent = 0

    def spend(self, seq: int, first: int = FIRST_RETRIES) -> bool:
        """Take one retry, if there is one left.

        Args:
            seq: the sequence number of the proxy's last call.
            first: retries that are there from the start.
        """
        if (self._seq - seq) % _SEQUENCE >= _OUT_OF_ORDER:  # else another thread, or connection, was ahead
            self._calls += (seq - self._seq) % _SEQUENCE
            self._seq = seq
        self._calls = min(self._calls, (self._spent + MOST_SAVED) * CALLS_PER_RETRY)
        if self._spent >= max(first, self._calls // CALLS_PER_RETRY):
            return False
        self._spent += 1
        return True


class Attempts:
    """The attempts of one call, from its first failure on.

    Args:
        budget: of the proxy.
        keyed: the call carries a key.
        retries: how often a call that was not sent may go again, when the user said it. Then also after a time-out of
            connecting, which takes long.
    """

    __slots__ = ("_again", "_budget", "_count", "_epoch", "_keyed", "_retries", "_unsure")

    def __init__(self, budget: RetryBudget, *, keyed: bool, retries: int | None = None) -> None:
        self._budget = budget
        self._keyed = keyed
        self._retries = MAX_ATTEMPTS - 1 if retries is None else retries
        self._again = _AGAIN if retries is None else (*_AGAIN, TimeoutError)
        self._count = 0
        self._unsure: CommunicationError | None = None
        self._epoch: bytes | None = None

    @property
    def unsure(self) -> bool:
        """Whether an earlier attempt may have run."""
        return self._unsure is not None

    def failed(self, error: CommunicationError, seq: int, grant: Grant, *, idempotent: bool) -> float | None:
        """Judge a failure.

        Args:
            seq: the sequence number of the proxy's last call.
            grant: of the connection that the attempt was made on.
            idempotent: the method may run twice.

        Returns:
            Seconds to wait before the next attempt; None to give up and raise what `verdict` says.
        """
        allowed = self._retries
        if error is self._unsure or error.final:
            return None
        if error.outcome is _UNKNOWN and isinstance(error, (ConnectionClosedError, ProtocolError)):
            if not idempotent and not (self._keyed and Feature.KEY in grant):
                return None
            if not idempotent:
                self._epoch = grant.epoch
            self._unsure = self._unsure or error
            allowed = max(allowed, MAX_ATTEMPTS - 1)
        elif error.outcome is not _NOT_SENT or not isinstance(error, self._again):
            return None
        elif self._unsure is not None:
            allowed = max(allowed, MAX_ATTEMPTS - 1)
        if self._count >= allowed or not self._budget.spend(seq, max(FIRST_RETRIES, self._retries)):
            return None
        self._count += 1
        return pause_before(self._count - 1)

    def check_daemon(self, grant: Grant) -> None:
        """Before an attempt: a key means something only to the daemon that it was sent to.

        Raises:
            CommunicationError: it is another one; the outcome of the call stays Unknown.
        """
        if self._epoch is not None and self._unsure is not None and grant.epoch != self._epoch:
            raise self._unsure

    def verdict(self, error: CommunicationError) -> CommunicationError:
        """The error to raise in the end: it tells what is certain about all attempts together."""
        if self._unsure is not None and error.outcome is _NOT_SENT:
            error.outcome = _UNKNOWN
        return error


class SpentLink(Protocol):
    """A connection that an attempt was made on."""

    released: bool
    """Its user closed it."""

    @property
    def session(self) -> ClientSession[Any]:
        """Knows whether the daemon has said that it goes away."""


def is_cut_off(link: SpentLink | None, error: CommunicationError) -> bool:
    """Whether a connection turned out to be gone before the call left on it, or its daemon began no more calls.

    Such a call moves to a fresh connection at once, without counting as a retry; not if the user closed this one.

    Args:
        link: what the attempt was made on; None if there was no connection.
        error: what the attempt ended with.
    """
    if link is None or link.released or error.outcome is not _NOT_SENT or error.final:
        return False
    return type(error) is ConnectionClosedError or (link.session.going_away and isinstance(error, RefusedError))


def loses_session(metadata: Metadata | None, grant: Grant, settings: Settings) -> bool:
    """Whether an object goes with its connection, as far as is known."""
    if Feature.KEY in grant:
        return metadata is not None and metadata.session
    return settings.strict_session


def session_lost(place: object) -> SessionLost:
    """The error of a call that would have gone to a fresh object instead of the one that the caller knows."""
    text = f"the connection to {place} was lost, and with it the object made for it; the next call gets a new one"
    return SessionLost(text, outcome=_NOT_SENT)
