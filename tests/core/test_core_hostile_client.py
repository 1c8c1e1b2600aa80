"""Clients that break the rules: recorded malformed conversations, floods, mutated sessions, against a live daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from doubles import RawClient, connect_bytes, malformed_vectors, raw_client

from pyroxfer_core import Daemon, Proxy, Settings, expose
from pyroxfer_core.wire import Decoder, codec_for
from pyroxfer_core.wire.message import Message, MessageType

pytestmark = pytest.mark.deadline(10)

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
