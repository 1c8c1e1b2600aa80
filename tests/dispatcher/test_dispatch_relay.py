"""Sealed messages and the pure half of a pinned connection."""

from __future__ import annotations

import struct

import pytest
from doubles_dispatch import service_of
from doubles_plays import never, said, sealed
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core import Uri
from pyroxfer_core.errors import MessageTooLargeError, Outcome, ProtocolError
from pyroxfer_core.wire import BodyPart, End, Flags, Head, Message, MessageType, codec_for
from pyroxfer_dispatcher.backends import Backend
from pyroxfer_dispatcher.frames import Event, Sealed, Splitter
from pyroxfer_dispatcher.relay import MAX_UNDER_WAY, Relay

INVOKE, RESULT, PING = MessageType.INVOKE, MessageType.RESULT, MessageType.PING


# -- splitting


def fed(splitter: Splitter, data: bytes) -> list[Event]:
    splitter.feed(data)
    events = []
    while (event := splitter.next_event()) is not None:
        events.append(event)
    return events


SIZES = st.lists(st.integers(0, 300), min_size=1, max_size=5)


@given(st.sampled_from([48, 502]), SIZES, st.integers(1, 400))
def test_every_byte_comes_out_as_it_went_in(version: int, sizes: list[int], step: int) -> None:
    """However the stream is cut, small messages come whole and large ones in pieces, and nothing is lost."""
    codec = codec_for(version)
    messages = [Message(INVOKE, n, "json", 0, bytes(size), {"USER": b"u" * n}) for n, size in enumerate(sizes)]
    data = b"".join(map(codec.encode, messages))
    splitter = Splitter(max_message=1000, collect=150)
    events = [event for at in range(0, len(data), step) for event in fed(splitter, data[at : at + step])]
    seen = b""
    seqs = []
    for event in events:
        if isinstance(event, Sealed):
            assert len(event.data) - codec.header_size <= 150
            seqs.append(event.seq)
            seen += event.data
        elif isinstance(event, Head):
            assert isinstance(event.message, Sealed)
            assert event.body_length > 150
            seqs.append(event.message.seq)
            seen += event.message.data
        elif isinstance(event, BodyPart):
            seen += event.data
    assert seen == data
    assert seqs == list(range(len(sizes)))
    assert sum(isinstance(event, Head) for event in events) == sum(isinstance(event, End) for event in events)


