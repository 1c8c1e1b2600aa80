"""Waiting outside the event loop: only while nothing else runs, and never longer than that."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import trio

from pyroxfer_core.errors import ConnectionClosedError
from pyroxfer_core.transport import alone
from pyroxfer_core.transport.connection import Connection
from pyroxfer_core.wire import Decoder, codec_for
from pyroxfer_core.wire.message import Message, MessageType

pytestmark = pytest.mark.deadline(30)
PING = Message(MessageType.PING, 1, "ping", 0, b"x" * 20)
ENOUGH = alone.ALONE_AFTER + 5


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait counts as a short one, however slow the machine is."""
    monkeypatch.setattr(alone, "BRIEF_S", 1.0)
    monkeypatch.setattr(alone, "_BRIEF_MS", 1000)


@pytest.fixture
def echoed() -> Iterator[socket.socket]:
    """A socket whose other end is a thread that sends everything back."""
    ours, theirs = socket.socketpair()

    def echo() -> None:
        while data := theirs.recv(65536):
            time.sleep(0.002)  # long enough that the answer is waited for
            theirs.sendall(data)

    thread = threading.Thread(target=echo)
    thread.start()
    with ours, theirs:
        yield ours
        if ours.fileno() >= 0:
            ours.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def connection_on(sock: socket.socket) -> Connection:
    return Connection(sock, Decoder(codec_for(502)))


async def ping(connection: Connection, times: int) -> None:
    for _ in range(times):
        await connection.send(PING)
        assert await connection.receive() == PING


async def ping_until_alone(connection: Connection) -> None:
    """Where the machine is slow, some answers are there already, and not waited for."""
    for _ in range(100 * ENOUGH):
        await ping(connection, 1)
        if is_alone(connection):
            return
    pytest.fail("the task never counted as alone")


def is_alone(connection: Connection) -> bool:
    return connection._input is not None and connection._input.quick


async def test_a_task_that_is_all_that_runs_waits_by_itself(echoed: socket.socket) -> None:
    connection = connection_on(echoed)
    await ping_until_alone(connection)
    await ping(connection, 1)
    connection.close()
    with pytest.raises(ConnectionClosedError):
        await connection.receive()


async def test_the_loop_goes_on_as_soon_as_another_task_has_something_to_do(echoed: socket.socket) -> None:
    connection = connection_on(echoed)
    await ping_until_alone(connection)
    ran = trio.Event()

    async def other() -> None:
        ran.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await ping(connection, 1)
        assert not is_alone(connection)
    assert ran.is_set()
    await ping(connection, 2)
    connection.close()


async def test_nobody_is_alone_while_two_take_turns(echoed: socket.socket) -> None:
    connection = connection_on(echoed)
    turns = 0

    async def busy() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(busy)
        await ping(connection, 2 * ENOUGH)
        assert turns > ENOUGH
        assert not is_alone(connection)
        nursery.cancel_scope.cancel()
    connection.close()


async def test_a_deadline_that_comes_soon_keeps_the_task_in_the_loop(echoed: socket.socket) -> None:
    connection = connection_on(echoed)
    with trio.move_on_after(1.5 * alone.BRIEF_S):
        await ping(connection, ENOUGH)
        assert not is_alone(connection)
    connection.close()


async def test_silence_leads_back_into_the_loop(echoed: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = connection_on(echoed)
    await ping_until_alone(connection)
    monkeypatch.setattr(alone, "_BRIEF_MS", 1)
    with trio.move_on_after(2.5 * alone.BRIEF_S) as scope:
        await connection.receive()
    assert scope.cancelled_caught
    assert not is_alone(connection)
    connection.close()
