"""Limits of a live daemon: whatever is thrown at it is refused, others are answered, and its memory is bounded."""

from __future__ import annotations

import logging
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import pytest
import trio
from certificates import Certificates
from doubles import connect_bytes, invoke_bytes, raw_client, until

from pyroxfer_core import Daemon, Proxy, Settings, expose, logs, oneway
from pyroxfer_core.settings import MIB
from pyroxfer_core.transport import crowd
from pyroxfer_core.wire import codec_for
from pyroxfer_core.wire.message import Flags, Message, MessageType


@expose
class Demo:
    def __init__(self) -> None:
        self.release = threading.Event()
        self.noted = 0

    async def add(self, a: int, b: int) -> int:
        return a + b

    @oneway
    def note(self, text: str) -> None:
        self.release.wait(60)
        self.noted += 1


@pytest.fixture
async def demo() -> Demo:
    return Demo()


@pytest.fixture
async def daemon(demo: Demo) -> AsyncIterator[Daemon]:
    async with Daemon(settings=Settings(shutdown_grace_s=0, worker_threads=4)) as daemon:
        daemon.register(demo, "thing")
        yield daemon
        demo.release.set()


async def still_answers(daemon: Daemon) -> bool:
    async with Proxy(daemon.uri_for("thing"), settings=Settings(connect_timeout_s=5)) as proxy:
        return bool(await proxy.add(1, 2) == 3)


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """What Python holds at most while the block runs."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak / MIB:.1f} MiB"


async def test_500_half_open_connections(demo: Demo) -> None:
    """As many as the limit, none of which says a word, or says it slowly: others get in, and memory is small."""
    settings = Settings(shutdown_grace_s=0, max_half_open=100)
    async with Daemon(settings=settings) as daemon, trio.open_nursery() as nursery:
        daemon.register(demo, "thing")
        port, opened = int(daemon.location.rpartition(":")[2]), 0

        async def linger(number: int) -> None:
            nonlocal opened
            stream = await trio.open_tcp_stream("localhost", port)
            opened += 1
            async with stream:
                try:
                    await stream.send_all(connect_bytes()[: number % 60])
                    await stream.receive_some(1)
                except trio.BrokenResourceError:
                    pass

        with memory_below(20 * MIB):
            for number in range(500):
                nursery.start_soon(linger, number)
            await until(lambda: opened == 500)
            assert await still_answers(daemon)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("version", [48, 502])
async def test_a_zip_bomb(daemon: Daemon, version: int) -> None:
    """A gigabyte in one megabyte: refused by what it inflates to, before the handshake and after it."""
    packer = zlib.compressobj(9)
    start, codec = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH), codec_for(version)
    bomb = start + (packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)) * 1023
    with memory_below(100 * MIB):
        async with raw_client(daemon.location) as client:
            hello = Message(MessageType.CONNECT, 0, "serpent", Flags.COMPRESSED, bomb[: 60 * 1024])
            await client.send(codec.encode(hello))
            assert (await client.messages(version, 1))[0].type == MessageType.CONNECTFAIL
        daemon.settings = daemon.settings.with_changes(max_message_bytes=16 * MIB)
        async with raw_client(daemon.location) as client:
            await client.send(connect_bytes(version, "thing"))
            await client.messages(version, 1)
            await client.send(codec.encode(Message(MessageType.INVOKE, 1, "serpent", Flags.COMPRESSED, bomb)))
            (answer,) = await client.messages(version, 1)
            assert answer.flags & Flags.EXCEPTION
        assert await still_answers(daemon)


NESTED: dict[str, Callable[[int], bytes]] = {
    "serpent": lambda depth: b"# serpent utf-8 python3.2\n" + b"[" * depth + b"]" * depth,
    "json": lambda depth: b"[" * depth + b"]" * depth,
    "msgpack": lambda depth: b"\x91" * depth + b"\x90",
    "marshal": lambda depth: b"[\x01\x00\x00\x00" * depth + b"[\x00\x00\x00\x00",
}


@pytest.mark.parametrize("serializer", NESTED)
async def test_a_nesting_bomb(daemon: Daemon, serializer: str) -> None:
    """Values nested a hundred thousand deep are an error of that request, in the handshake of that connection."""
    for depth, kind in ((60_000, "before"), (100_000, "after")):
        body = NESTED[serializer](depth if serializer != "marshal" else depth // 5)
        async with raw_client(daemon.location) as client:
            if kind == "before":
                await client.send(
                    codec_for(502).encode(Message(MessageType.CONNECT, 0, serializer, 0, body[:60_000]))
                )
                assert (await client.messages(502, 1))[0].type == MessageType.CONNECTFAIL
                continue
            await client.send(connect_bytes(object_id="thing"))
            await client.messages(502, 1)
            await client.send(codec_for(502).encode(Message(MessageType.INVOKE, 1, serializer, 0, body)))
            (answer,) = await client.messages(502, 1)
            assert answer.flags & Flags.EXCEPTION
    assert await still_answers(daemon)


async def test_an_endless_flood_of_oneway_calls(daemon: Daemon, demo: Demo) -> None:
    """It is slowed down to what can be done: what waits is bounded in number and in bytes, and others are served."""
    request = invoke_bytes("note", f"('{'x' * 100_000}',)", flags=Flags.ONEWAY)
    sent = 0
    async with raw_client(daemon.location) as client, trio.open_nursery() as nursery:
        await client.send(connect_bytes(object_id="thing"))
        await client.messages(502, 1)

        async def flood() -> None:
            nonlocal sent
            while True:
                await client.send(request)
                sent += 1

        with memory_below(80 * MIB):
            nursery.start_soon(flood)
            before = -1
            while before != sent:  # until it has to wait
                before = sent
                await trio.sleep(0.3)
            assert sent < 600
            assert await still_answers(daemon)
        demo.release.set()
        await until(lambda: demo.noted > 600)  # it goes on as fast as the calls end
        nursery.cancel_scope.cancel()


async def test_connections_from_one_machine(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One machine cannot take them all; this one is not limited, and who leaves makes room."""
    settings = Settings(shutdown_grace_s=0, max_connections_per_host=3)
    async with Daemon(settings=settings) as daemon:
        uri = daemon.register(demo, "thing")
        proxies = [Proxy(uri) for _ in range(5)]
        for proxy in proxies:
            assert await proxy.add(1, 1) == 2
            proxy._pyroRelease()
        monkeypatch.setattr(crowd, "is_local_address", lambda address: False)
        for proxy in proxies[:3]:
            assert await proxy.add(1, 1) == 2
        async with raw_client(daemon.location) as client:
            assert await client.until_closed() == b""
        assert "a connection from 127.0.0.1 was closed: it has 3 already" in caplog.text
        proxies[0]._pyroRelease()
        await until(lambda: daemon.statistics().connections == 2)
        assert await proxies[4].add(1, 1) == 2
        for proxy in proxies:
            proxy._pyroRelease()


