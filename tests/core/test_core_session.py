"""Sessions and features without any I/O: tables of (state, event), and grants that must not count."""

from __future__ import annotations

import struct

import pytest

from pyroxfer_core.errors import ProtocolError, SerializeError
from pyroxfer_core.wire import features
from pyroxfer_core.wire.features import DEADLINE_KEY, FEATURES_KEY, STOCK, Feature, Grant
from pyroxfer_core.wire.message import Flags, Message, MessageType
from pyroxfer_core.wire.session import ClientSession, ServerSession, State

EPOCH = bytes(range(16))
ALL_TYPES = (1, 2, 3, 4, 5, 6, 7, 63, 64, 65, 255)

CLIENT_TABLE = {
    (State.CONNECTING, MessageType.CONNECTOK): State.OPEN,
    (State.CONNECTING, MessageType.CONNECTFAIL): State.CLOSED,
    (State.OPEN, MessageType.PING): State.OPEN,
}
SERVER_TABLE = {
    (State.START, MessageType.CONNECT): State.GREETING,
    (State.OPEN, MessageType.INVOKE): State.OPEN,
    (State.OPEN, MessageType.PING): State.OPEN,
}


def message(kind: int, seq: int = 0, serializer: str = "serpent", **annotations: bytes) -> Message:
    return Message(kind, seq, serializer, 0, b"body", dict(annotations))


def hello(client: ClientSession[str]) -> Message:
    return client.connect(b"hello", "serpent", 0, {}, None)


def invoke(client: ClientSession[str], waiter: str | None = "call") -> Message:
    return client.invoke(waiter, Message(MessageType.INVOKE, 0, "serpent", 0, b"call"))


def joined(offer: int = Feature.ALL, daemon: int = Feature.ALL) -> tuple[ClientSession[str], ServerSession]:
    """Both sides after the handshake, back to back; the client has not said anything since."""
    client: ClientSession[str] = ClientSession(offer=offer)
    server = ServerSession(EPOCH, offer=daemon)
    request = hello(client)
    server.receive(request)
    assert client.receive(server.accept(request, b"welcome", {}, None)) is None
    return client, server


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("kind", ALL_TYPES)
def test_client_takes_only_what_its_state_allows(state: State, kind: int) -> None:
    client: ClientSession[str] = ClientSession()
    client.state = state
    expected = CLIENT_TABLE.get((state, kind))
    if expected is None:
        with pytest.raises(ProtocolError):
            client.receive(message(kind))
    else:
        assert client.receive(message(kind)) is None
        assert client.state is expected


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("kind", ALL_TYPES)
def test_server_takes_only_what_its_state_allows(state: State, kind: int) -> None:
    server = ServerSession(EPOCH)
    server.state = state
    expected = SERVER_TABLE.get((state, kind))
    if expected is None:
        with pytest.raises(ProtocolError):
            server.receive(message(kind))
    else:
        server.receive(message(kind))
        assert server.state is expected


def test_joined_sessions_agree_on_everything_after_the_first_call() -> None:
    client, server = joined()
    assert client.grant.bits == Feature.ALL
    assert server.grant is STOCK, "nothing is in force before the client confirmed it"
    request = invoke(client)
    server.receive(request)
    assert server.grant == client.grant
    assert server.grant.epoch == EPOCH
    assert FEATURES_KEY not in request.annotations, "the handler must not see it"
    assert FEATURES_KEY not in invoke(client, None).annotations, "it is said once"
    assert client.receive(message(MessageType.RESULT, request.seq)) == "call"


def test_two_pairs_do_not_share_nonces() -> None:
    grants = {joined()[0].grant.nonce for _ in range(4)}
    assert len(grants) == 4


@pytest.mark.parametrize(("offer", "daemon", "expected"), [(0x1F, 0x05, 0x05), (0x05, 0x1F, 0x05), (3, 12, 0)])
def test_the_grant_is_what_both_sides_have(offer: int, daemon: int, expected: int) -> None:
    client, server = joined(offer, daemon)
    assert client.grant.bits == expected
    server.receive(invoke(client))
    assert server.grant.bits == expected


def test_a_client_that_offers_nothing_looks_like_a_stock_one() -> None:
    client: ClientSession[str] = ClientSession(offer=0)
    assert hello(client).annotations == {}
    client, server = joined(offer=0)
    request = invoke(client)
    assert request.annotations == {}
    server.receive(request)
    assert server.grant is STOCK


def test_what_needs_calls_in_flight_together_is_not_granted_without_them() -> None:
    """As the protocol page says of each; what does not is."""
    client, server = joined(offer=Feature.ALL & ~Feature.CONCURRENT)
    server.receive(invoke(client))
    needing = Feature.HEARTBEAT | Feature.REVERSE | Feature.PIECES | Feature.PUSH | Feature.UPLOAD
    assert server.grant.bits == client.grant.bits == Feature.ALL & ~Feature.CONCURRENT & ~needing


