"""The dispatcher between real sockets: what passes, what is refused, and what is left when peers misbehave."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, get_args

import msgspec
import pytest
import trio
import trio.testing
from doubles_dispatch import (
    OBJECT,
    POISON,
    answer_to,
    ask,
    blob,
    config_for,
    echo,
    raw_backend,
    raw_client,
    wait_for,
)

from pyroxfer_core import Connection, Daemon, Proxy, SerializedBlob, Settings, Uri, expose, introduce, open_connection
from pyroxfer_core.errors import CommunicationError, NamingError, PyroError
from pyroxfer_core.nameserver import Registration, start_ns
from pyroxfer_core.wire import Body, BodyPart, End, Flags, Head, Message, MessageType, codec_for, read_blob_info
from pyroxfer_dispatcher import Dispatcher, commands, conversation, naming
from pyroxfer_dispatcher.channel import Channel
from pyroxfer_dispatcher.config import ConfigError
from pyroxfer_dispatcher.hub import WRITE

MIB = 1024 * 1024


class Worker:
    """A backend of ours that counts what it ran."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: Counter[str] = Counter()

    @expose
    async def process(self, blob: SerializedBlob) -> list[Any]:
        self.calls[str(blob.info)] += 1
        return [self.name, blob.info, blob.deserialized()]

    @expose
    async def fail(self, blob: SerializedBlob) -> None:
        raise ValueError("not today")

    @expose
    async def stream(self, blob: SerializedBlob) -> AsyncIterator[list[Any]]:
        for number in range(3):
            yield [self.name, number]


@expose
class FakeNameServer:
    """As much of a name server as a dispatcher uses."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.tags: dict[str, list[str]] = {}

    async def ping(self) -> None:
        pass

    async def lookup(self, name: str) -> Uri:
        return Uri(self.entries[name])

    async def register(self, name: str, uri: str, safe: bool, metadata: list[str]) -> None:
        self.entries[name] = uri
        self.tags[name] = list(metadata)

    async def remove(self, name: str) -> int:
        return self.entries.pop(name) is not None


def text_of(answer: Message) -> str:
    """What an error of the dispatcher's own says; its body is the only one here that can be read."""
    assert answer.type == MessageType.RESULT
    assert answer.flags & Flags.EXCEPTION
    return bytes(answer.body).decode()


# -- what passes


@pytest.mark.parametrize("serializer", ["serpent", "json", "marshal", "msgpack"])
async def test_proxies_of_ours_reach_daemons_of_ours_in_turn(serializer: str) -> None:
    workers = [Worker("a"), Worker("b")]
    async with Daemon() as first, Daemon() as second:
        uris = [daemon.register(w, "worker") for daemon, w in zip((first, second), workers, strict=True)]
        config = config_for(*uris, head="methods = ['process', 'fail', 'stream']")
        settings = Settings(serializer=serializer)
        async with Dispatcher(config) as dispatcher, Proxy(dispatcher.uri, settings=settings) as proxy:
            for _ in range(4):
                name, info, data = await proxy.process(SerializedBlob("orders", [1, "two"]))
                assert (info, list(data)) == ("orders", [1, "two"])
                assert name in "ab"
            with pytest.raises(ValueError, match="not today"):
                await proxy.fail(SerializedBlob("orders", []))
    assert [worker.calls["orders"] for worker in workers] == [2, 2]


async def test_item_streams_stay_with_their_backend() -> None:
    """Items are calls of their own, and only the backend that made the stream knows it."""
    async with Daemon() as first, Daemon() as second:
        uris = [first.register(Worker("a"), "worker"), second.register(Worker("b"), "worker")]
        config = config_for(*uris, head="methods = ['stream']")
        async with Dispatcher(config) as dispatcher, Proxy(dispatcher.uri) as proxy:
            for _ in range(2):
                items = [item async for item in proxy.stream(SerializedBlob("orders", []))]
                assert [number for _, number in items] == [0, 1, 2]
                assert len({name for name, _ in items}) == 1


