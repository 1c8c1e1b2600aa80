"""What differs by protocol and settings: signatures, compression, serializers, sizes, and blobs passed on."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from doubles import connect_bytes, raw_client

from pyroxfer_core import Daemon, Proxy, SerializedBlob, Settings, current_call, expose, open_side_stream
from pyroxfer_core.errors import (
    CommunicationError,
    Outcome,
    PyroError,
    SecurityError,
    SerializeError,
)
from pyroxfer_core.wire import codec_for
from pyroxfer_core.wire.message import Message, MessageType

BOTH = pytest.mark.parametrize("protocol", [48, 502])


@expose
class Service:
    def __init__(self) -> None:
        self.calls = 0
        self.blobs: list[Any] = []
        self.next_uri = ""

    async def echo(self, value: Any) -> Any:
        self.calls += 1
        return value

    async def repeat(self, text: str, count: int) -> str:
        self.calls += 1
        return text * count

    async def fail(self, text: str) -> None:
        self.calls += 1
        raise ValueError(text)

    async def annotate(self, size: int, chunks: int = 1) -> str:
        self.calls += 1
        current_call.response_annotations = {f"A{number:03}": bytes(size) for number in range(chunks)}
        return "annotated"

    async def annotate_badly(self, key: str) -> None:
        self.calls += 1
        current_call.response_annotations = {key: b"value"}

    async def take(self, blob: SerializedBlob) -> list[Any]:
        self.blobs.append(blob)
        return [blob.info, blob.deserialized()]

    async def pass_on(self, blob: SerializedBlob) -> Any:
        self.blobs.append(blob)
        settings = Settings(protocol=current_call.protocol)
        async with Proxy(self.next_uri, settings=settings) as proxy:
            return await proxy.take(blob)


# --- signatures --------------------------------------------------------------------------------------------------

KEYED = Settings(hmac_key=b"secret", shutdown_grace_s=0)


async def test_signed_calls() -> None:
    async with Daemon(settings=KEYED) as daemon, Proxy(daemon.register(Service()), settings=KEYED) as proxy:
        assert await proxy.echo([1, 2]) == [1, 2]
        assert await proxy.repeat("x", 200_000) == "x" * 200_000
        with pytest.raises(ValueError, match="text"):
            await proxy.fail("text")
        call = proxy.echo.options(annotations={"ZZZZ": b"1", "AAAA": b"2"}, correlation_id=bytes(16))(3)
        assert await call == 3
        assert proxy._pyroLink is not None
        assert proxy._pyroLink.version == 48


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [
        (None, b"secret", "not symmetric"),
        (b"secret", None, "not symmetric"),
        (b"wrong", b"secret", "mismatch"),
    ],
)
async def test_keys_that_differ(ours: bytes | None, theirs: bytes | None, text: str) -> None:
    service = Service()
    async with Daemon(settings=Settings(hmac_key=theirs, shutdown_grace_s=0)) as daemon:
        uri = daemon.register(service)
        async with Proxy(uri, settings=Settings(hmac_key=ours, protocol=48)) as proxy:
            with pytest.raises(PyroError, match=text) as caught:
                await proxy.echo(1)
            assert isinstance(caught.value, (CommunicationError, SecurityError))
    assert service.calls == 0


async def test_a_key_cannot_be_walked_around() -> None:
    async with Daemon(settings=KEYED) as daemon:
        uri = daemon.register(Service())
        daemon.side_stream_handler = refuse_to_be_called
        with pytest.raises(CommunicationError, match="only protocol 48") as caught:
            await Proxy(uri, settings=Settings(protocol=502)).echo(1)
        assert caught.value.outcome is Outcome.NOT_SENT
        async with await open_side_stream(daemon.location, b"x") as stream:
            assert await stream.receive_some() == b""


async def refuse_to_be_called(stream: Any) -> None:
    raise AssertionError("a side stream went around the key")


async def test_a_signature_that_goes_wrong_later_ends_the_connection() -> None:
    service = Service()
    codec = codec_for(48)
    async with Daemon(settings=KEYED) as daemon:
        daemon.register(service, "thing")
        async with raw_client(daemon.location) as client:
            hello = b"# serpent utf-8 python3.2\n{'handshake':'hello','object':'thing'}"
            await client.send(codec.encode(Message(MessageType.CONNECT, 0, "serpent", 0, hello), hmac_key=b"secret"))
            await client.receive()
            call = b"# serpent utf-8 python3.2\n('thing','echo',(1,),{})"
            await client.send(codec.encode(Message(MessageType.INVOKE, 1, "serpent", 0, call), hmac_key=b"other"))
            assert await client.until_closed() == b""
    assert service.calls == 0


# --- compression -------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("ours", "theirs"), [(True, True), (True, False), (False, True)])
async def test_compression_is_each_senders_choice(protocol: int, ours: bool, theirs: bool) -> None:
    async with Daemon(settings=Settings(compression=theirs)) as daemon:
        settings = Settings(protocol=protocol, compression=ours)
        async with Proxy(daemon.register(Service()), settings=settings) as proxy:
            for text in ("", "x" * 99, "y" * 300, "z" * 100_000):
                assert await proxy.echo(text) == text
            with pytest.raises(ValueError, match="boom"):
                await proxy.fail("boom " * 100)
            sent = proxy._pyroLink.connection.sent if proxy._pyroLink else 0
            assert (sent < 60_000) is ours


@BOTH
async def test_inflating_is_bounded(protocol: int) -> None:
    """A body that is small on the wire and large in memory is refused by whoever would have to hold it."""
    service = Service()
    small = Settings(max_message_bytes=100_000)
    async with Daemon(settings=small.with_changes(compression=True)) as daemon:
        uri = daemon.register(service)
        async with Proxy(uri, settings=Settings(protocol=protocol, compression=True)) as proxy:
            with pytest.raises(PyroError, match="after inflating"):
                await proxy.echo("x" * 1_000_000)
            assert service.calls == 0
        async with Proxy(uri, settings=small.with_changes(protocol=protocol)) as proxy:
            with pytest.raises(SerializeError, match="after inflating") as caught:
                await proxy.repeat("x", 1_000_000)
            assert caught.value.outcome is Outcome.EXECUTED
            assert service.calls == 1
            assert await proxy.echo(1) == 1


# --- sizes -------------------------------------------------------------------------------------------------------


@BOTH
async def test_requests_over_the_daemons_limit(protocol: int) -> None:
    service = Service()
    async with Daemon(settings=Settings(max_message_bytes=100_000)) as daemon:
        async with Proxy(daemon.register(service), settings=Settings(protocol=protocol)) as proxy:
            assert await proxy.echo("x" * 90_000)
            with pytest.raises(CommunicationError) as caught:
                await proxy.echo("x" * 5_000_000)
            assert caught.value.outcome in (Outcome.UNKNOWN, Outcome.NOT_SENT)
            assert service.calls == 1
            assert await proxy.echo(1) == 1


@BOTH
async def test_answers_over_the_proxys_limit(protocol: int) -> None:
    service = Service()
    async with Daemon() as daemon:
        settings = Settings(protocol=protocol, max_message_bytes=100_000)
        async with Proxy(daemon.register(service), settings=settings) as proxy:
            with pytest.raises(CommunicationError, match="too large") as caught:
                await proxy.repeat("x", 1_000_000)
            assert caught.value.outcome in (Outcome.UNKNOWN, Outcome.EXECUTED)
            assert await proxy.echo(1) == 1
    assert service.calls == 2


async def test_answers_that_protocol_48_cannot_carry() -> None:
    service = Service()
    async with Daemon() as daemon, Proxy(daemon.register(service), settings=Settings(protocol=48)) as proxy:
        with pytest.raises(PyroError, match="the call ran, but its result cannot be sent"):
            await proxy.annotate(70_000)
        assert await proxy.annotate(60_000) == "annotated"
        assert service.calls == 2


@BOTH
@pytest.mark.parametrize("key", ["", "TOO LONG", "öööö"])
async def test_annotations_that_cannot_be_written(protocol: int, key: str) -> None:
    async with Daemon() as daemon:
        async with Proxy(daemon.register(Service()), settings=Settings(protocol=protocol)) as proxy:
            with pytest.raises(PyroError, match="the call ran, but"):
                await proxy.annotate_badly(key)
            assert await proxy.echo(1) == 1


async def test_too_many_annotations_of_an_answer() -> None:
    async with Daemon() as daemon, Proxy(daemon.register(Service())) as proxy:
        with pytest.raises(CommunicationError, match="more than 64") as caught:
            await proxy.annotate(1, chunks=65)
        assert caught.value.outcome in (Outcome.UNKNOWN, Outcome.EXECUTED)
        assert await proxy.annotate(1, chunks=64) == "annotated"


# --- serializers -------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", ["serpent", "json", "marshal", "msgpack"])
async def test_every_serializer(protocol: int, name: str) -> None:
    async with Daemon() as daemon:
        settings = Settings(protocol=protocol, serializer=name)
        async with Proxy(daemon.register(Service()), settings=settings) as proxy:
            value = [1, "two", None, True, 2.5, {"three": [3]}]
            assert list(await proxy.echo(value)) == value
            with pytest.raises(ValueError, match="told"):
                await proxy.fail("told")


@BOTH
async def test_serializers_that_a_daemon_does_not_accept(protocol: int) -> None:
    accepted = frozenset({"serpent", "marshal"})
    service = Service()
    async with Daemon(settings=Settings(accepted_serializers=accepted)) as daemon:
        uri = daemon.register(service, "thing")
        with pytest.raises(CommunicationError, match="not accepted: json"):
            await Proxy(uri, settings=Settings(protocol=protocol, serializer="json")).echo(1)
        async with raw_client(daemon.location) as client:
            await client.send(connect_bytes(protocol))
            assert (await client.messages(protocol, 1))[0].type == MessageType.CONNECTOK
            body = b'{"object":"thing","method":"echo","params":[1],"kwargs":{}}'
            await client.send(codec_for(protocol).encode(Message(MessageType.INVOKE, 1, "json", 0, body)))
            (answer,) = await client.messages(protocol, 2)
            assert answer.type == MessageType.RESULT
            assert b"not accepted" in bytes(answer.body)
    assert service.calls == 0


async def test_between_our_own_every_value_keeps_its_type() -> None:
    value = {"t": (1, 2), "s": {3}, "f": frozenset({4}), "b": b"5", "big": 2**80, "n": None, 6: "six"}
    async with Daemon() as daemon, Proxy(daemon.register(Service())) as proxy:
        assert await proxy.echo(value) == value
        assert type(await proxy.echo((1,))) is tuple
        assert await proxy.echo(bytes(100_000)) == bytes(100_000)


# --- blobs -------------------------------------------------------------------------------------------------------


@BOTH
async def test_a_blob_is_read_where_it_is_needed(protocol: int) -> None:
    service = Service()
    async with Daemon() as daemon, Proxy(daemon.register(service), settings=Settings(protocol=protocol)) as proxy:
        info, data = await proxy.take(SerializedBlob("label", [1, "two", [3]]))
        assert (info, list(data)) == ("label", [1, "two", [3]])
        for wrong in ([SerializedBlob("x", [1]), 2], [1, SerializedBlob("x", [1])]):
            with pytest.raises(SerializeError) as caught:
                await proxy.take(*wrong)
            assert caught.value.outcome is Outcome.NOT_SENT
        assert list(await proxy.echo([1])) == [1]


@BOTH
@pytest.mark.parametrize("serializer", ["serpent", "json", "marshal", "msgpack"])
@pytest.mark.parametrize("data", [{"k": [1, "two"]}, "text", 7, None, [1, [2]]])
async def test_the_data_of_a_blob_need_not_be_a_list(protocol: int, serializer: str, data: object) -> None:
    """Whatever stands in the place of the arguments arrives as it was given."""
    settings = Settings(protocol=protocol, serializer=serializer)
    async with Daemon() as daemon, Proxy(daemon.register(Service()), settings=settings) as proxy:
        assert await proxy.take(SerializedBlob("label", data)) == ["label", data]


@BOTH
async def test_a_blob_passes_through_a_middle_daemon_untouched(protocol: int) -> None:
    """The body could not even be read in the middle; the same bytes arrive at the end."""
    middle, end = Service(), Service()
    poisoned = b"\xff\xfe this is no serpent \x00"
    async with Daemon() as first, Daemon() as last:
        first.register(middle, "thing")
        middle.next_uri = str(last.register(end, "last"))
        async with raw_client(first.location) as client:
            await client.send(connect_bytes(protocol))
            await client.messages(protocol, 1)
            info = b"\xa9\x03\xda\x05label\xda\x05thing\xda\x07pass_on"
            request = Message(MessageType.INVOKE, 1, "serpent", 0x20, poisoned, {"BLBI": info})
            await client.send(codec_for(protocol).encode(request))
            (answer,) = await client.messages(protocol, 1)
            assert answer.type == MessageType.RESULT
            assert b"SerializeError" in bytes(answer.body), "the end wanted to read it"
        assert bytes(middle.blobs[0].message.body) == bytes(end.blobs[0].message.body) == poisoned
        assert end.blobs[0].info == "label"
        settings = Settings(protocol=protocol, serializer="serpent", compression=True)
        async with Proxy(first.uri_for("thing"), settings=settings) as proxy:
            info, data = await proxy.pass_on(SerializedBlob("again", ["x" * 1000]))
            assert (info, list(data)) == ("again", ["x" * 1000])
        assert bytes(middle.blobs[1].message.body) == bytes(end.blobs[1].message.body)
        assert len(end.blobs[1].message.body) < 500, "still compressed"


async def test_our_own_clients_blob_through_a_middle_daemon() -> None:
    middle, end = Service(), Service()
    async with Daemon() as first, Daemon() as last:
        middle.next_uri = str(last.register(end))
        async with Proxy(first.register(middle)) as proxy, trio.open_nursery() as nursery:

            async def call(number: int) -> None:
                assert await proxy.pass_on(SerializedBlob(number, [[number], "text"])) == [number, [[number], "text"]]

            for number in range(5):
                nursery.start_soon(call, number)
