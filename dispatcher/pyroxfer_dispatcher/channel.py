"""A socket of the hub: hands out what comes in, takes what is to go out, and says when it is too much."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from pyroxfer_core import StreamSocket
from pyroxfer_core.wire import Body

from .hub import LEFT, ONCE, READ, WRITE, Hub

RECEIVE_BYTES: Final = 128 * 1024
"""Most bytes of one receive."""
HIGH_WATER: Final = 128 * 1024
"""With more than this waiting to go out, whoever sends it should stop."""
JOIN_BELOW: Final = 64 * 1024
"""Up to this size copying buffers into one costs less than handing each of them over."""
MAX_BUFFERS: Final = 256
"""Handed over with one call; kernels take no more than 1024."""

Opened = tuple[StreamSocket, bytes]
"""A connection after its handshake: its socket, and what came behind the handshake already."""
Take = Callable[[bytes], None]
Lose = Callable[[str], None]
Drain = Callable[[], None]


def _ignore() -> None:
    pass


class Channel:
    """One non-blocking socket, owned by it from now on.

    Args:
        on_data: called with what came; never after `close`, nor while paused.
        on_lost: called once when the peer is gone, with the reason; the channel is closed by then.
    """

    __slots__ = (
        "_events",
        "_held",
        "_hub",
        "_on_data",
        "_on_drained",
        "_on_lost",
        "_out",
        "_paused",
        "_received",
        "_sock",
        "closed",
        "pending",
        "queued",
    )

    def __init__(self, hub: Hub, sock: StreamSocket, on_data: Take, on_lost: Lose) -> None:
        self._hub = hub
        self._sock = sock
        self._on_data = on_data
        self._on_lost = on_lost
        self._on_drained: Drain = _ignore
        self._out: list[Body] = []
        self._held = 0
        """How many buffers are gathered; 0 while none is."""
        self._paused = False
        self.closed = False
        self.pending = 0
        """Bytes that wait to go out."""
        self._received = 0
        self.queued = 0
        """Bytes handed over so far; those up to ``queued - pending`` have left."""
        self._events = READ | LEFT
        hub.watch(sock, self, self._events)

    @property
    def is_paused(self) -> bool:
        """Whether nothing is taken in for now."""
        return self._paused

    @property
    def is_clogged(self) -> bool:
        """Whether enough waits to go out; nobody need wait for what never will, because the channel is closed."""
        return self.pending > HIGH_WATER and not self.closed

    def on_drained(self, call: Drain) -> None:
        """Call this once when everything has left."""
        self._on_drained = call

    @property
    def moved(self) -> int:
        """Bytes that went through so far, both ways."""
        return self._received + self.queued - self.pending

    @property
    def is_silent(self) -> bool:
        """Whether nothing waits to be read, not even the end; as of a moment ago, where the hub knows."""
        if not self._paused and self._hub.was_silent(self._sock):
            return True
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    # -- in

    def pause(self) -> None:
        """Take nothing more in for now. A peer that leaves is noticed all the same."""
        if not self._paused and not self.closed:
            self._paused = True
            self._watch_for(self._events & ~READ | LEFT)

    def resume(self) -> None:
        """Go on taking in."""
        if self._paused and not self.closed:
            self._paused = False
            self._watch_for(self._events & ~ONCE | READ | LEFT)

    def on_ready(self, events: int) -> None:
        """Called by the hub."""
        if events & WRITE:
            self._push()
        if self.closed:
            return
        if not self._paused and events & ~WRITE:
            self._receive()
        elif self._paused and events & ~(READ | WRITE):
            self._look(events)

    def _receive(self) -> None:
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error.strerror or "connection lost")
            return
        if data:
            self._received += len(data)
            self._on_data(data)
        else:
            self._lost("it closed the connection")

    def _look(self, events: int) -> None:
        """The peer has sent its last while nobody listens: it is gone, unless something waits to be read before."""
        try:
            waits = self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error.strerror or "connection lost")
            return
        if waits:
            gone_for_good = events & ~(READ | WRITE | LEFT)
            self._watch_for(self._events & ~LEFT | (ONCE if gone_for_good else 0))
        else:
            self._lost("it closed the connection")

    # -- out

    def write(self, data: Body) -> None:
        """Send now what the kernel takes, the rest later, in order. A lost peer is told by ``on_lost`` only."""
        if self.closed:
            return
        size = len(data)
        self.queued += size
        if self._held or self._out:
            self._out.append(data)
            self.pending += size
            if self._held and len(self._out) >= self._held:
                self._flush()
            return
        try:
            sent = self._sock.send(data)
        except OSError:
            sent = 0  # it takes nothing now; or it is lost, which the hub reports when who is writing has finished
        if sent != size:
            self._out.append(memoryview(data)[sent:] if sent else data)
            self.pending += size - sent
            self._watch_for(self._events | WRITE)

    def write_both(self, head: Body, body: Body) -> None:
        """Send two buffers in a row, with one call where nothing waits before them."""
        if self.closed or self._held or self._out:
            self.write(head)
            self.write(body)
            return
        size = len(head) + len(body)
        self.queued += size
        try:
            sent = self._sock.sendmsg([head, body])
        except OSError:
            sent = 0  # as above
        if sent != size:
            self._out += head, body
            _drop(self._out, sent)
            self.pending += size - sent
            self._watch_for(self._events | WRITE)

    def hold(self, most: int = MAX_BUFFERS) -> None:
        """Gather what is written from now until `let_go`, and send up to so many buffers at once."""
        self._held = most

    def let_go(self) -> None:
        """Send what was gathered, as `write` does. Without `hold` before it nothing happens."""
        if self._held:
            self._held = 0
            self._flush()

    def _flush(self) -> None:
        if not self._out or self._events & WRITE:
            return
        try:
            self._send_out()
        except OSError:
            pass  # the hub reports it, when whoever is writing now has finished
        if self._out:
            self._watch_for(self._events | WRITE)
        else:
            self._tell_drained()

    def _push(self) -> None:
        try:
            self._send_out()
        except OSError as error:
            self._lost(error.strerror or "connection lost")
            return
        if not self._out:
            self._watch_for(self._events & ~WRITE)
            self._tell_drained()

    def _tell_drained(self) -> None:
        drained, self._on_drained = self._on_drained, _ignore
        drained()

    def _send_out(self) -> None:
        """Send until nothing is left or the kernel takes no more. OSError: the peer is gone."""
        out = self._out
        if len(out) > 1 and self.pending <= JOIN_BELOW:
            out[:] = [b"".join(out)]
        while out:
            try:
                sent = self._sock.send(out[0]) if len(out) == 1 else self._sock.sendmsg(out[:MAX_BUFFERS])
            except BlockingIOError:
                return
            self.pending -= sent
            _drop(out, sent)

    # -- the end

    def close(self) -> None:
        """Close at once; nothing is called any more. Twice is fine."""
        if not self.closed:
            self.closed = True
            self._out.clear()
            self._hub.forget(self._sock)
            self._sock.close()

    def give_up(self) -> None:
        """Called by the hub when serving this failed."""
        self._lost("an error inside the dispatcher")

    def _lost(self, reason: str) -> None:
        self.close()
        self._on_lost(reason)

    def _watch_for(self, events: int) -> None:
        if events != self._events and not self.closed:
            self._events = events
            self._hub.change(self._sock, events)


def _drop(buffers: list[Body], count: int) -> None:
    """Take so many bytes off the front."""
    whole = 0
    for buffer in buffers:
        if count < len(buffer):
            break
        count -= len(buffer)
        whole += 1
    del buffers[:whole]
    if count:
        buffers[0] = memoryview(buffers[0])[count:]
