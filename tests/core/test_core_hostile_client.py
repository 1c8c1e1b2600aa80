"""Clients that break the rules: recorded malformed conversations, floods, mutated sessions, against a live daemon."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from doubles import (
    RawClient,
    connect_bytes,
    damaged_session,
    invoke_bytes,
    malformed_vectors,
    raw_client,
    until,
)

from pyroxfer_core import Daemon, Proxy, Settings, expose
from pyroxfer_core.wire import Decoder, codec_for
from pyroxfer_core.wire.features import FEATURES_KEY, Feature, write_offer
from pyroxfer_core.wire.message import Message, MessageType

CONNECTFAIL, RESULT = "CONNECTFAIL", "RESULT"
NAMES = {1: "CONNECT", 2: "CONNECTOK", 3: CONNECTFAIL, 5: RESULT, 6: "PING"}

STRICTER = {
    "p4.malformed.before-handshake.annotation-long": (CONNECTFAIL, True),  # a chunk that does not fit is an error
    "p5.malformed.before-handshake.unknown-serializer": (CONNECTFAIL, True),  # Pyro5 fails in its own error handler
    "p4.malformed.before-handshake.other-version": (CONNECTFAIL, True),
    "p5.malformed.before-handshake.other-version": (CONNECTFAIL, True),
    "p4.malformed.after-handshake.unknown-serializer": (RESULT, True),  # told why, in marshal
    "p5.malformed.after-handshake.unknown-serializer": (RESULT, True),
    "p5.malformed.after-handshake.bad-zlib": (RESULT, False),  # inflated late, so the stream is still in step
    "p4.malformed.after-handshake.bad-corr": (None, True),  # read with the header, so it is out of step
    **{
        f"{library}.malformed.after-handshake.{name}": (RESULT, True)  # as for every request that cannot be read
        for library in ("p4", "p5")
        for name in ("garbage", "not-four", "no-blbi")
    },
}
"""Where the daemon answers otherwise than the recorded library: kind of answer, and whether the connection ends."""

VECTORS = [*malformed_vectors("pyro4"), *malformed_vectors("pyro5")]


@expose
class Demo:
    def __init__(self) -> None:
        self.calls = 0

    async def add(self, first: int, second: int) -> int:
        self.calls += 1
        return first + second

    async def echo(self, value: Any) -> Any:
        self.calls += 1
        return value


SETTINGS = Settings(connect_timeout_s=2, shutdown_grace_s=0)


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    async with Daemon(settings=SETTINGS) as daemon:
        daemon.register(Demo(), "demo")
        daemon.register(Demo(), "thing")
        yield daemon


async def greeted(client: RawClient, version: int) -> None:
    await client.send(connect_bytes(version))
    (welcome,) = await client.messages(version, 1)
    assert welcome.type == MessageType.CONNECTOK


async def reaction(client: RawClient, version: int) -> tuple[str | None, bool]:
    """The kind of the next answer, and whether the connection is closed; a ping tells the two apart."""
    try:
        await client.send(codec_for(version).encode(Message(MessageType.PING, 99, "ping", 0, b"ping")))
    except trio.BrokenResourceError:
        return None, True
    decoder = Decoder(codec_for(version))
    kind = None
    while True:
        event = decoder.next_event()
        if isinstance(event, Message):
            if event.type == MessageType.PING:
                return kind, False
            kind = NAMES[event.type]
        elif not (data := await client.receive()):
            return kind, True
        else:
            decoder.feed(data)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
async def test_recorded_malformed_conversations(daemon: Daemon, vector: dict[str, Any]) -> None:
    sent = bytes.fromhex(vector["sent_hex"])
    if not sent:
        return
    version = vector["protocol_version"]
    answer_version = 502 if vector["phase"] == "before-handshake" and sent[:6] not in KNOWN else version
    answer_version = int.from_bytes(sent[4:6], "big") if sent[:6] in KNOWN else answer_version
    recorded = (vector.get("answer_header") or {}).get("type_name"), vector["connection_closed_by_server"]
    expected = STRICTER.get(vector["name"], recorded)
    async with Proxy(daemon.uri_for("demo")) as bystander, raw_client(daemon.location) as client:
        assert await bystander.add(1, 1) == 2
        if vector["phase"] == "after-handshake":
            await greeted(client, version)
        await client.send(sent)
        if expected[1] and vector["phase"] == "before-handshake":
            answers = await client.messages(answer_version, 2)
            kinds = [NAMES[answer.type] for answer in answers]
            assert kinds == [expected[0]], "one refusal, then the end"
        elif expected[0] == "CONNECTOK":
            (answer,) = await client.messages(answer_version, 1)
            assert answer.type == MessageType.CONNECTOK
            assert await reaction(client, answer_version) == (None, False)
        else:
            assert await reaction(client, answer_version) == expected
        assert await bystander.add(2, 2) == 4


KNOWN = {b"PYRO\x00\x30", b"PYRO\x01\xf6"}


def offering(object_id: str = "thing") -> tuple[bytes, Message]:
    """CONNECT of a client that offers all features."""
    body = f"# serpent utf-8 python3.2\n{{'handshake':'hello','object':'{object_id}'}}".encode()
    annotations: dict[str, Any] = {FEATURES_KEY: write_offer(Feature.ALL, b"n" * 16)}
    message = Message(MessageType.CONNECT, 0, "serpent", 0, body, annotations)
    return codec_for(502).encode(message), message


async def befriended(client: RawClient) -> bytes:
    """Shake hands as one of ours; the daemon's nonce."""
    await client.send(offering()[0])
    (welcome,) = await client.messages(502, 1)
    grant = bytes(welcome.annotations[FEATURES_KEY])
    bits, echoed, nonce = struct.unpack_from("!xI16s16s", grant)
    assert (bits, echoed) == (Feature.ALL, b"n" * 16)
    return bytes(nonce)


