"""Shared by the tests of the blocking facade: a daemon in a thread, and the service it serves."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from doubles import connectok_bytes, result_bytes

from pyroxfer_core import expose
from pyroxfer_core.blocking import Daemon, Proxy
from pyroxfer_core.wire import Decoder, codec_for
from pyroxfer_core.wire.message import Message, MessageType

WITHIN_S = 60.0


@expose
class Service:
    """One object for all callers."""

    def __init__(self) -> None:
        self.ran = 0
        self.release = threading.Event()
        self.entered = threading.Semaphore(0)
        self.items = {0: "zero", 1: "one"}

    def echo(self, value: object) -> object:
        self.ran += 1
        return value

    def wait(self, label: str) -> str:
        """Answers only when it is released."""
        self.entered.release()
        self.release.wait(WITHIN_S)
        return label

    def count(self, end: int) -> Iterator[int]:
        yield from range(end)

    def fail(self, text: str) -> None:
        raise ValueError(text)

    @property
    def level(self) -> int:
        return 7

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> str:
        if index not in self.items:
            raise IndexError(index)
        return self.items[index]

    def __setitem__(self, index: int, value: str) -> None:
        self.items[index] = value

    def __delitem__(self, index: int) -> None:
        del self.items[index]


@contextmanager
def serving(daemon: Daemon) -> Iterator[Daemon]:
    """Run the daemon's loop in a thread."""
    thread = threading.Thread(target=daemon.requestLoop)
    thread.start()
    while daemon.home is None and thread.is_alive():  # what is offered before it serves cannot be called back
        time.sleep(0.001)
    try:
        yield daemon
    finally:
        daemon.shutdown()
        thread.join(WITHIN_S)
        assert not thread.is_alive()
        daemon.close()


Answers = Callable[[Message], bytes]


class StockServer:
    """A stock daemon that takes one connection after another and answers as it is told.

    ``answers`` gets each request; what it returns is sent, nothing closes the connection. The first connections are
    refused with ``refusals``.
    """

    def __init__(self, answers: Answers, refusals: Sequence[str] = ()) -> None:
        self._answers = answers
        self._refusals = list(refusals)
        self._stopping = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.location = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[Message] = []
        self.connections = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            with sock:
                if self._stopping:
                    return
                self.connections += 1
                self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        decoder = Decoder(codec_for(502))
        greeted = False
        while data := _received(sock):
            decoder.feed(data)
            while (event := decoder.next_event()) is not None:
                assert isinstance(event, Message)
                if not greeted:
                    greeted = True
                    if self._refusals:
                        sock.sendall(refusal_bytes(self._refusals.pop()))
                        return
                    sock.sendall(connectok_bytes())
                    continue
                self.requests.append(event)
                answer = self._answers(event)
                if not answer:
                    return
                sock.sendall(answer)

    def proxy(self) -> Proxy:
        return Proxy(f"PYRO:thing@{self.location}")

    def __enter__(self) -> StockServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping = True
        with socket.create_connection(self._listener.getsockname()):
            pass
        self._thread.join(WITHIN_S)
        self._listener.close()


def refusal_bytes(text: str) -> bytes:
    body = f"# serpent utf-8 python3.2\n{text!r}".encode()
    return codec_for(502).encode(Message(MessageType.CONNECTFAIL, 0, "serpent", 0, body))


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except ConnectionError:
        return b""


def plain_answer(request: Message) -> bytes:
    """The same answer to everything."""
    return result_bytes("'answer'", request.seq)
