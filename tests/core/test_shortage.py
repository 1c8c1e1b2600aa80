"""What the log says while no connection can be accepted for want of descriptors."""

from __future__ import annotations

import errno
import logging
import os
import socket
from typing import Any

import pytest
import trio
from doubles import until
from trio.testing import MockClock

from pyroxfer_core.gateway.http import server
from pyroxfer_core.gateway.request import Receive, Scope, Send
from pyroxfer_core.transport.shortage import PAUSE_S, TELL_EVERY_S, Shortage
from pyroxfer_core.transport.sockets import bind_tcp

NONE_LEFT = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_a_shortage_that_lasts(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    shortage = Shortage()
    for _ in range(round(2.5 * TELL_EVERY_S / PAUSE_S)):
        shortage.met(NONE_LEFT)
        await trio.sleep(PAUSE_S)
    shortage.over()
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3 + [logging.WARNING]
    first, second, _, again = caplog.messages
    assert first == "cannot accept connections: Too many open files; trying again"
    assert "times more since the last message" in second
    assert again.startswith("connections are accepted again (and ")


async def test_descriptors_that_come_and_go(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Two messages in the time of one, however often it turns; and every failure is counted."""
    shortage = Shortage()
    for _ in range(5):
        shortage.met(NONE_LEFT)
        if shortage.told:
            shortage.over()
    assert [text.partition(" (")[0] for text in caplog.messages] == [
        "cannot accept connections: Too many open files; trying again",
        "connections are accepted again",
    ]
    await trio.sleep(TELL_EVERY_S)
    shortage.met(NONE_LEFT)
    assert caplog.messages[2].endswith("(and 4 times more since the last message)")


class Scarce(socket.socket):
    """Accepts at the third try."""

    failures = 2

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            self.failures -= 1
            raise NONE_LEFT
        return super().accept()


async def test_the_gateway_tells_it_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(server, "PAUSE_S", 0.001)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("nobody asks anything")

    listener = Scarce(fileno=bind_tcp("127.0.0.1", 0).detach())
    stop, http = trio.Event(), server.HttpServer(app)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(http.serve, [listener], stop)
        with socket.create_connection(listener.getsockname()):
            await until(lambda: http.connections == 1)
            stop.set()
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
