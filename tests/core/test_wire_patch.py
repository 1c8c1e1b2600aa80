"""Fields changed in encoded messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core.wire import Body, Message, codec_for, hops_of, renumber, with_annotation, with_hops

VERSIONS = st.sampled_from([48, 502])
NUMBERS = st.integers(0, 0xFFFF)


def encoded(version: int, seq: int) -> bytes:
    return codec_for(version).encode(Message(4, seq, "serpent", 0, b"body", {"USER": b"x"}, bytes(range(16))))


@given(VERSIONS, NUMBERS, NUMBERS)
def test_a_renumbered_message_is_the_one_that_would_have_been_written(version: int, old: int, new: int) -> None:
    """Checksum included, so every peer reads it."""
    assert renumber(encoded(version, old), version, new) == encoded(version, new)


@given(VERSIONS, NUMBERS)
def test_the_count_of_hops_changes_nothing_else(version: int, hops: int) -> None:
    """A peer that knows nothing of it reads the same message."""
    data = with_hops(encoded(version, 7), version, hops)
    assert hops_of(data, version) == hops
    assert codec_for(version).parse_header(data) == codec_for(version).parse_header(encoded(version, 7))
    assert with_hops(data, version, 0) == encoded(version, 7)


@pytest.mark.parametrize("version", [48, 502])
def test_the_same_number_costs_no_copy(version: int) -> None:
    data = encoded(version, 7)
    assert renumber(data, version, 7) is data


@given(VERSIONS, NUMBERS, st.binary(max_size=100))
def test_an_annotation_comes_before_all_others(version: int, seq: int, value: bytes) -> None:
    """The message is the one that would have been written with it; of a header alone the rest follows as it was."""
    codec = codec_for(version)
    data = encoded(version, seq)
    annotations: dict[str, Body] = {"NEWX": value, "USER": b"x"}
    wanted = codec.encode(Message(4, seq, "serpent", 0, b"body", annotations, bytes(range(16))))
    assert with_annotation(data, version, "NEWX", value) == wanted
    head, rest = data[: codec.header_size], data[codec.header_size :]
    assert with_annotation(head, version, "NEWX", value) + rest == wanted


def test_protocol_48_may_have_no_room_for_an_annotation() -> None:
    data = codec_for(48).encode(Message(4, 1, "serpent", 0, b"body", {"USER": bytes(65_500)}))
    assert with_annotation(data, 48, "NEWX", bytes(40)) is data
    assert len(with_annotation(data, 48, "NEWX", bytes(10))) == len(data) + 16
