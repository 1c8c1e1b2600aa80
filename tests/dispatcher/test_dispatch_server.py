"""The dispatcher between real sockets: what passes, whom it turns away, how it begins and ends."""

from __future__ import annotations

import contextlib
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
    ask,
    blob,
    config_for,
    echo,
    end_of,
    held,
    raw_backend,
    raw_client,
    text_of,
    wait_for,
)

from pyroxfer_core import Connection, Daemon, Proxy, SerializedBlob, Settings, expose, introduce, open_connection
from pyroxfer_core.errors import CommunicationError, PyroError
from pyroxfer_core.wire import Flags, Message, MessageType, codec_for
from pyroxfer_dispatcher import Dispatcher, commands, conversation
from pyroxfer_dispatcher.config import ConfigError

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


async def test_pickle_passes_where_both_ends_have_it() -> None:
    """The dispatcher reads no body, so what the ends agree on is theirs; protocol 502 has no number for it."""
    async with (
        raw_backend(echo, speaks=(48,)) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location, 48) as client,
    ):
        assert (await ask(client, blob(serializer="pickle"))).body == POISON


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


# -- beginning and end


async def test_stopping_cuts_no_call() -> None:
    release = trio.Event()

    async with raw_backend(held(release)) as backend, trio.open_nursery() as nursery:
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
