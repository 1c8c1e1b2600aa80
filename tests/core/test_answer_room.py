"""Clients that ask for many large answers and read none: what waits for them is bounded, and none of it is lost."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from doubles import until
from own_doubles import CODEC, OWN, OwnClient, own_client

from pyroxfer_core import Daemon, Settings, current_call, expose
from pyroxfer_core.errors import ConnectionClosedError
from pyroxfer_core.server.peer import Peer
from pyroxfer_core.server.room import ROOM, AnswerRoom
from pyroxfer_core.transport.connection import Connection
from pyroxfer_core.wire import Decoder
from pyroxfer_core.wire.message import Flags, Message, MessageType
from pyroxfer_core.wire.pieces import MAX_BODIES, MAX_PIECE, Incoming

MIB = 1024 * 1024
CALLS = 40
"""Of one MiB each: more than what two sockets and the room hold."""
MOST = ROOM + MAX_BODIES * MAX_PIECE
"""What may be held; pieces that are leaving count twice."""
BESIDE = ("beside", "whole")


@expose
class Maker:
    """Makes large answers in both ways, and watches what its connection holds."""

    def __init__(self) -> None:
        self.came = self.made = self.gone = self.small_calls = self.most = 0

    async def beside(self, number: int) -> int:
        """The bytes in an annotation."""
        current_call.response_annotations["BLOC"] = await self._make(number)
        return number

    async def whole(self, number: int) -> bytes:
        """The bytes as the result, which leaves in pieces."""
        return await self._make(number)

    async def _make(self, number: int) -> bytes:
        self.came += 1
        try:
            async with current_call.room_for(MIB):
                await trio.lowlevel.checkpoint()
                self.most = max(self.most, current_call.client.room.held)
                self.made += 1
                return bytes([number]) * MIB
        finally:
            self.gone += 1

    async def huge(self) -> None:
        """Needs more room than there is."""
        async with current_call.room_for(ROOM + 1):
            self.made += 1

    async def small(self) -> str:
        self.small_calls += 1
        return "small"


@asynccontextmanager
async def asking(method: str) -> AsyncIterator[tuple[Daemon, Maker, OwnClient, list[Message]]]:
    """A client whose requests have all come, and that has read nothing."""
    maker = Maker()
    async with Daemon(port=0, settings=Settings(shutdown_grace_s=0.0)) as daemon:
        async with own_client(daemon.register(maker, "maker")) as client:
            assert await client.call("small") == "small"
            requests = [client.invoke(method, number) for number in range(CALLS)]
            await client.say(*requests)
            await until(lambda: maker.came == CALLS)
            await trio.testing.wait_all_tasks_blocked(0.02)
            yield daemon, maker, client, requests


def peer_of(daemon: Daemon) -> Peer:
    (peer,) = daemon.peers
    return peer


async def answers(client: OwnClient, count: int) -> dict[int, Message]:
    """The next answers, by sequence number, whichever way they come."""
    incoming = Incoming(2 * MIB, 64 * MIB, frozenset({MessageType.RESULT}))
    found: dict[int, Message] = {}
    while len(found) < count:
        message = await client.hear()
        assert message is not None
        if message.type in (MessageType.BEGIN, MessageType.PIECE):
            arrival = incoming.take(message)
            if arrival is None:
                continue
            message = arrival.message
        if message.type == MessageType.RESULT:
            assert message.seq not in found
            found[message.seq] = message
    return found


def made_of(answer: Message) -> bytes:
    """The bytes that were asked for."""
    assert not answer.flags & Flags.EXCEPTION
    block = answer.annotations.get("BLOC")
    return bytes(OWN.loads(answer.body) if block is None else block)


@pytest.mark.parametrize("method", BESIDE)
async def test_what_waits_is_bounded_and_who_reads_at_last_gets_it_all(method: str) -> None:
    """Meanwhile requests are read on: small calls run, and one that waits can be cancelled."""
    async with asking(method) as (daemon, maker, client, requests):
        assert maker.most <= MOST
        assert peer_of(daemon).room.held <= MOST
        assert maker.made < CALLS
        small, unwanted = client.invoke("small"), requests.pop()
        await client.say(small, client.session.cancel(unwanted.seq))
        await until(lambda: maker.small_calls == 2 and maker.gone == maker.made + 1)
        found = await answers(client, CALLS + 1)
        assert maker.made == CALLS - 1
        assert maker.most <= MOST
        assert OWN.loads(found[small.seq].body) == "small"
        assert found[unwanted.seq].flags & Flags.EXCEPTION
        for number, request in enumerate(requests):
            assert made_of(found[request.seq]) == bytes([number]) * MIB
        await until(lambda: peer_of(daemon).room.held == 0)


@pytest.mark.parametrize("method", BESIDE)
async def test_calls_that_wait_end_with_their_connection(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async with asking(method) as (daemon, maker, client, _):
        await client.stream.aclose()
        await until(lambda: maker.gone == CALLS and not daemon.peers)
        assert maker.made < CALLS
        assert not caplog.records


async def test_what_was_made_arrives_although_all_that_waits_is_cancelled() -> None:
    async with asking("beside") as (_, maker, client, requests):
        waiting = requests[maker.made :]
        await client.say(*(client.session.cancel(request.seq) for request in waiting))
        await until(lambda: maker.gone == CALLS)
        found = await answers(client, CALLS)
        for number, request in enumerate(requests[: maker.made]):
            assert made_of(found[request.seq]) == bytes([number]) * MIB
        assert await client.call("small") == "small"


async def test_who_waits_may_be_sending_for_others_and_says_so_when_it_is_cancelled() -> None:
    mine, other = socket.socketpair()
    with other:
        connection, told = Connection(mine, Decoder(CODEC)), trio.Event()
        room = AnswerRoom(connection, told.set)
        connection.queue_encoded(bytes(ROOM))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(enter, room)
                await until(lambda: connection.flushing)
                assert not told.is_set()
                scope.cancel()
        assert told.is_set()
        connection.close()
        with pytest.raises(ConnectionClosedError):
            await enter(room)


async def enter(room: AnswerRoom) -> None:
    async with room.making(MIB):
        pass


async def test_one_answer_larger_than_all_room_is_made_alone() -> None:
    async with asking("beside") as (_, maker, client, requests):
        await client.say(client.invoke("huge"))
        await answers(client, len(requests) + 1)
        assert maker.made == CALLS + 1