def connecting(offer: int = Feature.ALL) -> tuple[ClientSession[str], bytes]:
    client: ClientSession[str] = ClientSession(offer=offer)
    offered = features.read_offer(hello(client).annotations[FEATURES_KEY])
    assert offered is not None
    return client, offered[1]


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        (lambda nonce: features.write_grant(Grant(0x1F, b"d" * 16, EPOCH), bytes(16)), "another client's nonce"),
        (lambda nonce: b"\x02" + features.write_grant(Grant(0x1F, b"d" * 16, EPOCH), nonce)[1:], "version 2"),
        (lambda nonce: features.write_grant(Grant(0x1F, b"d" * 16, EPOCH), nonce)[:-1], "cut short"),
        (lambda nonce: features.write_grant(Grant(0x1F, b"d" * 16, EPOCH), nonce) + b"\0", "too long"),
        (lambda nonce: features.write_offer(0x1F, nonce), "our own offer, sent back"),
        (lambda nonce: b"", "empty"),
    ],
)
def test_a_grant_that_is_not_for_us_does_not_count(annotation: object, why: str) -> None:
    client, nonce = connecting()
    assert callable(annotation)
    client.receive(message(MessageType.CONNECTOK, PXFT=annotation(nonce)))
    assert client.grant is STOCK, why
    assert invoke(client).annotations == {}
    with pytest.raises(ProtocolError, match="one at a time"):
        invoke(client)


def test_more_bits_than_offered_are_not_taken() -> None:
    client, nonce = connecting(offer=Feature.CANCEL)
    grant = features.write_grant(Grant(0xFFFFFFFF, b"d" * 16, EPOCH), nonce)
    client.receive(message(MessageType.CONNECTOK, PXFT=grant))
    assert client.grant.bits == Feature.CANCEL
    assert not client.concurrent


def test_unknown_bits_are_neither_granted_nor_taken() -> None:
    client, nonce = connecting(offer=0xFFFFFFFF)
    server = ServerSession(EPOCH, offer=0xFFFFFFFF)
    request = message(MessageType.CONNECT, PXFT=features.write_offer(0xFFFFFFFF, nonce))
    server.receive(request)
    client.receive(server.accept(request, b"", {}, None))
    assert client.grant.bits == Feature.ALL


@pytest.mark.parametrize(
    "spoil",
    [
        lambda confirm: None,
        lambda confirm: confirm[:-1] + bytes([confirm[-1] ^ 1]),
        lambda confirm: b"\x02" + confirm[1:],
        lambda confirm: confirm[:-1],
    ],
)
def test_an_unconfirmed_grant_stays_off_for_good(spoil: object) -> None:
    client, server = joined()
    first = invoke(client)
    confirm = first.annotations.pop(FEATURES_KEY)
    assert callable(spoil)
    spoiled = spoil(confirm)
    if spoiled is not None:
        first.annotations[FEATURES_KEY] = spoiled
    server.receive(first)
    assert server.grant is STOCK
    server.receive(message(MessageType.INVOKE, PXFT=bytes(confirm)))
    assert server.grant is STOCK, "only the first message can confirm"
    with pytest.raises(ProtocolError, match="CANCEL"):
        server.receive(message(MessageType.CANCEL))


def test_a_confirmation_survives_a_first_call_that_could_not_be_written() -> None:
    client, server = joined()
    lost = invoke(client)
    client.forget(lost)
    assert client.pending == {}
    server.receive(invoke(client))
    assert server.grant.bits == Feature.ALL


def test_cancel_and_goaway_only_where_agreed() -> None:
    client, server = joined(offer=Feature.ALL & ~(Feature.CANCEL | Feature.GOAWAY))
    server.receive(invoke(client))
    with pytest.raises(ProtocolError, match="CANCEL"):
        server.receive(client.cancel(1))
    with pytest.raises(ProtocolError, match="GOAWAY"):
        client.receive(message(MessageType.GOAWAY))
    client, server = joined()
    server.receive(invoke(client))
    server.receive(client.cancel(1))
    assert client.receive(server.goaway()) is None
    assert client.going_away


def test_answers_find_their_calls_in_any_order() -> None:
    client, _ = joined()
    seqs = [invoke(client, name).seq for name in "abc"]
    assert [client.receive(message(MessageType.RESULT, seq)) for seq in reversed(seqs)] == ["c", "b", "a"]
    with pytest.raises(ProtocolError, match="answers no call"):
        client.receive(message(MessageType.RESULT, seqs[0]))


def test_an_answer_in_another_serializer_keeps_its_call_in_the_books() -> None:
    client, _ = joined()
    seq = invoke(client).seq
    with pytest.raises(SerializeError, match="another serializer"):
        client.receive(message(MessageType.RESULT, seq, serializer="json"))
    assert client.drop_pending() == ["call"], "or nobody would ever tell the waiter"


