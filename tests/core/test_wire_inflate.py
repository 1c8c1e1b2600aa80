"""Bounded inflate, and when each protocol deflates."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core.errors import MessageTooLargeError, ProtocolError
from pyroxfer_core.wire import Flags, MessageType
from pyroxfer_core.wire.inflate import deflate_for, inflate


def deflated(version: int, size: int, kind: int = MessageType.INVOKE, flags: int = 0) -> bytes | None:
    return deflate_for(version, b"a" * size, message_type=kind, flags=flags)


@given(st.binary(max_size=500), st.integers(0, 9))
def test_inflate_undoes_deflate_up_to_its_limit(data: bytes, level: int) -> None:
    body = zlib.compress(data, level)
    assert inflate(body, len(data)) == data
    assert inflate(memoryview(body), len(data) + 1) == data
    if data:
        with pytest.raises(MessageTooLargeError):
            inflate(body, len(data) - 1)


def test_a_zip_bomb_stops_at_the_limit() -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    tracemalloc.start()
    with pytest.raises(MessageTooLargeError, match="max=1000000"):
        inflate(bomb, 1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


@given(st.binary(max_size=100))
def test_arbitrary_bytes_inflate_or_give_our_error(data: bytes) -> None:
    try:
        assert len(inflate(data, 1_000)) <= 1_000
    except ProtocolError:
        pass


def test_truncated_and_trailing_data_are_refused() -> None:
    body = zlib.compress(b"hello" * 100)
    with pytest.raises(ProtocolError, match="cut short"):
        inflate(body[:-1], 1_000)
    with pytest.raises(ProtocolError, match="cut short"):
        inflate(b"", 1_000)
    with pytest.raises(ProtocolError, match="followed by other data"):
        inflate(body + b"x", 1_000)
    with pytest.raises(ProtocolError, match="incorrect data check"):
        inflate(body[:-1] + bytes([body[-1] ^ 1]), 1_000)


def test_each_protocol_deflates_from_its_own_size_at_its_own_level() -> None:
    assert deflated(48, 199) is None
    assert deflated(48, 200) == zlib.compress(b"a" * 200)
    assert deflated(502, 100) is None
    assert deflated(502, 101) == zlib.compress(b"a" * 101, 4)


def test_protocol_48_never_deflates_refusals_and_exceptions() -> None:
    assert deflated(48, 500, MessageType.CONNECTFAIL) is None
    assert deflated(48, 500, MessageType.RESULT, Flags.EXCEPTION) is None
    assert deflated(502, 500, MessageType.CONNECTFAIL) is not None
    assert deflated(502, 500, MessageType.RESULT, Flags.EXCEPTION) is not None


@pytest.mark.parametrize("version", [48, 502])
def test_what_would_grow_goes_as_it_is(version: int) -> None:
    noise = zlib.compress(bytes(range(256)) * 3, 9)[:250]
    assert deflate_for(version, noise, message_type=MessageType.RESULT, flags=0) is None