@pytest.mark.parametrize("client_version", [48, 502])
@pytest.mark.parametrize("backend_version", [48, 502])
@pytest.mark.parametrize("serializer", ["serpent", "json", "marshal", "msgpack"])
@pytest.mark.parametrize("flags", [0, Flags.COMPRESSED])
async def test_bodies_pass_byte_for_byte(
    client_version: int, backend_version: int, serializer: str, flags: int
) -> None:
    """A body nobody can decode reaches the backend and comes back, also across protocols, its serializer by name."""
    async with (
        raw_backend(echo, speaks=(backend_version,)) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location, client_version) as client,
    ):
        request = blob(7, serializer=serializer, flags=flags, XTRA=b"value")
        answer = await ask(client, request)
    [seen] = backend.seen
    assert backend.versions == [backend_version]
    assert (seen.body, seen.serializer, seen.flags) == (POISON, serializer, request.flags)
    assert seen.annotations["XTRA"] == b"value"
    assert seen.correlation_id == request.correlation_id
    target = read_blob_info(seen.annotations["BLBI"])
    assert (target.info, target.object_id, target.method) == ("orders", "worker", "process")
    assert (answer.seq, answer.body, answer.serializer, answer.flags) == (7, POISON, serializer, flags)
    assert answer.correlation_id == request.correlation_id


async def test_pickle_passes_where_both_ends_have_it() -> None:
    """The dispatcher reads no body, so what the ends agree on is theirs; protocol 502 has no number for it."""
    async with (
        raw_backend(echo, speaks=(48,)) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location, 48) as client,
    ):
        assert (await ask(client, blob(serializer="pickle"))).body == POISON


async def test_a_client_keeps_its_protocol_where_the_backend_speaks_it() -> None:
    """So class names in bodies are those the client knows."""
    async with raw_backend(echo) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        for version in (48, 502, 48):
            async with raw_client(dispatcher.location, version) as client:
                await ask(client, blob())
    assert backend.versions == [48, 502, 48]


async def test_a_refused_protocol_is_remembered() -> None:
    async with raw_backend(echo, speaks=(48,)) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        async with raw_client(dispatcher.location, 502) as client:
            await ask(client, blob())
        [known] = dispatcher.directory.services["orders"].group.backends
        assert known.refused_versions == {502}


