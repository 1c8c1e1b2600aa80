"""Both codecs: neutral messages to bytes and back, what a sender is refused, and the preamble of side streams."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core.errors import MessageTooLargeError, ProtocolError, SecurityError
from pyroxfer_core.wire import V48, V502, Decoder, Flags, Message, MessageType, codec_for
from pyroxfer_core.wire.codec import Codec
from pyroxfer_core.wire.message import Body
from pyroxfer_core.wire.preamble import PREAMBLE_SIZE, encode_preamble, parse_preamble, sniff

CODECS: list[Codec] = [V48, V502]
BOTH = pytest.mark.parametrize("codec", CODECS, ids=["48", "502"])
NAMES = {
    48: [
        "serpent",
        "json",
        "marshal",
        "pickle",
        "dill",
        "msgpack",
        "cloudpickle",
        "ping",
        "unknown-0",
        "unknown-65535",
    ],
    502: ["serpent", "json", "marshal", "msgpack", "ping", "unknown-0", "unknown-5", "unknown-255"],
}
ALL_FLAGS = {48: 0x7F, 502: 0x3F}

keys = st.text(st.characters(min_codepoint=0, max_codepoint=127), min_size=4, max_size=4).filter(
    lambda key: key not in ("CORR", "HMAC")
)
notes = st.dictionaries(keys, st.binary(max_size=40), max_size=5)


def messages(codec: Codec) -> st.SearchStrategy[Message]:
    return st.builds(
        Message,
        type=st.integers(0, 65535 if codec.version == 48 else 255),
        seq=st.integers(0, 65535),
        serializer=st.sampled_from(NAMES[codec.version]),
        flags=st.integers(0, ALL_FLAGS[codec.version]),
        body=st.binary(max_size=300),
        annotations=notes,
        correlation_id=st.none() | st.binary(min_size=16, max_size=16),
    )


def ping(**changes: object) -> Message:
    values: dict[str, object] = {"type": 6, "seq": 1, "serializer": "ping", "flags": 0, "body": b"ping", **changes}
    return Message(**values)  # type: ignore[arg-type]  # the tests give wrong values on purpose


def decode(codec: Codec, data: bytes, hmac_key: bytes | None = None) -> Message:
    decoder = Decoder(codec, hmac_key=hmac_key)
    decoder.feed(data)
    message = decoder.next_event()
    assert isinstance(message, Message)
    decoder.eof()
    return message


@given(st.data())
def test_any_message_survives_both_ways(data: st.DataObject) -> None:
    for codec in CODECS:
        message = data.draw(messages(codec))
        assert decode(codec, codec.encode(message)) == message
        assert codec.encode_head(message, len(message.body)) + bytes(message.body) == codec.encode(message)


@given(messages(V48), st.binary(min_size=1, max_size=80))
def test_any_signed_message_survives_and_is_bound_to_its_key_and_body(message: Message, key: bytes) -> None:
    data = V48.encode(message, hmac_key=key)
    assert decode(V48, data, key) == message
    with pytest.raises(SecurityError, match="message hmac mismatch"):
        decode(V48, data, key + b"x")
    if message.body:
        with pytest.raises(SecurityError, match="message hmac mismatch"):
            decode(V48, data[:-1] + bytes([data[-1] ^ 1]), key)


def test_an_empty_key_means_unsigned() -> None:
    assert V48.encode(ping(), hmac_key=b"") == V48.encode(ping())
    assert decode(V48, V48.encode(ping()), b"") == ping()


def test_protocol_502_ignores_the_key_it_cannot_use() -> None:
    assert V502.encode(ping(), hmac_key=b"secret") == V502.encode(ping())
    assert decode(V502, V502.encode(ping()), b"secret") == ping()


def test_the_same_meaning_has_other_numbers_in_the_other_protocol() -> None:
    message = ping(serializer="msgpack", flags=Flags.KEEPSERIALIZED | Flags.ITEMSTREAM | Flags.META_ON_CONNECT)
    assert struct.unpack_from("!HHH", V48.encode(message), 8)[0] == 0x70
    assert struct.unpack_from("!H", V48.encode(message), 16)[0] == 6
    assert struct.unpack_from("!H", V502.encode(message), 8)[0] == 0x30
    assert V502.encode(message)[7] == 4


@BOTH
def test_flag_bits_nobody_defined_are_dropped(codec: Codec) -> None:
    assert codec.encode(ping(flags=0x1000 | Flags.ONEWAY)) == codec.encode(ping(flags=Flags.ONEWAY))
    wire = bytearray(codec.encode(ping()))
    wire[8] = 0xFF
    if codec is V48:
        checksum = int.from_bytes(wire[22:24], "big") + 0xFF00
        wire[22:24] = (checksum & 0xFFFF).to_bytes(2, "big")
    assert decode(codec, bytes(wire)) == ping()


def test_the_reserved_field_is_ignored() -> None:
    for codec, offset in ((V48, 20), (V502, 36)):
        wire = bytearray(codec.encode(ping()))
        wire[offset : offset + 2] = b"\x12\x34"
        assert decode(codec, bytes(wire)) == ping()


def test_the_checksum_covers_the_fields_that_a_16_bit_sum_can() -> None:
    """Not the tag, not the reserved field, and not the upper half of the body's length, which the sum loses."""
    good = V48.encode(ping(type=5, seq=0x1234, flags=Flags.ONEWAY, body=b""))
    for position in (*range(4, 12), *range(14, 20), 22, 23):
        for bit in range(8):
            wire = bytearray(good)
            wire[position] ^= 1 << bit
            with pytest.raises(ProtocolError):
                V48.parse_header(wire)


