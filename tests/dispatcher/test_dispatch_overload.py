"""More calls than the backends may run, in all three ways through the dispatcher."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import cast

import pytest
import trio
from doubles_dispatch import (
    POISON,
    RawBackend,
    answer_to,
    ask,
    blob,
    call,
    client_of,
    config_for,
    echo,
    raw_backend,
    raw_client,
    text_of,
    wait_for,
)

from pyroxfer_core import Connection
from pyroxfer_core.settings import MIB
from pyroxfer_core.wire import Message, codec_for
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.pinned import MAX_BEHIND, Pinned

ClientOf = Callable[[str], AbstractAsyncContextManager[Connection]]
WAYS: dict[str, tuple[str, ClientOf, Callable[..., Message]]] = {
    "blob": ("", raw_client, blob),
    "pinned": ('objects = ["worker"]', client_of, call),
    "spread": ('objects = ["worker"]\nstateless = true', client_of, call),
}


class Gate:
    """A backend that answers one call for each time it is opened."""

    def __init__(self) -> None:
        self._open = trio.Semaphore(0)

    async def script(self, connection: Connection, request: Message) -> None:
        await self._open.acquire()
        await echo(connection, request)

    def open(self) -> None:
        self._open.release()


@asynccontextmanager
async def crowd(dispatcher: Dispatcher, client_of: ClientOf, count: int) -> AsyncIterator[list[Connection]]:
    clients: list[Connection] = []
    async with trio.open_nursery() as nursery:
        done = trio.Event()

        async def hold() -> None:
            async with client_of(dispatcher.location) as client:
                clients.append(client)
                await done.wait()

        for _ in range(count):
            nursery.start_soon(hold)
        await wait_for(lambda: len(clients) == count)
        yield clients
        done.set()


async def received(client: Connection) -> Message:
    answer = await client.receive()
    assert isinstance(answer, Message)
    return answer


@asynccontextmanager
async def busy(way: str, service: str = "") -> AsyncIterator[tuple[RawBackend, Dispatcher, Gate]]:
    """A dispatcher before a backend that runs one call at a time, and waits with each."""
    gate = Gate()
    settings = f"{WAYS[way][0]}\n{service}"
    async with raw_backend(gate.script) as backend:
        config = config_for(backend.uri, service=settings, backend="max_in_flight = 1")
        async with Dispatcher(config) as dispatcher:
            yield backend, dispatcher, gate


@pytest.mark.parametrize("size", [100, 3 * MIB], ids=["small", "large"])
@pytest.mark.parametrize("way", WAYS)
async def test_calls_wait_for_their_backend_and_none_is_sent_ahead(way: str, size: int) -> None:
    """The backend never has more than one; the others run as it becomes free."""
    _, client_of, message = WAYS[way]
    body = bytes(size)
    async with busy(way) as (backend, dispatcher, gate), crowd(dispatcher, client_of, 4) as clients:
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.send, message(1, body))
            await wait_for(lambda: len(backend.seen) == 1)
            admission = dispatcher.directory.services["orders"].admission
            await wait_for(lambda: admission.waiting == 3)
            assert len(backend.seen) == 1
            for _ in range(4):
                gate.open()
            for client in clients:
                assert (await received(client)).body == body
        assert (admission.waiting, admission.running) == (0, 0)


@pytest.mark.parametrize("way", WAYS)
async def test_a_full_queue_refuses_and_the_client_goes_on(way: str) -> None:
    """NotSent, with a hint; the next call of the same client is served."""
    _, client_of, message = WAYS[way]
    async with busy(way, "max_queue = 1") as (backend, dispatcher, gate), crowd(dispatcher, client_of, 3) as clients:
        first, second, third = clients
        await first.send(message(1))
        await wait_for(lambda: len(backend.seen) == 1)
        await second.send(message(1))
        await wait_for(lambda: dispatcher.directory.services["orders"].admission.waiting == 1)
        text = text_of(await ask(third, message(1)))
        assert "NotSent: service 'orders' is overloaded: 1 calls wait, its limit; try again in" in text
        gate.open()
        gate.open()
        for client in (first, second):
            assert (await received(client)).body == POISON
        gate.open()
        assert (await ask(third, message(2))).body == POISON


@pytest.mark.parametrize("way", WAYS)
async def test_a_refused_large_call_is_answered_after_its_end(way: str) -> None:
    """The client sends all of it before it listens."""
    _, client_of, message = WAYS[way]
    async with busy(way, "max_queue = 0") as (backend, dispatcher, gate), crowd(dispatcher, client_of, 2) as clients:
        first, second = clients
        await first.send(message(1))
        await wait_for(lambda: len(backend.seen) == 1)
        assert "NotSent: " in text_of(await ask(second, message(1, bytes(3 * MIB))))
        gate.open()
        assert (await received(first)).body == POISON
        gate.open()
        assert (await ask(second, message(2))).body == POISON


async def test_a_refused_large_call_is_told_so_when_its_backend_is_lost_meanwhile() -> None:
    """The client still sends it; afterwards it hears of the refusal, and then its connection ends."""
    _, client_of, message = WAYS["pinned"]
    async with (
        busy("pinned", "max_queue = 0") as (backend, dispatcher, _),
        crowd(dispatcher, client_of, 2) as clients,
    ):
        first, second = clients
        await first.send(message(1))
        await wait_for(lambda: len(backend.seen) == 1)
        data = codec_for(502).encode(message(1, bytes(MIB)))
        await second.send_encoded(data[:-1])
        await wait_for(lambda: dispatcher.directory.services["orders"].tally["NotSent"] == 1)
        backend.drop_all()
        assert "Unknown: " in text_of(await received(first))
        await second.send_encoded(data[-1:])
        assert "NotSent: service 'orders' is overloaded" in text_of(await received(second))


async def test_a_refusal_is_not_said_inside_an_answer() -> None:
    """A client that calls again while a large answer comes in hears of the refusal behind it."""
    _, client_of, message = WAYS["pinned"]
    half, go_on = 500_000, trio.Event()
    answer = codec_for(502).encode(answer_to(message(1), bytes(2 * half)))

    async def script(connection: Connection, request: Message) -> None:
        await connection.send_encoded(answer[:half])
        await go_on.wait()
        await connection.send_encoded(answer[half:])

    async with raw_backend(script) as backend:
        config = config_for(backend.uri, service='objects = ["worker"]\nmax_queue = 0', backend="max_in_flight = 1")
        async with Dispatcher(config) as dispatcher, client_of(dispatcher.location) as client:
            client.decoder.max_message = 4 * half
            await client.send(message(1))
            await pinned_of(dispatcher, lambda one: one._in_answer)
            await client.send(message(2))
            await wait_for(lambda: dispatcher.directory.services["orders"].tally["NotSent"] == 1)
            go_on.set()
            assert (await received(client)).body == bytes(2 * half)
            assert "NotSent: " in text_of(await received(client))


async def test_nothing_is_said_inside_an_answer_that_breaks_off() -> None:
    """The end of the connection says it all: whatever came behind would count as a part of the answer."""
    _, client_of, message = WAYS["pinned"]
    head = codec_for(502).encode_head(answer_to(message(1)), 1_000_000)
    sent, go_on = head + bytes(500_000), trio.Event()

    async def script(connection: Connection, request: Message) -> None:
        await connection.send_encoded(sent)
        await go_on.wait()
        connection.close()

    async with raw_backend(script) as backend:
        config = config_for(backend.uri, service='objects = ["worker"]\nmax_queue = 0', backend="max_in_flight = 1")
        async with Dispatcher(config) as dispatcher, client_of(dispatcher.location) as client:
            await client.send(message(1))
            await pinned_of(dispatcher, lambda one: one._in_answer)
            await client.send(message(2))
            await wait_for(lambda: dispatcher.directory.services["orders"].tally["NotSent"] == 1)
            go_on.set()
            assert await rest_of(client) == sent


async def rest_of(client: Connection) -> bytes:
    """All bytes until the end of the connection."""
    data = b""
    while True:
        try:
            more = client.sock.recv(65536)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(client.sock)
            continue
        if not more:
            return data
        data += more


async def test_little_is_kept_behind_a_call_that_waits_and_all_of_it_goes_on_in_order() -> None:
    """The rest stays with the client until the call has its turn."""
    _, client_of, message = WAYS["pinned"]
    count = 1000
    async with busy("pinned") as (backend, dispatcher, gate), crowd(dispatcher, client_of, 2) as clients:
        first, second = clients
        await first.send(message(1))
        await wait_for(lambda: len(backend.seen) == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.send_encoded, b"".join(codec_for(502).encode(message(n)) for n in range(count)))
            waiting = await pinned_of(dispatcher, lambda one: one._client.is_paused)
            assert MAX_BEHIND <= waiting._bytes_behind < 2 * MAX_BEHIND
            for _ in range(count + 1):
                gate.open()
            for number in range(count):
                assert (await received(second)).seq == number
        assert (waiting._bytes_behind, len(waiting._behind)) == (0, 0)


async def pinned_of(dispatcher: Dispatcher, condition: Callable[[Pinned], bool]) -> Pinned:
    """The first one of which this becomes true."""

    def found() -> list[Pinned]:
        return [one for one in dispatcher._reception.conversations if isinstance(one, Pinned) and condition(one)]

    await wait_for(found)
    return found()[0]


@pytest.mark.parametrize("way", WAYS)
async def test_waiting_ends_with_its_time(way: str) -> None:
    _, client_of, message = WAYS[way]
    async with (
        busy(way, "queue_timeout = 0.1") as (backend, dispatcher, _),
        crowd(dispatcher, client_of, 2) as clients,
    ):
        first, second = clients
        await first.send(message(1))
        await wait_for(lambda: len(backend.seen) == 1)
        assert "NotSent: service 'orders' is overloaded: it waited 0.1 s" in text_of(await ask(second, message(1)))


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_leaves_the_queue_is_forgotten(way: str) -> None:
    """Its call is never sent."""
    _, client_of, message = WAYS[way]
    async with busy(way) as (backend, dispatcher, gate), crowd(dispatcher, client_of, 1) as [first]:
        admission = dispatcher.directory.services["orders"].admission
        await first.send(message(1))
        await wait_for(lambda: len(backend.seen) == 1)
        async with client_of(dispatcher.location) as second:
            await second.send(message(1))
            await wait_for(lambda: admission.waiting == 1)
        await wait_for(lambda: admission.waiting == 0)
        gate.open()
        assert (await received(first)).body == POISON
        assert len(backend.seen) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_those_who_wait_are_told_when_their_last_backend_is_gone(way: str) -> None:
    """At once, and not only when their time is over."""
    _, client_of, message = WAYS[way]
    async with busy(way) as (backend, dispatcher, _), crowd(dispatcher, client_of, 2) as clients:
        first, second = clients
        await first.send(message(1))
        await wait_for(lambda: len(backend.seen) == 1)
        await second.send(message(1))
        await wait_for(lambda: dispatcher.directory.services["orders"].admission.waiting == 1)
        backend.die()
        assert "Unknown: " in text_of(await received(first))
        assert "NotSent: " in text_of(await received(second))


async def test_a_greedy_client_does_not_keep_the_others_waiting() -> None:
    """Ten connections of one client and one of another: the other is served second, not last."""
    settings = 'fair_by = "connection"\nobjects = ["worker"]'
    gate = Gate()
    async with raw_backend(gate.script) as backend:
        config = config_for(backend.uri, service=settings, backend="max_in_flight = 1")
        async with Dispatcher(config) as dispatcher, crowd(dispatcher, client_of, 2) as clients:
            admission = dispatcher.directory.services["orders"].admission
            greedy, modest = clients
            for seq in range(1, 11):
                await greedy.send(call(seq))
            await wait_for(lambda: len(backend.seen) == 1 and admission.waiting == 1)
            await modest.send(call(99))
            await wait_for(lambda: admission.waiting == 2)
            for _ in range(3):
                gate.open()
            await wait_for(lambda: len(backend.seen) == 4)
            assert 99 in [message.seq for message in backend.seen[:3]]


@pytest.mark.parametrize("way", WAYS)
async def test_one_slow_backend_holds_no_call_of_the_others(way: str) -> None:
    """Its one slot is stuck; everybody else is served by the other backend."""
    gate = Gate()
    settings, client_of, message = WAYS[way]
    async with raw_backend(gate.script) as stuck, raw_backend(echo) as quick:
        config = config_for(stuck.uri, quick.uri, service=settings, backend="max_in_flight = 1")
        async with Dispatcher(config) as dispatcher, crowd(dispatcher, client_of, 6) as clients:
            answers: list[Message] = []

            async def play(client: Connection) -> None:
                await client.send(message(1))
                answers.append(await received(client))

            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(play, client)
                expected = 3 if way == "pinned" else 5
                await wait_for(lambda: len(answers) == expected)
                for _ in clients:
                    gate.open()
            assert {answer.body for answer in answers} == {POISON}


async def test_calls_that_wait_do_not_cost_a_look_at_every_client(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait are looked at twenty times a second; with thousands of clients that would take half a core."""
    dispatcher = Dispatcher(config_for("PYRO:worker@localhost:1"))
    looks = {"calls": 0, "clients": 0}

    class Guest:
        def look(self, now: float) -> None:
            looks["clients"] += 1

    class Queue:
        waiting = 1

        def look(self, now: float) -> None:
            looks["calls"] += 1

    dispatcher._reception.conversations.add(cast(Pinned, Guest()))
    monkeypatch.setattr(dispatcher.directory, "admissions", lambda: [Queue()])
    with trio.move_on_after(1.1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dispatcher._look_after_clients)
            nursery.start_soon(dispatcher._look_after_calls)
    assert looks == {"calls": 21, "clients": 4}
