"""Ctrl-C while a large call of the facade is on its way: the call ends, the connection and its session go on."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from facade_doubles import WITHIN_S, serving

from pyroxfer_core import behavior, blocking, expose
from pyroxfer_core.errors import SessionLost

SIZE = 40_000_000
"""More than the kernel keeps on the way."""
STOP_AFTER = 3_000_000
MOST_TRIES = 20


@behavior(instance_mode="session")
@expose
class Session:
    """Made anew for each connection."""

    def __init__(self) -> None:
        self.calls = 0

    def take(self, data: bytes) -> int:
        self.calls += 1
        return len(data)

    def give(self, size: int) -> bytes:
        self.calls += 1
        return bytes(size)

    def count(self) -> int:
        return self.calls


class Narrow:
    """A relay that passes so much of one direction, then nothing until it is told to go on."""

    def __init__(self, target: tuple[str, int], upwards: bool) -> None:
        self.blocked = threading.Event()
        self.go_on = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._target = target
        self._upwards = upwards
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def _run(self) -> None:
        caller, _ = self._listener.accept()
        daemon = socket.create_connection(self._target)
        back = threading.Thread(target=self._relay, args=(daemon, caller, not self._upwards))
        back.start()
        self._relay(caller, daemon, self._upwards)
        back.join()
        for sock in (caller, daemon, self._listener):
            sock.close()

    def _relay(self, source: socket.socket, target: socket.socket, narrow: bool) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                target.sendall(data)
                passed += len(data)
                if narrow and passed > STOP_AFTER:
                    narrow = False
                    self.blocked.set()
                    self.go_on.wait(WITHIN_S)
        except OSError:
            pass
        for sock in (source, target):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def join(self) -> None:
        for thread in self._threads:
            thread.join(WITHIN_S)


@contextmanager
def interrupted_in_the_middle(relay: Narrow) -> Iterator[None]:
    """Ctrl-C while the line takes, or brings, nothing; then it goes on."""

    def interrupt() -> None:
        relay.blocked.wait(WITHIN_S)
        os.kill(os.getpid(), signal.SIGINT)
        relay.go_on.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join(WITHIN_S)


def _send(proxy: blocking.Proxy) -> object:
    return proxy.take(bytes(SIZE))


def _receive(proxy: blocking.Proxy) -> object:
    return proxy.give(SIZE)


@pytest.mark.parametrize("transfer", [_send, _receive])
def test_an_interrupt_in_the_middle_of_a_large_call(transfer: Callable[[blocking.Proxy], object]) -> None:
    """In either direction; the rest of the call is dropped, and the object made for the connection is still there.

    An interrupt that hits the few steps between taking bytes and counting them costs the connection, and says so;
    where it hits is a matter of chance.
    """
    daemon = blocking.Daemon()
    uri = daemon.register(Session, "session")
    port = daemon.sock.getsockname()[1]
    with serving(daemon):
        assert any(goes_on(transfer, str(uri.object), port) for _ in range(MOST_TRIES))


def goes_on(transfer: Callable[[blocking.Proxy], object], name: str, port: int) -> bool:
    """Whether a session outlives an interrupted call."""
    relay = Narrow(("localhost", port), transfer is _send)
    with blocking.Proxy(f"PYRO:{name}@127.0.0.1:{relay.address[1]}") as proxy:
        assert proxy.take(b"small") == 5
        with interrupted_in_the_middle(relay), pytest.raises(KeyboardInterrupt):
            transfer(proxy)
        try:
            assert proxy.count() == (1 if transfer is _send else 2)
            assert proxy.take(bytes(1_000_000)) == 1_000_000
            assert len(proxy.give(1_000_000)) == 1_000_000
        except SessionLost:
            return False
        finally:
            proxy._pyroRelease()
            relay.join()
    return True