def test_a_message_that_came_alone_is_passed_on_without_a_copy() -> None:
    data = codec_for(502).encode(Message(INVOKE, 1, "json", 0, b"x" * 100))
    event = Splitter(max_message=1000).take(data)
    assert isinstance(event, Sealed)
    assert event.data is data


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET / HTTP/1.1\r\n", ProtocolError),
        (b"PYRO\x00\x31", ProtocolError),
        (b"PYRO\x01\xf6" + bytes(34), ProtocolError),
        (codec_for(48).encode(Message(INVOKE, 1, "json", 0, bytes(1001))), MessageTooLargeError),
    ],
    ids=["http", "version", "magic", "large"],
)
def test_rubbish_is_seen_before_anything_of_it_is_kept(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        Splitter(max_message=1000).take(data)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_are_messages_or_a_protocol_error(data: bytes, step: int) -> None:
    splitter = Splitter(codec_for(502), max_message=1000)
    try:
        for at in range(0, len(data), step):
            fed(splitter, data[at : at + step])
    except ProtocolError:
        pass


# -- what is under way


def test_several_calls_are_answered_in_any_order(relay: Relay, backend: Backend) -> None:
    """Each call counts for its backend until its own answer has passed."""
    for seq in (1, 2, 3):
        said(relay, sealed(INVOKE, seq), seq)
    assert backend.in_flight == 3
    for left, seq in ((2, 3), (1, 1), (0, 2)):
        relay.answered(sealed(RESULT, seq), 0.0, whole=True)
        assert backend.in_flight == left
    assert relay.is_idle


def test_one_way_calls_wait_for_nothing(relay: Relay, backend: Backend) -> None:
    said(relay, sealed(INVOKE, 1, Flags.ONEWAY), 1)
    assert relay.is_idle
    assert backend.in_flight == 0


def test_what_is_certain_of_each_call_when_the_backend_is_lost(relay: Relay, backend: Backend) -> None:
    """A request that did not leave whole cannot have run; any other may have."""
    said(relay, sealed(INVOKE, 1), 100)
    said(relay, sealed(INVOKE, 2), 200)
    said(relay, sealed(INVOKE, 3), 0)
    fails = relay.backend_lost(150, "gone", 0.0)
    assert [(fail.request.seq, fail.outcome) for fail in fails] == [
        (1, Outcome.UNKNOWN),
        (2, Outcome.NOT_SENT),
        (3, Outcome.NOT_SENT),
    ]
    assert backend.in_flight == 0


def test_a_request_in_pieces_counts_as_sent_after_its_last_piece(relay: Relay) -> None:
    request = sealed(INVOKE, 1)
    said(relay, request, 0)
    relay.handed_over(request, 500, 0.0)
    assert [fail.outcome for fail in relay.backend_lost(500, "gone", 0.0)] == [Outcome.UNKNOWN]


def test_nothing_is_said_behind_half_an_answer(relay: Relay, backend: Backend) -> None:
    """The client cannot tell an error from the rest of the body."""
    said(relay, sealed(INVOKE, 1), 1)
    said(relay, sealed(INVOKE, 2), 1)
    relay.answered(sealed(RESULT, 1), 0.0, whole=False)
    assert relay.backend_lost(9, "gone", 0.0) == []
    assert backend.in_flight == 0


def test_an_answer_in_pieces_is_over_with_its_last_piece(relay: Relay, backend: Backend) -> None:
    said(relay, sealed(INVOKE, 1), 1)
    relay.answered(sealed(RESULT, 1), 0.0, whole=False)
    assert backend.in_flight == 1
    relay.answered_whole(0.0)
    assert backend.in_flight == 0


@pytest.mark.parametrize("kind", [MessageType.CONNECT, MessageType.CONNECTOK, MessageType.CONNECTFAIL])
def test_handshakes_and_answers_of_the_wrong_side_end_it(relay: Relay, kind: int) -> None:
    with pytest.raises(ProtocolError):
        said(relay, sealed(kind, 1), 1)
    with pytest.raises(ProtocolError):
        relay.answered(sealed(kind, 1), 0.0, whole=True)


@pytest.mark.parametrize("answer", [sealed(RESULT, 2), sealed(PING, 0)], ids=["number", "ping"])
def test_an_answer_to_nothing_is_not_believed(relay: Relay, answer: Sealed) -> None:
    said(relay, sealed(INVOKE, 1), 1)
    with pytest.raises(ProtocolError, match="nobody"):
        relay.answered(answer, 0.0, whole=True)


def test_a_number_in_use_and_endless_calls_are_refused(relay: Relay) -> None:
    """What is kept for a client is bounded."""
    said(relay, sealed(INVOKE, 0), 1)
    with pytest.raises(ProtocolError, match="under way"):
        said(relay, sealed(INVOKE, 0), 1)
    for seq in range(1, MAX_UNDER_WAY):
        said(relay, sealed(INVOKE, seq), 1)
    with pytest.raises(ProtocolError, match="too many"):
        said(relay, sealed(INVOKE, MAX_UNDER_WAY), 1)
    for _ in range(MAX_UNDER_WAY):
        said(relay, sealed(PING, 0), 1)
    with pytest.raises(ProtocolError, match="too many"):
        said(relay, sealed(PING, 0), 1)


def test_messages_of_later_extensions_pass(relay: Relay) -> None:
    """Both ends agreed on them, or the receiver refuses them itself."""
    said(relay, sealed(MessageType.CANCEL, 1), 1)
    relay.answered(sealed(MessageType.GOAWAY, 0), 0.0, whole=True)


@given(st.lists(st.tuples(st.sampled_from(["ask", "answer", "begin", "end"]), st.integers(0, 3)), max_size=30))
def test_no_story_leaks_a_call(steps: list[tuple[str, int]]) -> None:
    """Whatever both sides send, the backend's count is that of the calls that wait, and nothing at the end."""
    backend = Backend("b", Uri("PYRO:x@h:1"))
    relay = Relay(service_of(backend).admission, backend, None, never)
    for step, seq in steps:
        try:
            if step == "ask":
                said(relay, sealed(INVOKE, seq), 1)
            elif step == "end":
                relay.answered_whole(0.0)
            else:
                relay.answered(sealed(RESULT, seq), 0.0, whole=step == "answer")
        except ProtocolError:
            pass
        assert backend.in_flight == relay.under_way
    relay.end(0.0)
    assert backend.in_flight == 0


# -- refused bodies in pieces


def begin(number: int, length: int) -> Sealed:
    data = bytes(40) + struct.pack("!BxHI", INVOKE, number, length)
    return Sealed(MessageType.BEGIN, 7, "msgpack", 0, b"", {}, None, data, 40)


def test_the_pieces_of_a_refused_call_are_dropped_and_no_others(relay: Relay) -> None:
    """Until its length is reached, or a piece without body ends it; then the number may be used again."""
    piece = Sealed(MessageType.PIECE, 5, "msgpack", 0, b"", {}, None, bytes(40), 40)
    other = Sealed(MessageType.PIECE, 6, "msgpack", 0, b"", {}, None, bytes(40), 40)
    for sizes in ([400, 600], [400, 0]):
        relay.refuse(begin(5, 1000), 0.0)
        assert not relay.is_dropped(other, 100)
        assert [relay.is_dropped(piece, size) for size in sizes] == [True, True]
        assert not relay.is_dropped(piece, 100)


def test_a_begin_that_is_too_short_is_no_message(backend: Backend) -> None:
    own = Relay(service_of(backend).admission, backend, None, never, has_agreed=True)
    with pytest.raises(ProtocolError, match="too short"):
        own.asked(Sealed(MessageType.BEGIN, 1, "msgpack", 0, b"", {}, None, bytes(42), 40), 0.0)


def test_two_ends_that_agreed_may_call_each_other(backend: Backend) -> None:
    """And a body that began in pieces is a call like any."""
    own = Relay(service_of(backend).admission, backend, None, never, has_agreed=True)
    own.answered(sealed(INVOKE, 3), 0.0, whole=True)
    assert own.asked(sealed(RESULT, 3), 0.0)
    assert own.asked(begin(1, 10), 0.0)
    assert own.under_way == 1
    own.answered(sealed(RESULT, 7), 0.0, whole=True)
    assert own.is_idle