@pytest.mark.parametrize("probe", [b"", b"x\n", b"hello\n", b"PYRO", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_version_probe(daemon: Daemon, probe: bytes) -> None:
    """``nc`` that connects, sends anything or nothing, and closes its side: PYRO and a version come back."""
    async with raw_client(daemon.location) as client:
        await client.send(probe)
        await client.stream.send_eof()
        answer = await client.until_closed()
    assert answer[:6] == b"PYRO\x01\xf6"


async def test_only_accepted_serializers_are_read(demo: Demo) -> None:
    """Whatever a client speaks, what is not on the list is refused before it is looked at."""
    settings = Settings(shutdown_grace_s=0, accepted_serializers=frozenset({"json"}))
    async with Daemon(settings=settings) as daemon:
        uri = daemon.register(demo, "thing")
        async with Proxy(uri, settings=Settings(serializer="json")) as proxy:
            assert await proxy.add(1, 1) == 2
        async with Proxy(uri, settings=Settings(serializer="marshal")) as proxy:
            with pytest.raises(Exception, match="not accepted: marshal"):
                await proxy.add(1, 1)


async def test_the_limits_hold_under_tls(certificates: Certificates, demo: Demo) -> None:
    """A gigabyte announced inside TLS before the handshake of the protocol is refused unread."""
    settings = certificates.settings(shutdown_grace_s=0)
    async with Daemon(settings=settings) as daemon:
        daemon.register(demo, "thing")
        stream = await trio.open_tcp_stream("localhost", int(daemon.location.rpartition(":")[2]))
        client = trio.SSLStream(stream, certificates.client_context(), server_hostname="localhost")
        with memory_below(10 * MIB):
            head = codec_for(502).encode_head(Message(MessageType.CONNECT, 0, "serpent", 0, b""), 1 << 30)
            await client.send_all(head)
            assert b"message too large" in await client.receive_some(4096)
        await stream.aclose()


def test_texts_of_peers_cannot_forge_lines_of_the_log() -> None:
    """Line breaks and terminal codes are written as escapes; a traceback still has its lines."""
    formatter = logs.OneLine(logs.FORMAT)
    record = logging.LogRecord(
        "pyroxfer", logging.WARNING, "", 1, "%s said %s", ("bob", "x\n2026 ERROR \x1b[2J"), None
    )
    assert formatter.format(record).endswith(r"bob said x\n2026 ERROR \x1b[2J")
    try:
        raise ValueError("no")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    assert formatter.format(record).endswith("\nValueError: no")
