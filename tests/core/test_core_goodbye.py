"""A daemon that goes away says which calls it has read: whatever was on its way behind them has not run."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pytest
import trio
from doubles import until
from own_doubles import OWN, OwnServer, own_client, own_server

from pyroxfer_core import Daemon, Proxy, Settings, blocking, expose, introduce, open_connection
from pyroxfer_core.errors import ConnectionClosedError, Outcome, RefusedError
from pyroxfer_core.wire.features import OUTCOME_KEY, Feature
from pyroxfer_core.wire.message import Body, Flags, Message, MessageType
from pyroxfer_core.wire.session import ClientSession, ServerSession, last_read

EMPTY = Message(MessageType.GOAWAY, 0, "ping", 0, b"")


def invoke(session: ClientSession[str], waiter: str | None = "call") -> Message:
    return session.invoke(waiter, Message(MessageType.INVOKE, 0, "serpent", 0, b"call"))


def joined() -> tuple[ClientSession[str], ServerSession]:
    client: ClientSession[str] = ClientSession(offer=Feature.ALL)
    server = ServerSession(bytes(16))
    hello = client.connect(b"hello", "serpent", 0, {}, None)
    server.receive(hello)
    client.receive(server.accept(hello, b"welcome", {}, None))
    server.receive(first := invoke(client))
    server.last_seq = first.seq
    client.receive(Message(MessageType.RESULT, first.seq, "serpent", 0, b"result"))
    return client, server


def unread_of(client: ClientSession[str]) -> set[int]:
    return {seq for seq in client.pending if client.is_unread(seq)}


@pytest.mark.parametrize("first", [0, 0xFFFF - 3], ids=["early", "wrapping"])
def test_calls_behind_the_last_one_that_was_read_are_known(first: int) -> None:
    """One-way calls are numbered, too, and have nobody who waits."""
    client, server = joined()
    client.seq = server.last_seq = first
    read = [invoke(client).seq for _ in range(3)]
    server.last_seq = read[-1]
    invoke(client, None)
    unread = [invoke(client).seq for _ in range(3)]
    client.receive(server.goaway())
    assert unread_of(client) == set(unread)


def test_nothing_is_known_without_a_number_or_where_one_was_left_out() -> None:
    """A call that is in flight for 65,000 others makes numbers come out of order."""
    client, server = joined()
    assert invoke(client).seq == 2
    client.receive(EMPTY)
    assert unread_of(client) == set()
    client.seq = 0xFFFF
    assert [invoke(client).seq for _ in range(3)] == [0, 1, 3], "2 is in flight"
    client.receive(server.goaway())
    assert unread_of(client) == set()


def test_the_first_part_of_a_large_request_counts_as_read() -> None:
    """Small ones may overtake it, so it can come late; an answer in pieces of the other direction is harmless."""
    _, server = joined()
    for number, last in ((5, 5), (4, 5), (7, 7)):
        server.receive(Message(MessageType.BEGIN, number, "ping", 0, b""))
        assert server.last_seq == last


@pytest.mark.parametrize("tells", [True, False])
async def test_a_call_that_was_not_read_is_made_again(tells: bool) -> None:
    """Two calls are on their way to a daemon that has read the first of them when it goes."""
    connections = 0

    async def play(server: OwnServer) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            while (again := await server.hear()) is not None:
                await server.answer(again, "second daemon")
            return
        first, second = await server.hear(), await server.hear()
        assert first is not None
        assert second is not None
        server.session.last_seq = first.seq
        await server.say(server.session.goaway() if tells else EMPTY)
        await server.answer(first, "first daemon")

    results: list[Any] = []
    async with own_server(play, {"total"}) as uri, Proxy(uri) as proxy:

        async def call() -> None:
            try:
                results.append(await proxy.total())
            except ConnectionClosedError as error:
                results.append(error.outcome)

        await proxy._pyroBind()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            nursery.start_soon(call)
    assert results == ["first daemon", "second daemon" if tells else Outcome.UNKNOWN]


@pytest.mark.parametrize("tells", [True, False])
async def test_the_same_without_an_event_loop(tells: bool) -> None:
    connections = 0

    async def play(server: OwnServer) -> None:
        nonlocal connections
        connections += 1
        request = await server.hear()
        assert request is not None
        if connections == 1:
            await server.say(server.session.goaway() if tells else EMPTY)
        else:
            await server.answer(request, "second daemon")

    def call(uri: str) -> Any:
        with blocking.Proxy(uri) as proxy:
            try:
                return proxy.total()
            except ConnectionClosedError as error:
                return error.outcome

    async with own_server(play, {"total"}) as uri:
        result = await trio.to_thread.run_sync(call, uri)
    assert result == ("second daemon" if tells else Outcome.UNKNOWN)


@pytest.mark.parametrize(("facade", "says_goodbye"), [(False, True), (True, True), (True, False)])
async def test_a_call_that_is_refused_after_the_goodbye_is_made_again(facade: bool, says_goodbye: bool) -> None:
    """At once, and whatever is said about other retries: the daemon has gone, not this call failed. The facade makes
    a call that was refused for any other reason once, as Pyro does."""
    connections = 0

    async def play(server: OwnServer) -> None:
        nonlocal connections
        connections += 1
        while (request := await server.hear()) is not None:
            if connections > 1 or request.seq == 1:
                await server.answer(request, f"daemon {connections}")
                continue
            if says_goodbye:
                await server.say(EMPTY)
            body = OWN.dumps_exception(RefusedError("draining"), [])
            refused: dict[str, Body] = {OUTCOME_KEY: server.session.grant.outcome(b"N")}
            await server.say(Message(MessageType.RESULT, request.seq, "msgpack", Flags.EXCEPTION, body, refused))

    def call_twice(uri: str) -> list[Any]:
        with blocking.Proxy(uri) as proxy:
            return [proxy.total(), proxy.total()]

    async with own_server(play, {"total"}) as uri, Proxy(uri) as proxy:
        if not facade:
            assert [await proxy.total(), await proxy.total()] == ["daemon 1", "daemon 2"]
        elif says_goodbye:
            assert await trio.to_thread.run_sync(call_twice, uri) == ["daemon 1", "daemon 2"]
        else:
            with pytest.raises(RefusedError, match="draining"):
                await trio.to_thread.run_sync(call_twice, uri)


@expose
class Worker:
    def __init__(self) -> None:
        self.calls = 0
        self.gate = trio.Event()

    async def hang(self) -> int:
        self.calls += 1
        await self.gate.wait()
        return self.calls

    async def count(self) -> int:
        self.calls += 1
        return self.calls


async def test_the_last_call_that_was_read_is_told() -> None:
    """It is answered, and later ones are refused."""
    worker = Worker()
    async with Daemon(settings=Settings(shutdown_grace_s=5)) as daemon:
        uri = daemon.register(worker)
        async with own_client(uri) as client, trio.open_nursery() as nursery:
            assert await client.call("count") == 1
            running = client.invoke("hang")
            await client.say(running)
            await until(lambda: worker.calls == 2)
            nursery.start_soon(daemon.aclose)
            assert last_read((await client.expect(MessageType.GOAWAY)).body) == running.seq
            late = client.invoke("count")
            await client.say(late)
            assert (await client.expect(MessageType.RESULT)).seq == late.seq
            worker.gate.set()
            answer = await client.expect(MessageType.RESULT)
            assert (answer.seq, OWN.loads(answer.body)) == (running.seq, 2)
            assert await client.hear() is None
    assert worker.calls == 2


async def test_a_thread_that_has_the_connection_begins_nothing_behind_what_is_told() -> None:
    """It reads requests by itself, and could take one in the very moment in which the last one is told."""
    go_on = threading.Event()

    @expose
    class Plain:
        def wait(self) -> int:
            go_on.wait(60)
            return 1

    def wait(seq: int, **annotations: bytes) -> Message:
        body = b"# serpent utf-8 python3.2\n('plain','wait',(),{})"
        return Message(MessageType.INVOKE, seq, "serpent", 0, body, dict(annotations))

    async with Daemon(settings=Settings(shutdown_grace_s=5)) as daemon:
        daemon.register(Plain(), "plain")
        with closing(await open_connection(daemon.location)) as client:
            grant = (await introduce(client, "plain", Settings(), offer=Feature.GOAWAY)).grant
            go_on.set()
            await client.send(wait(1, PXFT=grant.confirmation))
            assert await client.receive() is not None
            go_on.clear()
            await client.send(wait(2))
            await until(lambda: [peer for peer in daemon.peers if peer.loan is not None])
            (peer,) = daemon.peers
            loan = peer.loan
            assert loan is not None
            peer.go_away()
            assert loan._over
            notice = await client.receive()
            assert isinstance(notice, Message)
            assert (notice.type, last_read(notice.body)) == (MessageType.GOAWAY, 2)
            go_on.set()
            answer = await client.receive()
            assert isinstance(answer, Message)
            assert (answer.seq, answer.body) == (2, b"# serpent utf-8 python3.2\n1")


async def test_who_has_just_connected_is_told_when_its_first_call_comes() -> None:
    """Before that nothing is agreed on, and the daemon waits a moment for it rather than cut a call on its way."""
    worker = Worker()
    async with Daemon() as daemon, own_client(daemon.register(worker)) as client, trio.open_nursery() as nursery:
        await until(lambda: daemon.peers)
        nursery.start_soon(daemon.aclose)
        await until(lambda: daemon.draining)
        await client.say(client.invoke("count"))
        assert last_read((await client.expect(MessageType.GOAWAY)).body) == 0
    assert worker.calls == 0
