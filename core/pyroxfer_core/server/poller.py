"""Whose turn it is: the connections of a daemon that have something to say, one turn each before anyone's next."""

from __future__ import annotations

import contextlib
import enum
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from ..transport.busypoll import BusyPoll
from ..transport.connection import Event

if TYPE_CHECKING:
    from .peer import Peer

REQUESTS_IN_A_ROW: Final = 64
"""After so many that needed no wait the other tasks of the loop get a turn."""
ALONE_AFTER: Final = 16
"""Looks in a row that find the same connection and no other, until it counts as the only one that speaks. Where
several do, what comes during a turn of the loop is found together, which spares more than the turn costs."""
MOST_AT_ONCE: Final = 256
"""Connections that one look finds; the kernel puts those it named behind the others."""
_READABLE: Final = select.EPOLLIN


class Place(enum.Enum):
    """Who has the reading of a connection."""

    LISTENED = "nobody: the poller listens to it"
    QUEUED = "nobody: it waits for its turn"
    TAKEN = "a worker"


class Poller:
    """Listens to all connections of a daemon with one descriptor, which one task waits for.

    A connection that has something to say while somebody has its turn is listened to again only after that. So a
    client that waits for its answers costs no system call but those that read and write.

    Args:
        busy: when the thread of the loop itself may wait.
    """

    def __init__(self, busy: BusyPoll) -> None:
        self._busy = busy
        self._epoll = select.epoll()
        self._peers: dict[int, Peer] = {}
        self._listeners: dict[int, Callable[[], None]] = {}
        """What accepts from a listener, by its descriptor."""
        self._acceptable: list[int] = []
        """Descriptors of listeners with new clients, who come after those found with them: some of those leave."""
        self._queue: deque[Peer] = deque()
        self._again: list[Peer] = []
        """Those that had their turn in this round and are not done."""
        self._in_a_row = 0
        self._speaker = -1
        """The descriptor that was found last, at the beginning of a look."""
        self._others_missing = 0
        """Looks in a row that have found no other one."""
        self._patience = 0.0
        """How many seconds `receive` may wait."""
        self.waits = 0
        """How often nobody had anything to say, or the rest of the loop was due."""

    def __len__(self) -> int:
        return len(self._peers)

    async def next(self, alone: bool) -> Peer:
        """Wait for the connection whose turn it is; whoever gets it has its reading.

        Args:
            alone: nobody else is at work for these connections, and would miss the loop.
        """
        queue = self._queue
        patience = self._patience = 0.0
        if self._in_a_row >= REQUESTS_IN_A_ROW:
            await self._wait()
        elif alone and self._others_missing >= ALONE_AFTER and not (queue or self._again):
            patience = self._busy.patience()
        while not queue:
            if self._acceptable:
                self._accept()
                patience = patience and self._busy.patience()
            self._look(patience)
            queue.extend(self._again)
            self._again.clear()
            if not queue and (not self._acceptable or self._in_a_row >= REQUESTS_IN_A_ROW):
                patience = 0.0
                await self._wait()
        peer = queue.popleft()
        peer.place = Place.TAKEN
        return peer

    async def _wait(self) -> None:
        self.waits += 1
        self._in_a_row = 0
        if self._queue or self._again or self._acceptable:
            await trio.lowlevel.checkpoint()
            return
        if self._others_missing >= ALONE_AFTER:
            await self._busy.wait_in_loop(self._epoll)
        else:
            await trio.lowlevel.wait_readable(self._epoll)
        self._look(0.0)

    @trio.lowlevel.enable_ki_protection  # Ctrl-C is for the program, though this thread waits here
    def _look(self, patience: float) -> None:
        """Queue whoever has something to say, or will have within so many seconds."""
        found = self._epoll.poll(patience, MOST_AT_ONCE)
        if patience and not found:
            self._busy.waited_in_vain()
        peers, others = self._peers, False
        for fd, _ in found:
            peer = peers.get(fd)
            if peer is None:
                self._acceptable.append(fd)
                continue
            self._note_speaker(fd, alone=not others)
            others = True
            if peer.place is Place.LISTENED:
                peer.place = Place.QUEUED
                self._queue.append(peer)
            elif peer.place is Place.TAKEN:
                self._epoll.unregister(fd)
                peer.heard = False

    def _accept(self) -> None:
        acceptable, self._acceptable = self._acceptable, []
        self._in_a_row += len(acceptable)
        for fd in acceptable:
            accept = self._listeners.get(fd)
            if accept is not None:
                accept()

    def _note_speaker(self, fd: int, *, alone: bool) -> None:
        if alone and fd == self._speaker:
            self._others_missing += 1
        else:
            self._speaker, self._others_missing = fd, 0

    @trio.lowlevel.enable_ki_protection  # as in `_look`
    def receive(self, peer: Peer) -> Event | None:
        """What it says whose turn it is, as `Connection.receive_available`; waits for it where it `goes_on`."""
        patience = self._patience
        if not patience:
            return peer.connection.receive_available()
        try:
            return peer.connection.receive_within(patience)
        except BlockingIOError:
            self._busy.waited_in_vain()
            return None

    def goes_on(self, peer: Peer, alone: bool) -> bool:
        """Whether it that had a turn, with one request, has the next one before it says anything.

        If it is the only one there is, and may be waited for in the thread, there is nobody else to listen to: then
        one system call is enough to wait and to read.

        Args:
            alone: as for `next`.
        """
        if not alone or len(self._peers) != 1 or self._acceptable or self._others_missing < ALONE_AFTER:
            return False
        if self._in_a_row + 1 >= REQUESTS_IN_A_ROW or not peer.connection.can_wait:
            return False
        self._patience = self._busy.patience()
        if not self._patience:
            return False
        self._in_a_row += 1
        return True

    def put_last(self, peer: Peer, requests: int = 1) -> None:
        """It had its turn, with so many requests, and has more to say, which is here already.

        Only while somebody is about to ask for the next one.
        """
        self._in_a_row += requests
        peer.place = Place.QUEUED
        self._again.append(peer)

    def listen(self, peer: Peer, requests: int = 1) -> None:
        """Its turn is over, in which it had so many requests."""
        self._in_a_row += requests
        peer.place = Place.LISTENED
        if not peer.heard:
            fd = peer.connection.sock.fileno()
            self._epoll.register(fd, _READABLE)
            self._peers[fd] = peer
            peer.heard = True

    def forget(self, peer: Peer) -> None:
        """Its socket is about to be closed."""
        fd = peer.connection.sock.fileno()
        if self._peers.get(fd) is peer:
            del self._peers[fd]
            if peer.heard:
                peer.heard = False
                self._epoll.unregister(fd)

    def watch(self, listener: socket.socket, ready: Callable[[], None]) -> None:
        """See `Watch`."""
        fd = listener.fileno()
        if fd >= 0:
            self._epoll.register(fd, _READABLE)
            self._listeners[fd] = ready

    def unwatch(self, listener: socket.socket) -> None:
        """See `Watch`."""
        fd = listener.fileno()
        if self._listeners.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Listen to nobody any more."""
        with contextlib.suppress(RuntimeError):  # the loop is over
            trio.lowlevel.notify_closing(self._epoll)
        self._epoll.close()
        self._peers.clear()
        self._listeners.clear()
        self._acceptable.clear()
        self._queue.clear()
        self._again.clear()