def confirming(nonce: bytes, seq: int = 1, method: str = "echo", args: str = "(1,)") -> bytes:
    body = f"# serpent utf-8 python3.2\n('thing','{method}',{args},{{}})".encode()
    annotations: dict[str, Any] = {FEATURES_KEY: write_offer(Feature.ALL, nonce)}
    return codec_for(502).encode(Message(MessageType.INVOKE, seq, "serpent", 0, body, annotations))


@pytest.mark.parametrize("nonce", [None, b"n" * 16, b"wrong nonce here"])
async def test_cancel_without_a_confirmed_grant_ends_the_connection(daemon: Daemon, nonce: bytes | None) -> None:
    cancel = codec_for(502).encode(Message(MessageType.CANCEL, 1, "ping", 0, b""))
    async with raw_client(daemon.location) as client:
        await befriended(client)
        if nonce is not None:
            await client.send(confirming(nonce))
            await client.messages(502, 1)
        await client.send(cancel)
        assert await client.until_closed() == b""


async def test_cancelling_what_does_not_run_is_nothing(daemon: Daemon) -> None:
    async with raw_client(daemon.location) as client:
        await client.send(confirming(await befriended(client)))
        await client.messages(502, 1)
        for seq in (0, 1, 7, 65535):
            await client.send(codec_for(502).encode(Message(MessageType.CANCEL, seq, "ping", 0, b"")))
        await client.send(invoke_bytes("echo", "(2,)", seq=2))
        (answer,) = await client.messages(502, 1)
        assert answer.seq == 2


@pytest.mark.parametrize("sent", [b"goaway", b"connectok"])
async def test_messages_of_the_other_side_end_the_connection(daemon: Daemon, sent: bytes) -> None:
    kind = MessageType.GOAWAY if sent == b"goaway" else MessageType.CONNECTOK
    async with raw_client(daemon.location) as client:
        await client.send(confirming(await befriended(client)))
        await client.messages(502, 1)
        await client.send(codec_for(502).encode(Message(kind, 1, "serpent", 0, b"")))
        assert await client.until_closed() == b""


async def test_a_sequence_number_used_twice_at_once_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    @expose
    class Hanging:
        async def hang(self) -> None:
            await trio.sleep_forever()

    async with Daemon(settings=SETTINGS) as daemon:
        daemon.register(Hanging(), "thing")
        async with raw_client(daemon.location) as client:
            nonce = await befriended(client)
            await client.send(confirming(nonce, method="hang", args="()") + invoke_bytes("hang", seq=1))
            assert await client.until_closed() == b""
    assert "unexpected" not in caplog.text, "a rule that was broken, not a surprise"