def test_sequence_numbers_wrap_and_jump_over_calls_in_flight() -> None:
    client, _ = joined()
    client.seq = 0xFFFE
    assert invoke(client, "old").seq == 0xFFFF
    assert invoke(client, "second").seq == 0
    client.seq = 0xFFFE
    assert invoke(client, "third").seq == 1
    assert set(client.pending) == {0xFFFF, 0, 1}


def test_a_full_window_is_an_error() -> None:
    client, _ = joined()
    for number in range(0xFFFF):
        client.pending[number] = "busy"
    with pytest.raises(ProtocolError, match="65535"):
        invoke(client)


def test_a_reconnect_goes_on_counting() -> None:
    client: ClientSession[str] = ClientSession(first_seq=7)
    assert hello(client).seq == 7
    client.receive(message(MessageType.CONNECTOK, 7))
    assert invoke(client).seq == 8


def test_nothing_is_sent_before_and_after_the_session() -> None:
    client: ClientSession[str] = ClientSession()
    with pytest.raises(ProtocolError, match="not open"):
        invoke(client)
    hello(client)
    with pytest.raises(ProtocolError, match="begun already"):
        hello(client)
    client, _ = joined()
    assert client.drop_pending() == []
    with pytest.raises(ProtocolError, match="not open"):
        invoke(client)


def test_a_refusal_closes_both_sides() -> None:
    client: ClientSession[str] = ClientSession()
    server = ServerSession(EPOCH)
    server.receive(hello(client))
    refusal = server.refuse(b"no", "serpent", 0)
    client.receive(refusal)
    assert client.state is server.state is State.CLOSED
    with pytest.raises(ProtocolError):
        server.receive(message(MessageType.INVOKE))


def test_metadata_flag_is_repeated_in_the_answer() -> None:
    server = ServerSession(EPOCH)
    request = Message(MessageType.CONNECT, 3, "json", Flags.META_ON_CONNECT | Flags.COMPRESSED, b"")
    server.receive(request)
    answer = server.accept(request, b"", {}, b"c" * 16)
    assert (answer.flags, answer.seq, answer.serializer, answer.correlation_id) == (
        Flags.META_ON_CONNECT,
        3,
        "json",
        b"c" * 16,
    )


@pytest.mark.parametrize(("milliseconds", "read"), [(0, 0), (1500, 1500), (-5, 0), (2**40, 0xFFFFFFFF)])
def test_a_deadline_is_read_on_its_own_connection(milliseconds: int, read: int) -> None:
    grant = Grant(Feature.ALL, b"nonce of this c.", EPOCH)
    value = grant.deadline(milliseconds)
    assert grant.read_deadline(value) == read
    assert Grant(Feature.ALL, b"another connect.", EPOCH).read_deadline(value) is None
    assert grant.read_deadline(value[:-1]) is None
    assert grant.read_deadline(None) is None
    assert DEADLINE_KEY in features.HOP_KEYS


@pytest.mark.parametrize("letter", ["N", "U"])
def test_an_outcome_is_read_on_its_own_connection(letter: str) -> None:
    grant = Grant(Feature.ALL, b"nonce of this c.", EPOCH)
    value = grant.outcome(letter.encode())
    assert grant.read_outcome(value) == letter
    assert grant.read_outcome(memoryview(value)) == letter
    assert Grant(Feature.ALL, b"another connect.", EPOCH).read_outcome(value) is None
    assert grant.read_outcome(value[:4]) is None
    assert grant.read_outcome(value[:4] + b"X") is None
    assert grant.read_outcome(None) is None


def test_layouts_are_those_of_the_protocol_page() -> None:
    nonce, daemon = b"c" * 16, b"d" * 16
    assert features.write_offer(0x1F, nonce) == struct.pack("!BI", 1, 0x1F) + nonce
    grant = Grant(0x03, daemon, EPOCH)
    assert features.write_grant(grant, nonce) == struct.pack("!BI", 1, 3) + nonce + daemon + EPOCH
    assert grant.deadline(258) == b"dddd\x00\x00\x01\x02"
    assert grant.outcome(b"N") == b"ddddN"


@pytest.mark.parametrize("numbered_before", [True, False])
def test_a_call_behind_the_last_one_that_was_read_is_unread_whenever_it_was_numbered(numbered_before: bool) -> None:
    """A thread may be about to send when another one reads the goodbye."""
    client, server = joined()
    read = invoke(client)
    server.receive(read)
    server.last_seq = read.seq
    goodbye = server.goaway()
    late = invoke(client) if numbered_before else None
    client.receive(goodbye)
    late = late or invoke(client)
    assert not client.is_unread(read.seq)
    assert client.is_unread(late.seq)
