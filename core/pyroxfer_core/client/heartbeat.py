"""Whether a peer that owes an answer is still there: it is asked from time to time, and must say so.

Only calls that last are watched, so a short one costs nothing: one task of the loop looks at every connection once in
an interval, and asks where something is awaited since the last look already.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ..errors import ConnectionClosedError, PyroError
from ..wire.session import heartbeat

if TYPE_CHECKING:
    from ..transport.connection import Connection

log = logging.getLogger(__name__)

QUESTIONS: Final = 2
"""Questions in a row that may stay without an answer; the connection is given up an interval after the last."""


def silent(peer: str, interval_s: float) -> ConnectionClosedError:
    """The error of calls whose peer did not answer."""
    span = interval_s * (QUESTIONS + 1)
    return ConnectionClosedError(f"{peer} owes an answer and has not given a sign of life for {span:g} s: it hangs")


class Pulse:
    """What is known about the life of one peer."""

    __slots__ = ("_awaited", "_progress", "_sent", "_unanswered")

    def __init__(self) -> None:
        self._awaited: object = None
        self._progress: object = None
        self._sent = 0
        self._unanswered = 0

    def heard(self) -> None:
        """It said that it is there."""
        self._unanswered = 0

    def look(self, awaited: object, connection: Connection) -> bool | None:
        """Once in an interval.

        Args:
            awaited: what is owed for longest; None when nothing is.
            connection: what comes in of a large message, and what goes out of one, is a sign of life, too.

        Returns:
            True to ask now; False to give the peer up; None to do nothing.
        """
        progress = connection.decoder.progress
        if awaited is None or awaited is not self._awaited or progress != self._progress:
            self._awaited, self._progress, self._unanswered = awaited, progress, 0
            return None
        if connection.unsent and connection.sent != self._sent:  # a question would wait behind what is leaving
            self._sent, self._unanswered = connection.sent, 0
        if self._unanswered >= QUESTIONS:
            return False
        self._unanswered += 1
        return None if connection.unsent else True


class Watched(Protocol):
    """A connection that calls are made on."""

    @property
    def connection(self) -> Connection:
        """Where they leave."""

    @property
    def pulse(self) -> Pulse:
        """Told when a sign of life came."""

    @property
    def awaited(self) -> object:
        """What the peer owes for longest; None when nobody waits for anything."""

    def give_up(self, error: PyroError) -> None:
        """End the connection and all calls on it."""


_watched: Final[trio.lowlevel.RunVar[dict[float, weakref.WeakSet[Watched]]]] = trio.lowlevel.RunVar(
    "pyroxfer_watched"
)


def watch(link: Watched, interval_s: float) -> None:
    """Look at a connection once in an interval, as long as it exists."""
    try:
        groups = _watched.get()
    except LookupError:
        groups = {}
        _watched.set(groups)
    group = groups.get(interval_s)
    if group is None:
        group = groups[interval_s] = weakref.WeakSet()
        trio.lowlevel.spawn_system_task(_look_after, groups, interval_s, name="pyroxfer heartbeats")
    group.add(link)


async def _look_after(groups: dict[float, weakref.WeakSet[Watched]], interval_s: float) -> None:
    """The task of one interval; it ends when there is nothing left to look at."""
    while True:
        await trio.sleep(interval_s)
        links = list(groups[interval_s])
        if not links:
            del groups[interval_s]
            return
        for link in links:
            try:
                _look_at(link, interval_s)
            except Exception:  # what ends a system task ends the whole program
                log.exception("the connection to %s cannot be looked after", link.connection.peer)
        del links


def _look_at(link: Watched, interval_s: float) -> None:
    connection = link.connection
    if connection.broken:
        return
    verdict = link.pulse.look(link.awaited, connection)
    if verdict is None:
        return
    try:
        if not verdict:
            raise silent(connection.peer, interval_s)
        connection.queue(heartbeat())
        connection.flush_nowait()
    except PyroError as error:
        link.give_up(error)