def test_a_correlation_id_without_its_flag_is_none() -> None:
    wire = bytearray(V502.encode(ping()))
    wire[20:36] = b"x" * 16
    assert decode(V502, bytes(wire)).correlation_id is None


@BOTH
@pytest.mark.parametrize("body", [bytearray(b"12345678"), memoryview(b"12345678"), memoryview(b"12345678").cast("I")])
def test_bodies_and_annotations_may_be_any_bytes_like_value(codec: Codec, body: Body) -> None:
    plain = ping(body=b"12345678", annotations={"ABCD": b"12345678"})
    assert codec.encode(ping(body=body, annotations={"ABCD": body})) == codec.encode(plain)
    assert codec.encode(ping(body=body)) == codec.encode(ping(body=b"12345678"))


@BOTH
@pytest.mark.parametrize("key", ["ABC", "ABCDE", "ABCé", ""])
def test_annotation_keys_are_four_ascii_characters(codec: Codec, key: str) -> None:
    with pytest.raises(ProtocolError, match="4 ASCII characters"):
        codec.encode(ping(annotations={key: b""}))


@pytest.mark.parametrize("key", ["CORR", "HMAC"])
def test_protocol_48_keeps_its_own_annotation_keys(key: str) -> None:
    with pytest.raises(ProtocolError, match="CORR and HMAC"):
        V48.encode(ping(annotations={key: b"x" * 16}))
    assert decode(V502, V502.encode(ping(annotations={key: b"x"}))).annotations == {key: b"x"}


@BOTH
@pytest.mark.parametrize("value", [b"", b"x" * 15, b"x" * 17])
def test_correlation_ids_have_16_bytes(codec: Codec, value: bytes) -> None:
    with pytest.raises(ProtocolError, match="16-char"):
        codec.encode(ping(correlation_id=value))


@BOTH
@pytest.mark.parametrize("changes", [{"seq": 65536}, {"seq": -1}, {"type": 65536}, {"type": -1}])
def test_numbers_out_of_range_are_refused(codec: Codec, changes: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="out of range"):
        codec.encode(ping(**changes))


@BOTH
@pytest.mark.parametrize(
    "name",
    ["", "yaml", "unknown-", "unknown-x", "unknown-01", "unknown-1", "unknown-42", "unknown-65536", "unknown-²"],
)
def test_serializers_without_a_number_are_refused(codec: Codec, name: str) -> None:
    with pytest.raises(ProtocolError, match=f"protocol {codec.version} has no serializer '{name}'"):
        codec.encode(ping(serializer=name))


@pytest.mark.parametrize("name", ["pickle", "dill", "cloudpickle", "unknown-256"])
def test_serializers_of_protocol_48_alone_are_refused_by_502(name: str) -> None:
    V48.encode(ping(serializer=name))
    with pytest.raises(ProtocolError, match=f"protocol 502 has no serializer '{name}'"):
        V502.encode(ping(serializer=name))


