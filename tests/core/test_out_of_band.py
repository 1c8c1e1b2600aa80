"""Large bytes and arrays behind the body: types are kept, nothing is copied for sending, rubbish is refused."""

from __future__ import annotations

import array
import threading
from typing import Any

import numpy as np
import pytest
from facade_doubles import serving
from hypothesis import given, settings
from hypothesis import strategies as st

from pyroxfer_core import Daemon, Proxy, SerializedBlob, Settings, blocking, expose
from pyroxfer_core.errors import Outcome, PyroError, SerializeError
from pyroxfer_core.serializers import SerializerContext, make_serializer
from pyroxfer_core.serializers.msgpack import MsgpackSerializer
from pyroxfer_core.serializers.outofband import LARGE, MARK, MAX_PARTS
from pyroxfer_core.wire.scattered import Scattered, joined, slices

OWN = SerializerContext(502, own=True, out_of_band=True)
SERIALIZER = MsgpackSerializer(OWN)
BIG = bytes(range(256)) * 400


def there_and_back(value: Any) -> Any:
    return SERIALIZER.loads(bytearray(joined(SERIALIZER.dumps(value))))


raw = st.builds(
    lambda seed, size: bytes([seed]) * size, st.integers(0, 255), st.sampled_from([0, 3, LARGE - 1, LARGE])
)
leaves = raw | raw.map(bytearray) | st.integers() | st.text(max_size=5) | st.none()
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.sets(raw | st.integers(), max_size=1)
    ),
    max_leaves=12,
)


@given(values)
def test_every_value_keeps_its_type_whatever_its_size(value: Any) -> None:
    """What arrives equals what was sent, and prints alike: bytes are not bytearrays, tuples not lists."""
    assert repr(there_and_back(value)) == repr(value)
    packed = joined(SERIALIZER.dumps_call("o", "m", (value,), {"key": value}))
    assert repr(SERIALIZER.loads_call(packed)) == repr(("o", "m", [value], {"key": value}))


def test_large_arguments_are_not_copied_to_be_sent() -> None:
    """The very object stands among the buffers of the body, and the slices of it are views."""
    body = SERIALIZER.dumps_call("o", "m", ([BIG], 1), {})
    assert isinstance(body, Scattered)
    assert any(buffer is BIG for buffer in body.buffers)
    whole = b"".join(bytes(view) for piece in slices(body, 1000) for view in piece)
    assert whole == joined(body)
    assert [sum(map(len, piece)) for piece in slices(body, 65536)] == [65536, len(whole) - 65536]


def test_a_result_does_not_change_while_it_is_being_sent() -> None:
    """A handler may go on writing to the buffer that it returned, and resize it."""
    buffer = bytearray(BIG)
    zeros = np.zeros(100_000)
    body = SERIALIZER.dumps([buffer, zeros])
    buffer[:5] = b"later"
    buffer.clear()
    zeros[:] = 7
    arrived, still_zeros = SERIALIZER.loads(bytearray(joined(body)))
    assert arrived == BIG
    assert not still_zeros.any()


def test_a_memoryview_arrives_as_bytes_however_it_lies_in_memory() -> None:
    """Small or large, of wide items, or with gaps."""
    for view in (
        memoryview(BIG),
        memoryview(b"small"),
        memoryview(array.array("d", range(9000))),
        memoryview(BIG)[::2],
    ):
        if view.nbytes < LARGE:
            assert there_and_back(view) == bytes(view)
        else:
            assert there_and_back([view]) == [view.tobytes()]


def test_values_beyond_the_number_of_parts_stay_in_the_body() -> None:
    """A list of very many large values arrives whole."""
    many = [bytes(LARGE)] * (MAX_PARTS + 3)
    body = SERIALIZER.dumps(many)
    assert there_and_back(many) == many
    assert isinstance(body, Scattered)
    assert sum(len(buffer) == LARGE for buffer in body.buffers) == MAX_PARTS


def test_small_values_and_stock_peers_get_plain_msgpack() -> None:
    """Nothing is behind the body below the limit, and never towards others."""
    assert joined(SERIALIZER.dumps(bytes(LARGE - 1)))[0] != MARK
    for context in (SerializerContext(502), SerializerContext(502, own=True)):
        body = make_serializer("msgpack", context).dumps([BIG])
        assert body[0] == 0x91
        assert type(body) is bytes


ARRAYS = [
    np.arange(10),
    np.arange(30_000, dtype="<f4").reshape(100, 300),
    np.asfortranarray(np.arange(30_000.0).reshape(100, 300)),
    np.arange(30_000)[::3],
    np.array(5),
    np.zeros((0, 4)),
    np.array(["a", "bcd"]),
    np.array([b"x", b"yz"]),
    np.array(["2020-01-02T03"], dtype="datetime64[s]"),
    np.arange(20_000, dtype=">i2"),
    np.array([True, False] * 20_000),
    np.ones(5000, dtype=complex),
]


@pytest.mark.parametrize("sent", ARRAYS, ids=lambda sent: f"{sent.dtype}{sent.shape}")
def test_arrays_keep_dtype_shape_and_order(sent: Any) -> None:
    """At any depth; what arrives can be written to."""
    arrived = there_and_back({"deep": (sent, 1)})["deep"][0]
    assert type(arrived) is np.ndarray
    assert arrived.dtype == sent.dtype
    assert arrived.shape == sent.shape
    assert np.array_equal(arrived, sent)
    assert arrived.flags.writeable
    assert arrived.flags.aligned
    if sent.size and sent.flags.contiguous:
        assert arrived.flags.f_contiguous == sent.flags.f_contiguous


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.zeros(3, dtype=[("a", int)]), np.ma.masked_array([1]), np.int64(3)]
)
def test_arrays_that_hold_more_than_numbers_are_refused(value: Any) -> None:
    """Objects, fields and masks: the error names the way out."""
    with pytest.raises(SerializeError, match=r"\.tolist\(\)"):
        SERIALIZER.dumps(value)


