"""A daemon may wait in the thread of its loop: only for moments, and only where nobody would miss the loop."""

from __future__ import annotations

import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from doubles import RawClient, connect_bytes, invoke_bytes, raw_client, until

from pyroxfer_core import Daemon, Settings, expose
from pyroxfer_core.blocking import Proxy as BlockingProxy
from pyroxfer_core.server.poller import ALONE_AFTER, REQUESTS_IN_A_ROW, Place, Poller
from pyroxfer_core.transport.busypoll import WAIT_TIMES, BusyPoll
from pyroxfer_core.transport.connection import Connection
from pyroxfer_core.transport.sockets import bind_tcp
from pyroxfer_core.wire import Decoder, codec_for
from pyroxfer_core.wire.message import Message, MessageType

HOLD_S = 0.001


class Watched:
    """The descriptor that a poller listens with: it notes how long is waited, and lets something happen meanwhile."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self.waited: list[float] = []
        self.meanwhile: Callable[[], object] = int

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        if timeout:
            self.waited.append(timeout)
            self.meanwhile()
        return self._epoll.poll(0, most)


def speaking() -> tuple[Any, socket.socket]:
    """A client that has something to say, and the other end of its connection."""
    sock, peer = socket.socketpair()
    peer.send(b"x")
    return SimpleNamespace(connection=SimpleNamespace(sock=sock), place=Place.TAKEN, heard=False), peer


class Listening:
    """A poller on a clock that stands still, and a client of it that has always something to say."""

    def __init__(self) -> None:
        self.now = 1.0
        self.busy = BusyPoll(HOLD_S, lambda: self.now)
        self.poller = Poller(self.busy)
        watched: Any = Watched(self.poller._epoll)
        self.watched = self.poller._epoll = watched
        self.client, self.peer = speaking()
        self.sock = self.client.connection.sock
        self.poller.listen(self.client, 0)

    async def settle(self) -> None:
        """Let the client speak until it counts as the only one, and wait in the loop until that is quiet."""
        for _ in range(ALONE_AFTER + 1):
            assert await self.poller.next(alone=True) is self.client
            self.poller.listen(self.client, 0)
        while not self.busy.patience():
            await self.busy.wait_in_loop(self.sock)

    async def waits(self, *, alone: bool = True) -> list[float]:
        """Let the client have a turn; how long was waited for it in the thread."""
        self.watched.waited.clear()
        assert await self.poller.next(alone) is self.client
        self.poller.listen(self.client)
        return list(self.watched.waited)

    def close(self) -> None:
        self.poller.close()
        self.sock.close()
        self.peer.close()


@pytest.fixture
def listening() -> Iterator[Listening]:
    listening = Listening()
    yield listening
    listening.close()


async def test_behind_a_short_wait_in_the_loop_the_next_ones_are_in_the_thread(listening: Listening) -> None:
    assert await listening.waits() == []
    await listening.settle()
    assert [await listening.waits() for _ in range(3)] == [[HOLD_S * WAIT_TIMES]] * 3
    listening.now += HOLD_S
    assert await listening.waits() == []


async def test_with_work_under_way_nobody_waits_in_the_thread(listening: Listening) -> None:
    await listening.settle()
    assert await listening.waits(alone=False) == []


async def test_clients_that_are_not_done_are_not_kept_waiting(listening: Listening) -> None:
    await listening.settle()
    await listening.waits()
    assert await listening.poller.next(alone=True) is listening.client
    listening.poller.put_last(listening.client)
    assert await listening.waits() == []


async def test_several_clients_are_waited_for_in_the_loop(listening: Listening) -> None:
    """There they are found together."""
    await listening.settle()
    other, peer = speaking()
    with peer, other.connection.sock:
        listening.poller.listen(other)
        assert {id(await listening.poller.next(alone=True)) for _ in range(2)} == {id(listening.client), id(other)}
        listening.poller.forget(other)
    listening.poller.listen(listening.client)
    waited = [bool(await listening.waits()) for _ in range(ALONE_AFTER + 2)]
    assert not any(waited[:ALONE_AFTER])
    assert waited[-1]


async def test_the_rest_of_the_loop_has_its_turn_in_spite_of_the_thread(listening: Listening) -> None:
    await listening.settle()
    waited = [bool(await listening.waits()) for _ in range(REQUESTS_IN_A_ROW + 1)]
    assert waited == [True] * REQUESTS_IN_A_ROW + [False]


async def test_a_client_that_falls_silent_is_waited_for_in_the_loop(listening: Listening) -> None:
    await listening.settle()
    listening.sock.recv(1)
    with trio.CancelScope() as scope:
        listening.watched.meanwhile = scope.cancel
        await listening.poller.next(alone=True)
    assert scope.cancelled_caught
    assert len(listening.watched.waited) == 1
    assert not listening.busy.patience()


class Door:
    """A listener that a poller watches; whoever is let in is gone at once."""

    def __init__(self, poller: Poller) -> None:
        self.listener = bind_tcp("127.0.0.1", 0)
        self.let_in = 0
        self._poller = poller
        poller.watch(self.listener, self._let_in)

    def _let_in(self) -> None:
        self.listener.accept()[0].close()
        self.let_in += 1

    def knock(self) -> None:
        socket.create_connection(self.listener.getsockname()).close()

    def close(self) -> None:
        self._poller.unwatch(self.listener)
        self.listener.close()


@pytest.fixture
def door(listening: Listening) -> Iterator[Door]:
    door = Door(listening.poller)
    yield door
    door.close()


async def test_clients_that_come_in_are_waited_for_in_the_thread_as_well(listening: Listening, door: Door) -> None:
    """As those that connect for each call do: between two visits of one client there is nobody else."""
    await listening.settle()
    for number in range(ALONE_AFTER + 2):
        listening.sock.recv(1)
        meanwhile = iter([door.knock, lambda: listening.peer.send(b"x")])
        listening.watched.meanwhile = lambda happens=meanwhile: next(happens)()
        assert await listening.waits() == [HOLD_S * WAIT_TIMES] * 2
        assert door.let_in == number + 1
        listening.poller._in_a_row = 0


async def test_who_comes_in_late_does_not_keep_the_thread_waiting(listening: Listening, door: Door) -> None:
    await listening.settle()
    listening.sock.recv(1)

    def late() -> None:
        listening.now += HOLD_S
        listening.watched.meanwhile = int
        door.knock()

    listening.watched.waited.clear()
    listening.watched.meanwhile = late
    with trio.CancelScope() as scope:
        scope.cancel()
        await listening.poller.next(alone=True)
    assert scope.cancelled_caught
    assert door.let_in == 1
    assert len(listening.watched.waited) == 1


async def test_who_comes_in_waits_for_the_turn_of_those_found_meanwhile(listening: Listening, door: Door) -> None:
    """Some of them leave, and their places are free again."""
    for _ in range(3):
        door.knock()
        await listening.waits()
        before = door.let_in
        door.knock()
        assert await listening.poller.next(alone=True) is listening.client
        assert door.let_in == before + 1
        listening.poller.listen(listening.client)


async def test_those_who_come_in_leave_the_rest_of_the_loop_its_turn(listening: Listening, door: Door) -> None:
    listening.sock.recv(1)
    for _ in range(REQUESTS_IN_A_ROW * 4):
        door.knock()
    seen: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listening.waits)
        while door.let_in < REQUESTS_IN_A_ROW * 4:
            await trio.lowlevel.checkpoint()
            seen.append(door.let_in)
        nursery.cancel_scope.cancel()
    assert {0 < count < REQUESTS_IN_A_ROW * 4 for count in seen} == {True, False}


async def test_a_door_that_was_closed_before_somebody_came_in_stays_closed(listening: Listening, door: Door) -> None:
    door.knock()
    assert await listening.poller.next(alone=True) is listening.client
    listening.poller.unwatch(door.listener)
    listening.poller.listen(listening.client)
    await listening.waits()
    await listening.waits()
    assert door.let_in == 0


def test_ctrl_c_in_the_thread_comes_to_the_program(listening: Listening) -> None:
    """Not to the worker that happens to wait."""
    listening.watched.meanwhile = lambda: signal.raise_signal(signal.SIGINT)

    async def main() -> str:
        async with trio.open_nursery() as nursery:
            await listening.settle()
            nursery.start_soon(listening.waits)
            try:
                await trio.sleep_forever()
            except KeyboardInterrupt:
                return "interrupted"

    assert trio.run(main) == "interrupted"


class LoneClient:
    """A client that had a usual turn, and its poller, which looks at nobody else."""

    def __init__(self, listening: Listening) -> None:
        self.poller, self.busy, self.peer = listening.poller, listening.busy, listening.peer
        self.client = listening.client
        self.connection = self.client.connection = Connection(listening.sock, Decoder(codec_for(502)))

    async def has_its_turn(self, listening: Listening) -> None:
        """The connection counts as the only one that speaks, and what it said was taken."""
        await listening.settle()
        assert await self.poller.next(alone=True) is self.client
        listening.sock.recv(1)

    def goes_on(self, *, alone: bool = True) -> bool:
        return self.poller.goes_on(self.client, alone)


@pytest.fixture
async def lone(listening: Listening) -> LoneClient:
    lone = LoneClient(listening)
    await lone.has_its_turn(listening)
    return lone


async def test_the_only_client_is_waited_for_and_read_in_one_step(lone: LoneClient) -> None:
    lone.poller._patience = 3600.0  # until the client says something
    later = threading.Timer(0.001, lone.peer.send, [invoke_bytes("echo")])
    later.start()
    message = lone.poller.receive(lone.client)
    later.join()
    assert isinstance(message, Message)
    assert message.type == MessageType.INVOKE


async def test_the_only_client_that_says_nothing_is_waited_for_in_the_loop(lone: LoneClient) -> None:
    assert lone.goes_on()
    assert lone.poller.receive(lone.client) is None
    assert not lone.goes_on()
    assert not lone.busy.patience()
    lone.poller.listen(lone.client)
    with trio.CancelScope() as scope:
        scope.cancel()
        await lone.poller.next(alone=True)
    assert scope.cancelled_caught


async def test_the_only_client_that_leaves_is_noticed(lone: LoneClient) -> None:
    assert lone.goes_on()
    lone.peer.close()
    assert lone.poller.receive(lone.client) is None
    assert lone.connection.ended


async def test_the_next_turn_begins_at_once_only_where_there_is_nobody_else(lone: LoneClient) -> None:
    assert not lone.goes_on(alone=False)
    other, peer = speaking()
    with peer, other.connection.sock:
        lone.poller.listen(other, 0)
        assert not lone.goes_on()
        lone.poller.forget(other)
    assert lone.goes_on()


async def test_the_loop_has_its_turn_between_the_turns_of_an_only_client(lone: LoneClient) -> None:
    turns = 0
    while lone.goes_on():
        turns += 1
    assert 0 < turns < REQUESTS_IN_A_ROW
    lone.peer.send(b"x")
    await lone.poller._wait()
    assert lone.goes_on()


async def test_a_connection_that_was_waited_at_never_waits_else() -> None:
    """It would for an hour."""
    sock, peer = socket.socketpair()
    with peer:
        connection = Connection(sock, Decoder(codec_for(502)))
        peer.send(invoke_bytes("echo"))
        assert connection.receive_within(3600.0) is not None
        assert connection.receive_available() is None
        assert connection.peek() is None
        assert connection.fill_nowait() is None
        connection.queue_encoded(*[b"x" * 1_000_000] * 2)
        assert not connection.flush_nowait()
        while connection.unsent and len(connection._out) > 1:
            peer.recv(1_000_000)
            connection.flush_nowait()
        assert not connection.flush_nowait()
        connection.close()


def test_ctrl_c_while_the_only_client_is_waited_for_comes_to_the_program(listening: Listening) -> None:
    """And what the client says meanwhile is not lost."""
    received: list[object] = []
    waits = threading.Event()

    def interrupt(thread: int) -> None:
        waits.wait()
        signal.pthread_kill(thread, signal.SIGINT)
        listening.peer.send(invoke_bytes("echo"))

    async def wait() -> None:
        lone = LoneClient(listening)
        await lone.has_its_turn(listening)
        lone.poller._patience = 3600.0  # until the client says something
        receive = lone.connection.receive_within

        def noted(seconds: float) -> Any:
            waits.set()
            return receive(seconds)

        lone.connection.receive_within = noted  # type: ignore[method-assign]  # tells when the thread waits
        threading.Thread(target=interrupt, args=[threading.get_ident()]).start()
        received.append(lone.poller.receive(lone.client))

    async def main() -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            try:
                await trio.sleep_forever()
            except KeyboardInterrupt:
                return "interrupted"

    assert trio.run(main) == "interrupted"
    assert isinstance(received[0], Message)


@expose
class Service:
    def __init__(self) -> None:
        self.gate = trio.Event()

    async def wait(self) -> None:
        await self.gate.wait()

    async def echo(self, value: object) -> object:
        return value


async def greeted(client: RawClient) -> RawClient:
    await client.send(connect_bytes())
    await client.messages(502, 1)
    return client


async def test_a_daemon_is_alone_when_no_call_waits_for_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: list[bool] = []
    following = Poller.next

    def noted(poller: Poller, nobody_else: bool) -> Any:
        alone.append(nobody_else)
        return following(poller, nobody_else)

    monkeypatch.setattr(Poller, "next", noted)
    service = Service()
    async with Daemon(settings=Settings(busy_poll_s=0)) as daemon:
        daemon.register(service, "thing")
        async with raw_client(daemon.location) as one, raw_client(daemon.location) as other:
            await greeted(one)
            await greeted(other)
            await until(lambda: alone[-1])
            await one.send(invoke_bytes("wait"))
            await until(lambda: not alone[-1])
            await other.send(invoke_bytes("echo", "(1,)"))
            await other.messages(502, 1)
            assert not alone[-1]
            service.gate.set()
            await one.messages(502, 1)
            await other.send(invoke_bytes("echo", "(1,)"))
            await other.messages(502, 1)
            await until(lambda: alone[-1])


async def test_work_beside_calls_counts_until_it_ends() -> None:
    """An item stream that is pushed, for instance."""
    async with Daemon() as daemon:
        crew = daemon._crew
        assert crew is not None
        before = crew._tasks
        crew.spawn(trio.sleep, 0)
        assert crew._tasks == before + 1
        await until(lambda: crew._tasks == before)


async def test_the_calls_of_an_only_client_are_waited_for_until_another_one_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits, receive = [0], Connection.receive_within

    def noted(connection: Connection, seconds: float) -> Any:
        waits[0] += 1
        return receive(connection, seconds)

    def call_until_waited_for(uri: Any) -> None:
        with BlockingProxy(uri) as proxy:
            while not waits[0]:
                assert proxy.echo(1) == 1
            with BlockingProxy(uri) as other:
                assert other.echo(2) == 2
                before = waits[0]
                for number in range(100):
                    assert proxy.echo(number) == number
                assert waits[0] == before

    monkeypatch.setattr(Connection, "receive_within", noted)
    async with Daemon() as daemon:
        await trio.to_thread.run_sync(call_until_waited_for, daemon.register(Service(), "thing"))
