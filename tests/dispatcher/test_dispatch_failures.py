"""Backends that fail, refuse, babble or break off: what callers are told is what ran."""

from __future__ import annotations

import random
import re
import socket
from collections import Counter

import pytest
import trio
import trio.testing
from doubles_dispatch import (
    POISON,
    answer_to,
    ask,
    blob,
    config_for,
    echo,
    held,
    raw_backend,
    raw_client,
    text_of,
    wait_for,
)

from pyroxfer_core import Connection
from pyroxfer_core.errors import PyroError
from pyroxfer_core.wire import Flags, Message, MessageType, codec_for
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.calls import Phase
from pyroxfer_dispatcher.conversation import Conversation

MIB = 1024 * 1024


async def test_no_backend_is_an_error_at_once() -> None:
    """NotSent, in the client's vocabulary, and the connection lives on until a backend is back."""
    with socket.socket() as closed:
        closed.bind(("localhost", 0))
        uri = f"PYRO:worker@localhost:{closed.getsockname()[1]}"
        async with Dispatcher(config_for(uri)) as dispatcher:
            for version, name in ((48, "Pyro4.errors.PyroError"), (502, "Pyro5.errors.PyroError")):
                async with raw_client(dispatcher.location, version) as client:
                    text = text_of(await ask(client, blob()))
                    assert "NotSent: no live backend of service 'orders': b0 is down" in text
                    assert name in text