def test_protocol_48_limits_all_annotations_together_to_64_kib() -> None:
    fits = ping(annotations={"ABCD": bytes(65535 - 6)})
    assert decode(V48, V48.encode(fits)) == fits
    for too_many in ({"ABCD": bytes(65536 - 6)}, {"ABCD": bytes(40_000), "EFGH": bytes(40_000)}):
        with pytest.raises(MessageTooLargeError, match="annotations too large"):
            V48.encode(ping(annotations=too_many))
    with pytest.raises(MessageTooLargeError, match="annotations too large"):
        V48.encode(ping(annotations={"ABCD": bytes(65535 - 6)}), hmac_key=b"secret")


@BOTH
def test_a_body_the_header_cannot_announce_is_refused(codec: Codec) -> None:
    assert codec.max_body == (2**31 - 1 if codec is V48 else 2**32 - 1)
    largest = codec.parse_header(codec.encode_head(ping(), codec.max_body))
    assert largest.body_length == codec.max_body
    for length in (codec.max_body + 1, -1):
        with pytest.raises(MessageTooLargeError, match="message too large"):
            codec.encode_head(ping(), length)


@BOTH
def test_a_header_cut_short_is_refused(codec: Codec) -> None:
    data = codec.encode(ping(body=b""))
    assert len(data) == codec.header_size
    with pytest.raises(ProtocolError, match="cut short"):
        codec.parse_header(data[:-1])


def test_duplicate_annotations_are_read_as_the_last_one() -> None:
    for codec in CODECS:
        single = codec.encode(ping(annotations={"ABCD": b"1"}))
        chunk = single[codec.header_size : -4]
        area = chunk + chunk[:-1] + b"2"
        assert codec.parse_annotations(area, 2)[0] == {"ABCD": b"2"}
        with pytest.raises(ProtocolError, match="more than 1 annotations"):
            codec.parse_annotations(area, 1)


def test_codecs_are_found_by_version() -> None:
    assert codec_for(48) is V48
    assert codec_for(502) is V502
    with pytest.raises(ProtocolError, match="invalid protocol version: 46"):
        codec_for(46)


def test_message_types_of_ours_fit_both_protocols() -> None:
    for codec in CODECS:
        assert decode(codec, codec.encode(ping(type=MessageType.GOAWAY))).type == 65


@given(st.binary(max_size=120))
def test_tokens_survive_the_preamble_padded(token: bytes) -> None:
    data = encode_preamble(token)
    assert len(data) == PREAMBLE_SIZE == 128
    assert data[:8] == b"PXRW\x00\x01\x00\x00"
    assert parse_preamble(data) == token + bytes(120 - len(token))
    assert sniff(data) == "raw"


def test_wrong_preambles_are_refused() -> None:
    good = encode_preamble(b"token")
    with pytest.raises(ProtocolError, match="at most 120"):
        encode_preamble(bytes(121))
    for data, text in (
        (good[:-1], "has 128 bytes"),
        (good + b"x", "has 128 bytes"),
        (b"PYRO" + good[4:], "not the preamble"),
        (good[:4] + b"\x00\x02" + good[6:], "unsupported side stream version: 2"),
        (good[:6] + b"\x00\x01" + good[8:], "unsupported"),
    ):
        with pytest.raises(ProtocolError, match=text):
            parse_preamble(data)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "need-more"),
        (b"P", "need-more"),
        (b"PYRO\x01", "need-more"),
        (b"PXR", "need-more"),
        (b"GET /", "need-more"),
        (b"PYRO\x00\x30", "48"),
        (b"PYRO\x01\xf6and more", "502"),
        (b"PXRW", "raw"),
        (b"\x16", "tls"),
        (b"\x16\x03\x01\x02", "tls"),
        (b"PYRO\x00\x2e", "unknown"),
        (b"GET / HTTP", "unknown"),
        (bytes(6), "unknown"),
    ],
)
def test_first_bytes_tell_what_a_connection_is(data: bytes, kind: str) -> None:
    assert sniff(data) == kind