async def test_one_way_calls_leave_and_no_answer_comes() -> None:
    arrived = trio.Event()

    async def note(connection: Connection, request: Message) -> None:
        if request.flags & Flags.ONEWAY:
            arrived.set()
        else:
            await echo(connection, request)

    async with (
        raw_backend(note) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        await client.send(blob(1, flags=Flags.ONEWAY))
        await arrived.wait()
        assert (await ask(client, blob(2))).seq == 2


@pytest.mark.parametrize(
    ("body", "flags", "links"),
    [
        (b"{'__class__': 'Pyro5.errors.SerializeError'}", Flags.EXCEPTION, 2),
        (b"{'__class__': 'Pyro4.errors.SecurityError'}", Flags.EXCEPTION, 2),
        (b"x" * 50, Flags.EXCEPTION | Flags.COMPRESSED, 2),
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


async def test_sixteen_clients_at_once_get_their_own_answers() -> None:
    async with (
        raw_backend(echo) as one,
        raw_backend(echo) as two,
        Dispatcher(config_for(one.uri, two.uri)) as dispatcher,
    ):

        async def work(number: int) -> None:
            async with raw_client(dispatcher.location, 48 if number % 2 else 502) as client:
                for seq in range(20):
                    body = f"{number}/{seq}".encode()
                    answer = await ask(client, blob(seq, body))
                    assert (answer.seq, answer.body) == (seq, body)

        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(work, number)
        group = dispatcher.directory.services["orders"].group
        assert [backend.in_flight for backend in group.backends] == [0, 0]
    assert len(one.seen) + len(two.seen) == 320
    assert abs(len(one.seen) - len(two.seen)) <= 1


async def test_ping_is_answered() -> None:
    async with raw_backend(echo) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        async with raw_client(dispatcher.location) as client:
            answer = await ask(client, Message(MessageType.PING, 3, "ping", 0, b"ping"))
            assert (answer.type, answer.seq, answer.body) == (MessageType.PING, 3, b"pong")
        assert not backend.seen


# -- large messages


async def test_large_bodies_pass_in_pieces_both_ways() -> None:
    body = bytes(range(256)) * 20_000
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        assert (await ask(client, blob(1, body))).body == body
        assert (await ask(client, blob(2, b"small"))).body == b"small"
    assert backend.seen[0].body == body


async def test_a_client_held_back_at_the_end_of_a_large_call_is_heard_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that takes the last part late holds the client back; its next call is read all the same."""

    at_once = Channel.write

    def write_later(channel: Channel, data: Body) -> None:
        if len(data) < 1000:  # heads and answers
            at_once(channel, data)
            return
        channel.queued += len(data)
        channel.pending += len(data)
        channel._out.append(data)
        channel._watch_for(channel._events | WRITE)

    monkeypatch.setattr("pyroxfer_dispatcher.channel.HIGH_WATER", 0)  # whatever waits holds back
    monkeypatch.setattr(Channel, "write", write_later)  # as if the kernel took no part at once

    async def answer(connection: Connection, request: Message) -> None:
        await connection.send(answer_to(request, b"taken"))

    async with (
        raw_backend(answer) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        for number in (1, 2):
            assert (await ask(client, blob(number, bytes(MIB)))).body == b"taken"


async def test_a_reply_in_pieces_begins_before_its_end() -> None:
    """The head and the first piece reach the client while the backend still holds the rest back."""
    rest = trio.Event()

    async def begin(connection: Connection, request: Message) -> None:
        head = connection.codec.encode_head(answer_to(request, b""), 2 * MIB)
        await connection.send_encoded(head, bytes(MIB))
        await rest.wait()
        await connection.send_encoded(bytes(MIB))

    async with raw_backend(begin) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        client = await open_connection(dispatcher.location, collect=MIB)
        await introduce(client, OBJECT, Settings())
        await client.send(blob())
        head = await client.receive()
        assert isinstance(head, Head)
        received = 0
        while received < 2 * MIB:
            part = await client.receive()
            assert isinstance(part, BodyPart)
            received += len(part.data)
            if received == MIB:
                rest.set()
        assert isinstance(await client.receive(), End)
        client.close()


async def test_a_refused_large_request_is_answered_after_its_end() -> None:
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        answer = await ask(client, blob(1, bytes(3 * MIB), topic="nowhere"))
        assert "NotSent: no route for topic 'nowhere'" in text_of(answer)
        assert (await ask(client, blob(2))).body == POISON


# -- backends that fail


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


async def test_without_a_queue_a_full_backend_refuses_at_once() -> None:
    release = trio.Event()

    async def slow(connection: Connection, request: Message) -> None:
        await release.wait()
        await echo(connection, request)

    async with raw_backend(slow) as backend:
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


# -- protocols that differ


async def test_annotations_that_do_not_fit_protocol_48_are_refused() -> None:
    async with (
        raw_backend(echo, speaks=(48,)) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        answer = await ask(client, blob(1, XTRA=bytes(70_000)))
        assert "NotSent: the call cannot be put into the backend's protocol: annotations too large" in text_of(answer)
        assert not backend.seen
        assert (await ask(client, blob(2))).body == POISON


@pytest.mark.parametrize("size", [10, 2 * MIB])
async def test_a_reply_that_does_not_fit_protocol_48_was_executed(size: int) -> None:
    async def annotate(connection: Connection, request: Message) -> None:
        await connection.send(answer_to(request, bytes(size), XTRA=bytes(70_000)))

    async with (
        raw_backend(annotate, speaks=(502,)) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location, 48) as client,
    ):
        for seq in (1, 2):
            assert "Executed: the answer cannot be put into the client" in text_of(await ask(client, blob(seq)))


async def test_a_serializer_the_other_protocol_lacks_ends_the_connection() -> None:
    """No error can be written in pickle, and the client would read no other."""
    async with raw_backend(echo, speaks=(502,)) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        async with raw_client(dispatcher.location, 48) as client:
            await client.send(blob(serializer="pickle"))
            assert await client.receive() is None
        assert not backend.seen


# -- clients that misbehave or leave


@pytest.mark.parametrize("version", [48, 502])
async def test_another_object_is_refused(version: int) -> None:
    async with raw_backend(echo) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        client = await open_connection(dispatcher.location, version=version)
        with pytest.raises(CommunicationError, match="unknown object"):
            await introduce(client, "something.else", Settings())
        client.close()


RUBBISH = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(200),
    "half a header": b"PYRO\x01\xf6\x01",
    "invoke first": codec_for(502).encode(blob()),
    "huge announcement": codec_for(502).encode_head(Message(MessageType.CONNECT, 0, "serpent", 0, b""), 2**31),
    "garbled connect": codec_for(502).encode(Message(MessageType.CONNECT, 0, "serpent", 0, POISON)),
    "pickled connect": codec_for(48).encode(Message(MessageType.CONNECT, 0, "pickle", 0, b"cos\nsystem\n(S'x'\ntR.")),
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
async def test_rubbish_is_turned_away_and_others_are_served(rubbish: bytes) -> None:
    async with raw_backend(echo) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        host, port = dispatcher.location.split(":")
        bad = await trio.open_tcp_stream(host, int(port))
        await bad.send_all(rubbish)
        await bad.send_eof()
        async with raw_client(dispatcher.location) as client:
            assert (await ask(client, blob())).body == POISON
        try:
            while await bad.receive_some(4096):
                pass
        except trio.BrokenResourceError:
            pass  # a reset is a refusal too
        await bad.aclose()


async def test_nothing_behind_rubbish_is_read(caplog: pytest.LogCaptureFixture) -> None:
    """However much of it there is: one line says why the client was lost, and none is a traceback."""
    async with raw_backend(echo) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        async with raw_client(dispatcher.location) as client:
            with contextlib.suppress(PyroError):
                await client.send_encoded(bytes(1_000_000))
            await wait_for(lambda: dispatcher.facts["clients"] == 0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_rubbish_after_the_handshake_ends_that_client_only() -> None:
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as bad,
        raw_client(dispatcher.location) as good,
    ):
        await bad.send_encoded(bytes(100))
        assert await end_of(bad)
        assert (await ask(good, blob())).body == POISON


async def end_of(connection: Connection) -> bool:
    """Whether the peer closed, orderly or not."""
    try:
        return await connection.receive() is None
    except PyroError:
        return True


async def test_a_client_silent_within_a_small_message_takes_no_backend() -> None:
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as slow,
        raw_client(dispatcher.location) as client,
    ):
        encoded = codec_for(502).encode(blob())
        await slow.send_encoded(encoded[:-1])
        assert (await ask(client, blob())).body == POISON
        assert len(backend.seen) == 1
        await slow.send_encoded(encoded[-1:])
        answer = await slow.receive()
        assert isinstance(answer, Message)
        assert answer.body == POISON


async def test_a_client_that_leaves_in_mid_call_cancels_it() -> None:
    """The backend sees its connection close, and its slot is free again."""
    stuck = trio.Event()

    async def never(connection: Connection, request: Message) -> None:
        await stuck.wait()

    async with raw_backend(never) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        [known] = dispatcher.directory.services["orders"].group.backends
        async with raw_client(dispatcher.location) as client:
            await client.send(blob())
            await wait_for(lambda: backend.seen)
            assert known.in_flight == 1
        await wait_for(lambda: known.in_flight == 0)
        [connection] = backend.connections
        await wait_for(lambda: connection.peek() is False)


async def test_a_client_that_leaves_while_its_backend_is_connected_to_is_let_go() -> None:
    with socket.create_server(("localhost", 0)) as silent:
        config = config_for(f"PYRO:worker@localhost:{silent.getsockname()[1]}")
        async with Dispatcher(config) as dispatcher:
            [known] = dispatcher.directory.services["orders"].group.backends
            async with raw_client(dispatcher.location) as client:
                await client.send(blob())
                await wait_for(lambda: known.in_flight == 1)
            await wait_for(lambda: known.in_flight == 0)
            assert known.failures == 0


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stalls"])
async def test_a_client_lost_within_a_large_body_frees_the_backend(leaves: bool) -> None:
    """Half a request never runs: its connection to the backend is closed."""
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri, head="stall_timeout = 0.2")) as dispatcher,
    ):
        [known] = dispatcher.directory.services["orders"].group.backends
        async with raw_client(dispatcher.location) as client:
            head = codec_for(502).encode_head(blob(), 8 * MIB)
            await client.send_encoded(head, bytes(2 * MIB))
            await wait_for(lambda: known.in_flight == 1)
            if leaves:
                client.close()
            await wait_for(lambda: known.in_flight == 0)
            await wait_for(lambda: not backend.connections)
    assert not backend.seen


# -- stopping


async def test_stopping_cuts_no_call() -> None:
    release = trio.Event()

    async def slow(connection: Connection, request: Message) -> None:
        await release.wait()
        await echo(connection, request)

    async with raw_backend(slow) as backend, trio.open_nursery() as nursery:
        stop = trio.Event()
        places: list[str] = []

        async def serve() -> None:
            async with Dispatcher(config_for(backend.uri)) as dispatcher:
                places.append(dispatcher.location)
                await stop.wait()

        nursery.start_soon(serve)
        await wait_for(lambda: places)
        async with raw_client(places[0]) as busy, raw_client(places[0]) as idle:
            await busy.send(blob())
            await wait_for(lambda: backend.seen)
            stop.set()
            assert await idle.receive() is None
            with pytest.raises(CommunicationError):
                await open_connection(places[0])
            release.set()
            answer = await busy.receive()
            assert isinstance(answer, Message)
            assert answer.body == POISON
            assert await busy.receive() is None


async def test_an_error_of_the_body_comes_out_as_it_is() -> None:
    async with raw_backend(echo) as backend:
        with pytest.raises(KeyError):
            async with Dispatcher(config_for(backend.uri)):
                raise KeyError("mine")


async def test_backends_and_dispatcher_are_found_by_name() -> None:
    """A backend's name is looked up at every connect, so it may move; our own is there while we run."""
    name_server = FakeNameServer()
    async with Daemon() as names:
        names.register(name_server, "Pyro.NameServer")
        place = names.location
        async with raw_backend(echo) as one, raw_backend(echo) as two:
            name_server.entries["the.worker"] = one.uri
            head = f'register = "the.dispatcher"\nnameserver = "{place}"'
            async with Dispatcher(config_for("PYRONAME:the.worker", head=head)) as dispatcher:
                assert name_server.entries["the.dispatcher"] == str(dispatcher.uri)
                assert name_server.tags == {"the.dispatcher": ["pyroxfer.dispatcher"]}
                async with raw_client(dispatcher.location) as client:
                    await ask(client, blob(1))
                    one.die()
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    name_server.entries["the.worker"] = two.uri
                    assert (await ask(client, blob(2))).body == POISON
            assert "the.dispatcher" not in name_server.entries
        assert (len(one.seen), len(two.seen)) == (1, 1)


async def test_its_name_hangs_on_a_lease_and_comes_back_to_an_empty_name_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dispatcher that dies leaves no name behind, and one that lives is found after a restart of the names."""
    monkeypatch.setattr("pyroxfer_core.nameserver.keeping.RENEWALS", 60)

    async def run_ns(port: int, task_status: trio.TaskStatus[Any]) -> None:
        with trio.CancelScope() as scope:
            async with start_ns(port=port, broadcast=False) as names:
                task_status.started((names, scope))
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        first, scope = await nursery.start(run_ns, 0)
        head = f'register = "the.dispatcher"\nnameserver = "localhost:{first.uri.port}"'
        async with Dispatcher(config_for("PYRO:x@localhost:1", head=head)):
            (address,) = (await first.name_server.lookup_all("the.dispatcher"))["addresses"]
            assert address["ttl"]
            scope.cancel()
            second, scope = await nursery.start(run_ns, first.uri.port)
            with trio.fail_after(20):
                async with contextlib.aclosing(second.name_server.watch(prefix="the.")) as changes:
                    async for change in changes:
                        if change["entries"]:
                            break
        assert "the.dispatcher" not in await second.name_server.list()
        scope.cancel()


async def test_a_name_taken_over_by_another_dispatcher_is_left_alone() -> None:
    name_server = FakeNameServer()
    async with Daemon() as names:
        names.register(name_server, "Pyro.NameServer")
        head = f'register = "the.dispatcher"\nnameserver = "{names.location}"'
        async with Dispatcher(config_for("PYRO:x@localhost:1", head=head)):
            name_server.entries["the.dispatcher"] = "PYRO:other@localhost:1"
    assert name_server.entries == {"the.dispatcher": "PYRO:other@localhost:1"}


async def test_without_a_name_server_it_serves_and_registers_when_there_is_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That it is not registered is said, once. A name server lost later is no reason to fail."""
    monkeypatch.setattr(naming, "FIRST_PAUSE_S", 0.02)
    name_server = FakeNameServer()
    tried: list[None] = []
    begin = Registration.begin

    async def counted(registration: Registration) -> None:
        tried.append(None)
        await begin(registration)

    monkeypatch.setattr(Registration, "begin", counted)
    async with Daemon() as names:
        head = f'register = "x"\nnameserver = "{names.location}"'
        async with Dispatcher(config_for("PYRO:x@localhost:1", head=head)) as dispatcher:
            assert dispatcher.facts["registered"] is False
            await wait_for(lambda: len(tried) >= 3)
            names.register(name_server, "Pyro.NameServer")
            await wait_for(lambda: dispatcher.facts["registered"])
            assert name_server.entries == {"x": str(dispatcher.uri)}
            names.unregister("Pyro.NameServer")
    assert [record.getMessage().split()[0] for record in caplog.records if record.levelname == "WARNING"] == [
        "not_registered"
    ]


async def test_a_name_server_that_refuses_the_name_is_a_mistake_to_be_told() -> None:
    """Starting unregistered would hide it."""
    async with start_ns(port=0, broadcast=False) as names:
        head = f'register = "a\\u0007"\nnameserver = "localhost:{names.uri.port}"'
        with pytest.raises(NamingError, match="control characters"):
            async with Dispatcher(config_for("PYRO:x@localhost:1", head=head)):
                pass


async def test_an_open_door_is_refused_to_programs_too() -> None:
    config = msgspec.structs.replace(config_for("PYRO:x@localhost:1"), listen="0.0.0.0:0")
    with pytest.raises(ConfigError, match="insecure = true"):
        Dispatcher(config)


async def test_a_taken_address_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = config_for("PYRO:x@localhost:1")
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CommunicationError, match="cannot listen"):
            async with Dispatcher(msgspec.structs.replace(config, listen=place)):
                pass


def test_a_conversation_performs_every_command() -> None:
    """No command of the pure part is missing in the shell."""
    assert set(conversation._CARRY_OUT) == set(get_args(commands.Command))


async def test_dispatchers_that_lead_to_each_other_are_found_out() -> None:
    """A blob that would go round and round ends after four of them, as NotSent with the reason."""
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
    there = f"PYRO:{OBJECT}@localhost:{port}"
    async with Dispatcher(config_for(there)) as one:
        back = config_for(f"PYRO:{OBJECT}@{one.location}", head="")
        async with Dispatcher(msgspec.structs.replace(back, listen=f"localhost:{port}")):
            async with raw_client(one.location) as client:
                answer = text_of(await ask(client, blob()))
                assert "NotSent: " in answer
                assert "they lead to each other" in answer