async def test_a_backend_killed_between_calls_is_passed_over() -> None:
    async with (
        raw_backend(echo) as one,
        raw_backend(echo) as two,
        Dispatcher(config_for(one.uri, two.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        for seq in (1, 2):
            await ask(client, blob(seq))
        one.die()
        await trio.testing.wait_all_tasks_blocked(0.01)
        for seq in range(3, 9):
            assert (await ask(client, blob(seq))).body == POISON
    assert (len(one.seen), len(two.seen)) == (1, 7)


async def test_a_backend_that_dropped_its_idle_links_gets_a_new_one() -> None:
    """Restarted, or timed out: no call is lost to a stale link."""
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        for seq in range(3):
            assert (await ask(client, blob(seq))).body == POISON
            backend.drop_all()
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_backend_killed_during_a_call_is_unknown_at_once() -> None:
    """The call may have run, so it is not repeated on the other backend."""

    async def die(connection: Connection, request: Message) -> None:
        connection.close()

    async with (
        raw_backend(die) as one,
        raw_backend(die) as two,
        Dispatcher(config_for(one.uri, two.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        text = text_of(await ask(client, blob(1)))
        assert "Unknown: backend lost before it answered" in text
        assert len(one.seen) + len(two.seen) == 1
        assert "Unknown" in text_of(await ask(client, blob(2)))


async def test_a_backend_that_refuses_the_handshake_is_told_with_its_reason() -> None:
    async with raw_backend(echo) as backend:
        uri = backend.uri.replace("worker", "nobody")
        async with Dispatcher(config_for(uri)) as dispatcher, raw_client(dispatcher.location) as client:
            assert "unknown object" in text_of(await ask(client, blob()))


async def test_a_refusal_leaves_the_backends_other_connections_alone() -> None:
    """Stock servers refuse connections when their threads are all busy; those they have go on."""
    release = trio.Event()

    async def hold(connection: Connection, request: Message) -> None:
        if request.seq == 1:
            await release.wait()
        await echo(connection, request)

    async with (
        raw_backend(hold) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as first,
        raw_client(dispatcher.location) as second,
    ):
        await first.send(blob(1))
        await wait_for(lambda: backend.seen)
        backend.is_full = True
        text = text_of(await ask(second, blob(1)))
        assert "NotSent: no live backend of service 'orders': b0 refused (" in text
        assert "no free workers" in text
        release.set()
        assert isinstance(await first.receive(), Message)
        assert (await ask(second, blob(2))).body == POISON


async def test_a_backend_that_never_greets_is_given_up() -> None:
    with socket.create_server(("localhost", 0)) as silent:
        uri = f"PYRO:worker@localhost:{silent.getsockname()[1]}"
        config = config_for(uri, head="connect_timeout = 0.2")
        async with Dispatcher(config) as dispatcher, raw_client(dispatcher.location) as client:
            assert "within 0.2 s" in text_of(await ask(client, blob()))


async def test_what_a_backend_sends_beyond_its_answer_reaches_nobody() -> None:
    """It came with the answer: nothing is left on the socket to see, and the number may be the next call's."""

    async def twice(connection: Connection, request: Message) -> None:
        connection.queue(answer_to(request, request.body))
        request.seq += 1
        await connection.send(answer_to(request, b"somebody else's"))

    async with (
        raw_backend(twice) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        for seq in range(3):
            assert (await ask(client, blob(seq))).body == POISON


async def test_a_backend_that_answers_another_number_is_not_believed() -> None:
    async def wrong(connection: Connection, request: Message) -> None:
        request.seq += 5
        await echo(connection, request)

    async with (
        raw_backend(wrong) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        assert "Unknown: the backend answered something else" in text_of(await ask(client, blob()))


@pytest.mark.parametrize("rubbish", [b"HTTP/1.1 200 OK\r\n\r\n" * 4, b"PYRO", bytes(64)])
async def test_a_backend_that_answers_rubbish_is_unknown(rubbish: bytes) -> None:
    async def babble(connection: Connection, request: Message) -> None:
        await connection.send_encoded(rubbish)
        connection.close()

    async with (
        raw_backend(babble) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        assert "Unknown: backend lost before it answered" in text_of(await ask(client, blob()))


async def test_half_a_reply_ends_the_clients_connection() -> None:
    async def half(connection: Connection, request: Message) -> None:
        head = connection.codec.encode_head(answer_to(request, b""), 3 * MIB)
        await connection.send_encoded(head, bytes(2 * MIB))
        connection.close()

    async with (
        raw_backend(half) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        with pytest.raises(PyroError):
            await ask(client, blob())


async def test_losing_the_backend_of_a_stream_ends_the_connection_after_the_error() -> None:
    async def stream_then_die(connection: Connection, request: Message) -> None:
        if request.flags & Flags.KEEPSERIALIZED:
            await connection.send(answer_to(request, POISON, Flags.EXCEPTION | Flags.ITEMSTREAM, STRM=b"id"))
        else:
            connection.close()

    async with (
        raw_backend(stream_then_die) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        assert (await ask(client, blob(1))).annotations["STRM"] == b"id"
        item = Message(MessageType.INVOKE, 2, "serpent", 0, POISON)
        assert "Unknown" in text_of(await ask(client, item))
        assert await client.receive() is None
        assert [one.clients for one in dispatcher.directory.services["orders"].group.backends] == [0]


async def test_a_client_that_leaves_while_it_waits_for_an_item_does_not_belong_to_its_backend_any_more() -> None:
    """Or whoever takes that backend out would wait for it for ever."""

    async def stream_without_items(connection: Connection, request: Message) -> None:
        if request.flags & Flags.KEEPSERIALIZED:
            await connection.send(answer_to(request, POISON, Flags.EXCEPTION | Flags.ITEMSTREAM, STRM=b"id"))

    async with raw_backend(stream_without_items) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        [known] = dispatcher.directory.services["orders"].group.backends
        async with raw_client(dispatcher.location) as client:
            await ask(client, blob(1))
            assert known.clients == 1
            await client.send(Message(MessageType.INVOKE, 2, "serpent", 0, POISON))
            await wait_for(lambda: len(backend.seen) == 2)
        await wait_for(lambda: dispatcher.facts["clients"] == 0)
        assert known.clients == 0


async def test_a_client_that_reads_no_answers_is_not_heard_either() -> None:
    """Or what it says would gather here without end."""

    async def large(connection: Connection, request: Message) -> None:
        await connection.send(answer_to(request, bytes(100_000)))

    async with (
        raw_backend(large) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        [guest] = dispatcher._reception.conversations
        assert isinstance(guest, Conversation)
        sent: list[int] = []
        while not guest._client.is_clogged:
            sent.append(len(sent))
            await client.send(blob(sent[-1]))
            await wait_for(lambda: len(backend.seen) == len(sent) and guest._forwarding.phase is Phase.IDLE)
        sent.append(len(sent))
        await client.send(blob(sent[-1]))
        await wait_for(lambda: guest._client.is_paused)
        for seq in sent:
            answer = await client.receive()
            assert isinstance(answer, Message)
            assert answer.seq == seq
        await wait_for(lambda: not guest._client.is_paused)
        assert (await ask(client, blob(len(sent)))).seq == len(sent)


async def test_a_client_whose_backend_takes_no_requests_is_not_heard_either() -> None:
    async def never(connection: Connection, request: Message) -> None:
        await trio.sleep_forever()

    async with (
        raw_backend(never) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
        trio.open_nursery() as nursery,
    ):
        [guest] = dispatcher._reception.conversations
        assert isinstance(guest, Conversation)
        nobody_waits = codec_for(502).encode(blob(1, bytes(100_000), flags=Flags.ONEWAY))
        nursery.start_soon(client.send_encoded, *[nobody_waits] * 300)
        await wait_for(lambda: guest._client.is_paused and guest._forwarding.phase is Phase.SENDING)
        assert guest._reader.buffered < MIB
        nursery.cancel_scope.cancel()
        backend.die()


async def test_without_a_queue_a_full_backend_refuses_at_once() -> None:
    release = trio.Event()

    async with raw_backend(held(release)) as backend:
        config = config_for(backend.uri, service="max_queue = 0", backend="max_in_flight = 1")
        async with (
            Dispatcher(config) as dispatcher,
            raw_client(dispatcher.location) as first,
            raw_client(dispatcher.location) as second,
        ):
            await first.send(blob(1))
            await wait_for(lambda: backend.seen)
            assert "b0 runs 1 calls, its limit" in text_of(await ask(second, blob(1)))
            release.set()
            answer = await first.receive()
            assert isinstance(answer, Message)
            assert (await ask(second, blob(2))).body == POISON


async def test_an_answer_cut_anywhere_is_unknown() -> None:
    """At every byte, and the next call is right."""
    cut = 0

    async def partly(connection: Connection, request: Message) -> None:
        encoded = connection.codec.encode(answer_to(request, b"result"))
        if cut < len(encoded):
            await connection.send_encoded(encoded[:cut])
            connection.close()
        else:
            await connection.send_encoded(encoded)

    async with (
        raw_backend(partly) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        length = len(codec_for(502).encode(answer_to(blob(), b"result")))
        for cut in range(length):
            assert "Unknown: backend lost before it answered" in text_of(await ask(client, blob(cut)))
        cut = length
        assert (await ask(client, blob(length))).body == b"result"


async def test_a_request_cut_anywhere_never_runs() -> None:
    async with raw_backend(echo) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        encoded = codec_for(502).encode(blob(1, b"body"))
        for cut in range(len(encoded)):
            async with raw_client(dispatcher.location) as client:
                await client.send_encoded(encoded[:cut])
        async with raw_client(dispatcher.location) as client:
            assert (await ask(client, blob(2))).body == POISON
    assert len(backend.seen) == 1


async def test_every_call_is_accounted_for_while_backends_die() -> None:
    """Backends that count what they run and break off by chance: NotSent never ran, an answer ran once, Unknown at
    most once; and no call runs twice."""
    chance = random.Random(4)
    ran: Counter[bytes] = Counter()
    deaths: Counter[str] = Counter()

    async def unreliable(connection: Connection, request: Message) -> None:
        fate = chance.choice(["answer", "answer", "die before", "die after", "drop later"])
        deaths[fate] += 1
        if fate == "die before":
            connection.close()
            return
        ran[bytes(request.body)] += 1
        if fate == "die after":
            connection.close()
            return
        await echo(connection, request)
        if fate == "drop later":
            connection.close()

    async with raw_backend(unreliable) as one, raw_backend(unreliable) as two:
        outcomes: dict[bytes, str] = {}
        async with Dispatcher(config_for(one.uri, two.uri)) as dispatcher:

            async def call(number: int) -> None:
                async with raw_client(dispatcher.location, 48 if number % 2 else 502) as client:
                    for seq in range(40):
                        body = f"{number}/{seq}".encode()
                        answer = await ask(client, blob(seq, body))
                        found = re.search(rb"(NotSent|Unknown): ", bytes(answer.body))
                        outcomes[body] = found[1].decode() if found else "Executed"

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(call, number)
    assert min(deaths.values()) > 20, "every fate was met"
    assert len(outcomes) == 320
    for body, outcome in outcomes.items():
        assert ran[body] in {"NotSent": (0,), "Executed": (1,), "Unknown": (0, 1)}[outcome]


@pytest.mark.parametrize(
    ("body", "flags", "links"),
    [
        (b"{'__class__': 'Pyro5.errors.SerializeError'}", Flags.EXCEPTION, 2),
        (b"{'__class__': 'Pyro4.errors.SecurityError'}", Flags.EXCEPTION, 2),
        (b"x" * 50, Flags.EXCEPTION | Flags.COMPRESSED, 2),
        (b"x" * 200_000, Flags.EXCEPTION, 2),
        (b"x" * 200_000, 0, 1),
        (b"{'__class__': 'builtins.ValueError'}", Flags.EXCEPTION, 1),
        (b"'SerializeError'", 0, 1),
    ],
)
async def test_a_link_is_left_when_a_stock_backend_is_about_to_hang_up(body: bytes, flags: int, links: int) -> None:
    """Or the call after one that could not be read, which may be another client's, would go down with it."""

    used: list[Connection] = []

    async def fail(connection: Connection, request: Message) -> None:
        used.append(connection)
        await connection.send(answer_to(request, body, flags))

    async with raw_backend(fail) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        async with raw_client(dispatcher.location) as client:
            for seq in range(2):
                assert (await ask(client, blob(seq))).body == body
    assert len(set(used)) == links


async def test_links_are_used_again() -> None:
    async with raw_backend(echo) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        async with raw_client(dispatcher.location) as client:
            for seq in range(5):
                await ask(client, blob(seq))
        assert len(backend.connections) == 1
    assert [message.seq for message in backend.seen] == [1, 2, 3, 4, 5]
