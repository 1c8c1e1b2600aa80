"""A line between a client and a server that breaks as told: a relay in one loop, without threads."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from dataclasses import dataclass

UP, DOWN = 0, 1
"""Towards the server, and back."""
PIECE = 64 * 1024


@dataclass
class Fault:
    """What happens once so many bytes went one way, all connections of a run together."""

    kind: str
    """``none``, ``cut``, ``flip``, ``kill client`` or ``kill server``."""
    way: int = UP
    at: int = 0
    bit: int = 0


class _Half:
    """One way of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, way: int) -> None:
        self.source, self.sink, self.way = source, sink, way
        self.waiting = bytearray()
        self.ended = False


class Line:
    """Relays to ``target`` until the client process has ended."""

    def __init__(self, target: tuple[str, int], fault: Fault) -> None:
        self._target = target
        self._fault = fault
        self._passed = [0, 0]
        self._selector = selectors.DefaultSelector()
        self._halves: dict[socket.socket, tuple[_Half, _Half]] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.happened = False
        self.location = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self, client: int, server: int, patience_s: float) -> int | None:
        """The client's exit code, negative for a signal; None when it hung and was killed."""
        watched = os.pidfd_open(client)
        self._selector.register(watched, selectors.EVENT_READ)
        until = time.monotonic() + patience_s
        try:
            while time.monotonic() < until:
                for key, _ in self._selector.select(0.2):
                    if key.fileobj == watched:
                        return os.waitstatus_to_exitcode(os.waitpid(client, 0)[1])
                    self._serve(key.fileobj, client, server)
            os.kill(client, signal.SIGKILL)
            os.waitpid(client, 0)
            return None
        finally:
            os.close(watched)
            self.close()

    def close(self) -> None:
        """Break everything that is still connected."""
        for sock in list(self._halves):
            self._drop(sock)
        self._listener.close()
        self._selector.close()

    def _serve(self, ready: object, client: int, server: int) -> None:
        if ready is self._listener:
            self._accept()
        elif isinstance(ready, socket.socket) and ready in self._halves:
            try:
                self._move(ready, client, server)
            except OSError:
                self._drop(ready)

    def _accept(self) -> None:
        here, _ = self._listener.accept()
        try:
            there = socket.create_connection(self._target, timeout=1)
        except OSError:
            here.close()
            return
        up, down = _Half(here, there, UP), _Half(there, here, DOWN)
        for sock, pair in ((here, (up, down)), (there, (down, up))):
            sock.setblocking(False)
            self._halves[sock] = pair
            self._selector.register(sock, selectors.EVENT_READ)

    def _move(self, ready: socket.socket, client: int, server: int) -> None:
        coming, going = self._halves[ready]
        if going.waiting:
            del going.waiting[: ready.send(going.waiting)]
        if not coming.waiting and not coming.ended:
            self._take(coming, client, server)
        if coming.waiting:
            try:
                del coming.waiting[: coming.sink.send(coming.waiting)]
            except BlockingIOError:
                pass
        self._watch(ready)
        self._watch(coming.sink)

    def _take(self, half: _Half, client: int, server: int) -> None:
        try:
            data = bytearray(half.source.recv(PIECE))
        except BlockingIOError:
            return
        if not data:
            half.ended = True
            half.sink.shutdown(socket.SHUT_WR)
            return
        begin = self._passed[half.way]
        self._passed[half.way] += len(data)
        fault = self._fault
        if not self.happened and fault.kind != "none" and half.way == fault.way and self._passed[half.way] > fault.at:
            self.happened = True
            place = fault.at - begin
            if fault.kind == "flip":
                data[place] ^= 1 << fault.bit
            else:
                del data[place:]
                half.sink.setblocking(True)
                half.sink.settimeout(1)
                half.sink.sendall(data)
                self._strike(fault.kind, client, server)
                raise OSError("the fault")
        half.waiting += data

    def _strike(self, kind: str, client: int, server: int) -> None:
        if kind == "cut":
            for sock in list(self._halves):
                self._drop(sock)
        else:
            os.kill(client if kind == "kill client" else server, signal.SIGKILL)

    def _watch(self, sock: socket.socket) -> None:
        if sock not in self._halves:
            return
        coming, going = self._halves[sock]
        events = selectors.EVENT_WRITE if going.waiting else 0
        if not coming.waiting and not coming.ended:
            events |= selectors.EVENT_READ
        try:
            self._selector.modify(sock, events)
        except (KeyError, ValueError):
            if events:
                self._selector.register(sock, events)
            elif sock in self._selector.get_map():
                self._selector.unregister(sock)

    def _drop(self, sock: socket.socket) -> None:
        pair = self._halves.pop(sock, None)
        if pair is None:
            return
        other = pair[0].sink
        for each in (sock, other):
            self._halves.pop(each, None)
            if each.fileno() >= 0 and each in self._selector.get_map():
                self._selector.unregister(each)
            each.close()