@pytest.mark.parametrize("name", ["serpent", "json", "marshal", "msgpack"])
def test_towards_a_stock_peer_an_array_is_one_clear_error(name: str) -> None:
    """Whatever the serializer, large or small."""
    with pytest.raises(SerializeError, match=r"numpy.ndarray; .*\.tolist\(\)"):
        make_serializer(name, SerializerContext(502)).dumps([np.arange(3)])


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=6), st.integers(-40, 40))
@settings(max_examples=300)
def test_a_damaged_body_is_a_serialize_error_or_another_value(changes: list[tuple[int, int]], cut: int) -> None:
    """Changed tables, references and shapes, bytes lost or added: never anything but our errors."""
    body = bytearray(joined(SERIALIZER.dumps([BIG, bytearray(BIG), np.arange(9000).reshape(90, 100)])))
    for place, byte in changes:
        body[place] = byte
    body = body[:cut] if cut < 0 else body + bytes(cut)
    try:
        SERIALIZER.loads(body)
    except PyroError:
        pass


def test_parts_are_used_exactly_once() -> None:
    """One used twice, or not at all, or missing, makes the body unreadable."""
    good = bytearray(joined(SERIALIZER.dumps([BIG[:LARGE], BIG[:LARGE]])))
    place = good.index(b"\xc7\x03\x4c\x00\x01")
    for index in (0, 2):
        bad = good.copy()
        bad[place + 4] = index
        with pytest.raises(SerializeError, match="part"):
            SERIALIZER.loads(bad)
    with pytest.raises(SerializeError, match="add up"):
        SERIALIZER.loads(good + b"x")
    with pytest.raises(SerializeError, match="belongs to no value"):
        SERIALIZER.loads(good.replace(b"\xc7\x03\x4c\x00\x01\x00", b"\xa5other"))
    with pytest.raises(SerializeError):
        MsgpackSerializer(SerializerContext(502)).loads(good)


@expose
class Service:
    def __init__(self) -> None:
        self.kept: Any = None

    async def echo(self, value: Any) -> Any:
        return value

    async def note(self, value: Any) -> str:
        return type(value).__name__

    async def blob(self, value: SerializedBlob) -> Any:
        return [value.deserialized(), bytes(value.message.body[:1]) if value.message is not None else b""]

    def plain(self, value: Any) -> Any:
        return value


EXAMPLES = [BIG * 10, bytearray(BIG * 60), {"a": [BIG, (b"x" * LARGE,)], "b": memoryview(BIG).toreadonly()}]


def as_arriving(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_arriving(item) for key, item in value.items()}
    return bytes(value) if isinstance(value, memoryview) else value


@pytest.mark.parametrize("compression", [False, True])
async def test_between_own_peers_through_the_trio_proxy(compression: bool) -> None:
    """Large values of every kind go there and back, also compressed, and many at once."""
    options = Settings(compression=compression)
    async with Daemon(port=0, settings=options) as daemon:
        uri = daemon.register(Service(), "service")
        async with Proxy(uri, settings=options) as proxy:
            for value in EXAMPLES:
                assert await proxy.echo(value) == as_arriving(value)
                assert await proxy.plain([value]) == [as_arriving(value)]
            numbers = np.arange(100_000)
            assert np.array_equal(await proxy.echo(numbers), numbers)


async def test_towards_a_stock_peer_nothing_is_behind_the_body() -> None:
    """msgpack towards protocol 48, and serpent; an array is refused before it is sent."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(Service(), "service")
        async with Proxy(uri, settings=Settings(protocol=48, serializer="msgpack")) as proxy:
            assert await proxy.echo(BIG) == BIG
            with pytest.raises(SerializeError, match="tolist") as caught:
                await proxy.echo(np.arange(5))
            assert caught.value.outcome is Outcome.NOT_SENT


async def test_a_blob_is_written_for_anybody() -> None:
    """Its body is plain msgpack between our own peers, too: whoever gets it in the end may be a stock peer."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(Service(), "service")
        async with Proxy(uri) as proxy:
            (data,), first = await proxy.blob(SerializedBlob("info", [{"big": BIG, "pair": (1, 2)}]))
            assert data == {"big": BIG, "pair": [1, 2]}
            assert first == b"\x94"


def test_between_own_peers_through_the_facade() -> None:
    """The same with a plain socket, with and without a deadline, from several threads."""
    daemon = blocking.Daemon()
    uri = daemon.register(Service(), "service")
    with serving(daemon), blocking.Proxy(uri) as proxy:
        for timeout in (None, 20.0):
            proxy._pyroTimeout = timeout
            for value in EXAMPLES:
                assert proxy.echo(value) == as_arriving(value)
                assert proxy.plain([value]) == [as_arriving(value)]
        assert np.array_equal(proxy.echo(np.ones((50, 500), order="F")), np.ones((50, 500)))
        results: list[Any] = []
        threads = [threading.Thread(target=lambda: results.append(proxy.echo(BIG * 20))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [BIG * 20] * 4


async def test_a_value_that_is_an_array_where_numpy_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is told what it lacks."""
    body = joined(SERIALIZER.dumps(np.arange(3)))
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    with pytest.raises(SerializeError, match="NumPy is not installed"):
        SERIALIZER.loads(body)