async def test_a_gigabyte_announced_before_the_handshake_is_refused_unread(daemon: Daemon) -> None:
    for version in (48, 502):
        head = codec_for(version).encode_head(Message(MessageType.CONNECT, 0, "serpent", 0, b""), 1 << 30)
        async with raw_client(daemon.location) as client:
            await client.send(head)
            (refusal,) = await client.messages(version, 2)
            assert refusal.type == MessageType.CONNECTFAIL
            assert b"message too large (1073741824, max=65536)" in bytes(refusal.body)


async def test_memory_follows_what_came_not_what_was_announced(daemon: Daemon) -> None:
    """After the handshake a message may be large, but 20 clients that announce 900 MB hold next to nothing."""
    head = codec_for(502).encode_head(Message(MessageType.INVOKE, 1, "serpent", 0, b""), 900_000_000)
    async with trio.open_nursery() as nursery:
        ready: list[int] = []

        async def announce() -> None:
            async with raw_client(daemon.location) as client:
                await greeted(client, 502)
                await client.send(head + bytes(1000))
                ready.append(1)
                await trio.sleep_forever()

        tracemalloc.start()
        try:
            for _ in range(20):
                nursery.start_soon(announce)
            await until(lambda: len(ready) == 20)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
        finally:
            tracemalloc.stop()
        nursery.cancel_scope.cancel()


async def test_requests_that_nobody_reads_the_answers_of_do_not_pile_up(daemon: Daemon) -> None:
    """The daemon stops reading a client that does not read."""
    async with raw_client(daemon.location) as client, Proxy(daemon.uri_for("demo")) as bystander:
        await greeted(client, 502)
        request = invoke_bytes("echo", f"('{'x' * 50_000}',)")
        with trio.move_on_after(0.5) as scope:
            for _ in range(2000):  # 100 MB
                await client.send(request)
        assert scope.cancelled_caught
        (peer,) = [peer for peer in daemon.peers if peer.connection.peer.endswith(str(port_of(client)))]
        assert peer.connection.queued - peer.connection.sent < 1_000_000
        assert await bystander.add(1, 1) == 2


def port_of(client: RawClient) -> int:
    port: int = client.stream.socket.getsockname()[1]
    return port


async def test_many_pings_at_once(daemon: Daemon) -> None:
    async with raw_client(daemon.location) as client:
        await greeted(client, 502)
        pings = [codec_for(502).encode(Message(MessageType.PING, seq, "unknown-9", 0, b"?")) for seq in range(500)]
        await client.send(b"".join(pings))
        answers = await client.messages(502, 500)
        assert [(answer.seq, bytes(answer.body), answer.serializer) for answer in answers] == [
            (seq, b"pong", "unknown-9") for seq in range(500)
        ]


async def test_a_stock_clients_pipelined_requests_are_answered_in_order(daemon: Daemon) -> None:
    async with raw_client(daemon.location) as client:
        requests = (invoke_bytes("echo", f"({seq},)", seq=seq) for seq in range(200))
        await client.send(connect_bytes(502) + b"".join(requests))
        answers = await client.messages(502, 201)
        assert [answer.seq for answer in answers[1:]] == list(range(200))


async def test_mutated_sessions(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    """Damage anywhere in a session: the daemon goes on for the others, and is never surprised."""
    damage = random.Random(20240229)
    for _ in range(200):
        async with raw_client(daemon.location) as client:
            await client.say_all(damaged_session(damage))
    assert "unexpected error" not in caplog.text
    async with Proxy(daemon.uri_for("demo")) as proxy:
        assert await proxy.add(1, 1) == 2
    await until(lambda: daemon.statistics().connections == 0)


@pytest.mark.parametrize("sent", [0, 6, 30, 60])
async def test_a_client_that_does_not_finish_its_handshake_is_told_and_cut(sent: int) -> None:
    """After bytes that tell the protocol, too, and however often a byte more comes."""
    settings = Settings(connect_timeout_s=0.2)
    async with Daemon(settings=settings) as daemon, raw_client(daemon.location) as client:
        hello = connect_bytes()
        await client.send(hello[:sent])

        async def drip() -> None:
            for number in range(sent, len(hello)):
                await trio.sleep(0.05)
                await client.send(hello[number : number + 1])

        async with trio.open_nursery() as nursery:
            if sent:
                nursery.start_soon(drip)
            answer = await client.until_closed()
            nursery.cancel_scope.cancel()
        assert b"timeout" in answer
