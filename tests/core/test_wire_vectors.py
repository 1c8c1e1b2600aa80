"""Recorded traffic of the stock libraries: every frame decodes to the right message and encodes back to its bytes."""

from __future__ import annotations

import json
import marshal
import zlib
from pathlib import Path
from typing import Any

import pytest

from pyroxfer_core.errors import ProtocolError, PyroError, SecurityError
from pyroxfer_core.wire import V48, V502, Decoder, Flags, Message, MessageType
from pyroxfer_core.wire.blobinfo import BlobInfo, read_blob_info, write_blob_info
from pyroxfer_core.wire.codec import Codec
from pyroxfer_core.wire.inflate import inflate
from pyroxfer_core.wire.marshal import read

Vector = dict[str, Any]

VECTORS = Path(__file__).parents[1] / "vectors"
CODECS: dict[int, Codec] = {48: V48, 502: V502}

SERIALIZERS = {
    48: {1: "serpent", 2: "json", 3: "marshal", 4: "pickle", 5: "dill", 6: "msgpack", 7: "cloudpickle", 42: "ping"},
    502: {1: "serpent", 2: "marshal", 3: "json", 4: "msgpack", 42: "ping"},
}
FLAG_BITS = {
    "EXCEPTION": Flags.EXCEPTION,
    "COMPRESSED": Flags.COMPRESSED,
    "ONEWAY": Flags.ONEWAY,
    "BATCH": Flags.BATCH,
    "ITEMSTREAMRESULT": Flags.ITEMSTREAM,
    "KEEPSERIALIZED": Flags.KEEPSERIALIZED,
    "META_ON_CONNECT": Flags.META_ON_CONNECT,
    "CORR_ID": 0,
}


def load(name: str) -> list[Vector]:
    vectors: list[Vector] = json.loads((VECTORS / f"{name}.json").read_text())["vectors"]
    return vectors


FRAMES = load("pyro4-frames") + load("pyro5-frames")
MALFORMED = load("pyro4-malformed") + load("pyro5-malformed")


def raw(vector: Vector) -> bytes:
    return bytes.fromhex(vector["hex"])


def codec_of(vector: Vector) -> Codec:
    return CODECS[vector["protocol_version"]]


UNNAMED_KEYS = {
    "p4.hmac-wrong-key.connect": b"other",
    "p4.hmac-wrong-key.connectfail": b"secret",
    "p4.hmac-no-key.connectfail": b"secret",
}
"""Keys of signed vectors whose entry does not name one, because the two ends of these sessions disagree."""


def key_of(vector: Vector) -> bytes | None:
    named: str | None = vector.get("hmac_key")
    return named.encode() if named is not None else UNNAMED_KEYS.get(vector["name"])


def expected(vector: Vector) -> Message:
    """The neutral message that the vector's own description asks for, built without the codecs."""
    header = vector["header"]
    annotations = {entry["key"]: bytes.fromhex(entry["hex"]) for entry in vector["annotations"]}
    if vector["protocol_version"] == 48:
        correlation_id = annotations.pop("CORR", None)
        annotations.pop("HMAC", None)
    else:
        correlation_id = bytes.fromhex(header["correlation_id"]) if "CORR_ID" in header["flag_names"] else None
    data = raw(vector)
    return Message(
        type=header["type"],
        seq=header["seq"],
        serializer=SERIALIZERS[vector["protocol_version"]][header["serializer_id"]],
        flags=sum(FLAG_BITS[name] for name in header["flag_names"]),
        body=data[len(data) - header["data_size"] :],
        annotations=dict(annotations),
        correlation_id=correlation_id,
    )


def drain(decoder: Decoder) -> list[Any]:
    events = []
    while (event := decoder.next_event()) is not None:
        events.append(event)
    return events


def test_all_frames_are_there() -> None:
    assert (len(load("pyro4-frames")), len(load("pyro5-frames"))) == (444, 368)


def test_every_frame_decodes_whole_by_recognised_protocol() -> None:
    decoded = 0
    for vector in FRAMES:
        decoder = Decoder(hmac_key=key_of(vector))
        decoder.feed(raw(vector))
        assert drain(decoder) == [expected(vector)], vector["name"]
        assert decoder.codec is codec_of(vector)
        decoder.eof()
        decoded += 1
    assert decoded == 812


def test_every_frame_decodes_byte_by_byte() -> None:
    decoded = 0
    for vector in FRAMES:
        decoder = Decoder(hmac_key=key_of(vector))
        data = raw(vector)
        for byte in data[:-1]:
            decoder.feed(bytes([byte]))
            assert decoder.next_event() is None, vector["name"]
        decoder.feed(data[-1:])
        assert drain(decoder) == [expected(vector)], vector["name"]
        decoder.eof()
        decoded += 1
    assert decoded == 812


def test_every_frame_decodes_with_a_tail_and_the_tail_after_it() -> None:
    decoded = 0
    for vector in FRAMES:
        codec, key = codec_of(vector), key_of(vector)
        after = Message(MessageType.PING, 65535, "ping", 0, b"pong")
        tail = codec.encode(after, hmac_key=key)
        decoder = Decoder(hmac_key=key)
        decoder.feed(raw(vector) + tail[:-1])
        assert drain(decoder) == [expected(vector)], vector["name"]
        decoder.feed(tail[-1:])
        assert drain(decoder) == [after], vector["name"]
        decoded += 1
    assert decoded == 812


def test_every_frame_encodes_back_to_its_bytes() -> None:
    encoded = 0
    for vector in FRAMES:
        message = expected(vector)
        assert codec_of(vector).encode(message, hmac_key=key_of(vector)) == raw(vector), vector["name"]
        encoded += 1
    assert encoded == 812


def test_heads_encode_back_where_unsigned() -> None:
    encoded = 0
    for vector in FRAMES:
        if key_of(vector) is not None:
            continue
        size = vector["header"]["data_size"]
        head = codec_of(vector).encode_head(expected(vector), size)
        assert head == raw(vector)[: len(raw(vector)) - size], vector["name"]
        encoded += 1
    assert encoded == 799


def test_signed_frames_need_their_key() -> None:
    signed = [vector for vector in FRAMES if any(entry["key"] == "HMAC" for entry in vector["annotations"])]
    assert len(signed) == 13
    for vector in signed:
        for key, text in ((None, "hmac key config not symmetric"), (b"wrong", "message hmac mismatch")):
            decoder = Decoder(hmac_key=key)
            decoder.feed(raw(vector))
            with pytest.raises(SecurityError, match=text):
                decoder.next_event()


def test_unsigned_frames_are_refused_by_a_decoder_with_a_key() -> None:
    decoder = Decoder(hmac_key=b"secret")
    decoder.feed(raw(next(vector for vector in FRAMES if vector["name"] == "p4.basic-serpent.connect")))
    with pytest.raises(SecurityError, match="hmac key config not symmetric"):
        decoder.next_event()


def test_compressed_bodies_inflate_to_the_recorded_payload() -> None:
    compressed = [vector for vector in FRAMES if expected(vector).flags & Flags.COMPRESSED]
    assert len(compressed) == 19
    for vector in compressed:
        payload = bytes.fromhex(vector["payload"]["decompressed_hex"])
        body = expected(vector).body
        assert inflate(body, len(payload)) == payload == zlib.decompress(body)


BLOB_FRAMES = [vector for vector in FRAMES if any(entry["key"] == "BLBI" for entry in vector["annotations"])]


def test_every_recorded_blob_info_is_read() -> None:
    assert len(BLOB_FRAMES) == 13
    for vector in BLOB_FRAMES:
        method = "relay" if "relay-client" in vector["name"] or "connect" in vector["name"] else "process"
        target = "backend" if vector["name"].endswith("relay-backend.process.request") else "demo"
        annotation = expected(vector).annotations["BLBI"]
        info = read_blob_info(annotation)
        assert info == BlobInfo("info-text", target, method), vector["name"]
        assert read_blob_info(write_blob_info(info.info, info.object_id, info.method)) == info


def test_every_recorded_marshal_body_is_within_the_readable_subset() -> None:
    bodies = [
        expected(vector)
        for vector in FRAMES
        if expected(vector).serializer == "marshal" and not expected(vector).flags & Flags.COMPRESSED
    ]
    assert len(bodies) == 99
    for message in bodies:
        assert read(message.body) == marshal.loads(bytes(message.body))


# What is wrong with a malformed vector decides which room must notice it. Texts are what our peers will be told.
WIRE_ERRORS: dict[str, tuple[type[PyroError], str]] = {
    "p4.malformed.before-handshake.zeros": (ProtocolError, "invalid data or unsupported protocol version"),
    "p4.malformed.before-handshake.http": (ProtocolError, "invalid data or unsupported protocol version"),
    "p4.malformed.before-handshake.other-version": (ProtocolError, "invalid data or unsupported protocol version"),
    "p4.malformed.before-handshake.annotation-short": (ProtocolError, "unpack requires a buffer of 6 bytes"),
    # Pyro4 itself accepts this one with a shortened value; a message that lies about its shape is refused here.
    "p4.malformed.before-handshake.annotation-long": (
        ProtocolError,
        "annotation chunk length exceeds remaining data",
    ),
    "p4.malformed.before-handshake.annotation-nonascii": (
        ProtocolError,
        "'ascii' codec can't decode byte 0xff in position 0: ordinal not in range(128)",
    ),
    "p4.malformed.before-handshake.bad-checksum": (ProtocolError, "header checksum mismatch"),
    "p4.malformed.before-handshake.negative-size": (ProtocolError, "negative buffersize in recv"),
    "p4.malformed.before-handshake.hmac-unexpected": (SecurityError, "hmac key config not symmetric"),
    "p4.malformed.before-handshake.corr-short": (ProtocolError, "bytes is not a 16-char string"),
    "p4.malformed.after-handshake.bad-checksum": (ProtocolError, "header checksum mismatch"),
    "p4.malformed.after-handshake.bad-corr": (ProtocolError, "bytes is not a 16-char string"),
    "p4.malformed.after-handshake.negative-size": (ProtocolError, "negative buffersize in recv"),
    "p5.malformed.before-handshake.zeros": (ProtocolError, "invalid data"),
    "p5.malformed.before-handshake.http": (ProtocolError, "invalid data"),
    "p5.malformed.before-handshake.other-version": (ProtocolError, "invalid protocol version: 48"),
    "p5.malformed.before-handshake.annotation-short": (
        ProtocolError,
        "annotation chunk length exceeds remaining data",
    ),
    "p5.malformed.before-handshake.annotation-long": (
        ProtocolError,
        "annotation chunk length exceeds remaining data",
    ),
    "p5.malformed.before-handshake.annotation-nonascii": (
        ProtocolError,
        "'ascii' codec can't decode byte 0xff in position 0: ordinal not in range(128)",
    ),
    "p5.malformed.before-handshake.bad-magic": (ProtocolError, "invalid message or protocol version"),
    "p5.malformed.before-handshake.too-large": (ProtocolError, "message too large (4294967295, max=1073741824)"),
    "p5.malformed.after-handshake.bad-magic": (ProtocolError, "invalid message or protocol version"),
    "p5.malformed.after-handshake.annotation-short": (
        ProtocolError,
        "annotation chunk length exceeds remaining data",
    ),
}
INFLATE_ERRORS = ("before-handshake.bad-zlib", "after-handshake.bad-zlib")
"""The decoder never inflates: the body's reader gets the error."""
ABOVE_THE_WIRE = {
    "before-handshake.invoke-first": "the session judges the message type",
    "before-handshake.ping-first": "the session judges the message type",
    "before-handshake.type-99": "the session judges the message type",
    "before-handshake.unknown-serializer": "the session judges the serializer",
    "before-handshake.no-keys": "the body's value lacks keys",
    "before-handshake.garbage": "the body does not deserialize",
    "before-handshake.empty": "the body does not deserialize",
    "before-handshake.unknown-flags": "not an error: unknown bits are ignored",
    "after-handshake.connect-again": "the session judges the message type",
    "after-handshake.result": "the session judges the message type",
    "after-handshake.unknown-serializer": "the session judges the serializer",
    "after-handshake.garbage": "the body does not deserialize",
    "after-handshake.not-four": "the body is no call",
    "after-handshake.unknown-class": "the body holds a class nobody registered",
    "after-handshake.dunder-class": "the body holds a forbidden class",
    "after-handshake.no-blbi": "the call lacks its blob info",
    "after-handshake.exception-flag": "not an error: ignored on a request",
    "after-handshake.oneway-unknown-object": "the object table does not know the object",
}


def short_name(vector: Vector) -> str:
    return str(vector["name"]).split(".malformed.")[1]


def fed_with(vector: Vector) -> Decoder:
    decoder = Decoder(codec_of(vector))
    decoder.feed(bytes.fromhex(vector["sent_hex"]))
    return decoder


def test_malformed_frames_get_a_typed_error_with_the_stock_text() -> None:
    refused = [vector for vector in MALFORMED if vector["name"] in WIRE_ERRORS]
    assert len(refused) == len(WIRE_ERRORS) == 23
    for vector in refused:
        kind, text = WIRE_ERRORS[vector["name"]]
        with pytest.raises(kind) as caught:
            fed_with(vector).next_event()
        assert str(caught.value) == text, vector["name"]


def test_our_texts_are_the_ones_the_stock_server_answered() -> None:
    """Except where Pyro4 accepts what we refuse."""
    same = 0
    for vector in MALFORMED:
        answer = vector.get("answer_payload")
        if vector["name"] in WIRE_ERRORS and vector["phase"] == "before-handshake":
            if short_name(vector) == "annotation-long" and vector["protocol_version"] == 48:
                continue
            same += answer is not None and WIRE_ERRORS[vector["name"]][1] in answer
    assert same == 17


def test_plain_bodies_flagged_as_compressed_do_not_inflate() -> None:
    refused = [vector for vector in MALFORMED if short_name(vector) in INFLATE_ERRORS]
    assert len(refused) == 4
    for vector in refused:
        message = fed_with(vector).next_event()
        assert isinstance(message, Message)
        with pytest.raises(ProtocolError, match="Error -3 while decompressing data: incorrect header check"):
            inflate(message.body, 1_000_000)


def test_what_is_wrong_above_the_wire_decodes_to_one_message() -> None:
    passed = [vector for vector in MALFORMED if short_name(vector) in ABOVE_THE_WIRE]
    assert len(passed) == 36
    for vector in passed:
        decoder = fed_with(vector)
        assert isinstance(decoder.next_event(), Message), vector["name"]
        assert decoder.next_event() is None
        decoder.eof()


def test_unknown_values_of_malformed_frames_survive() -> None:
    by_name = {
        vector["name"]: fed_with(vector).next_event()
        for vector in MALFORMED
        if vector["sent_hex"][:4] == "5059" and vector["name"] not in WIRE_ERRORS
    }
    odd_type = by_name["p4.malformed.before-handshake.type-99"]
    odd_flags = by_name["p5.malformed.before-handshake.unknown-flags"]
    assert isinstance(odd_type, Message)
    assert odd_type.type == 99
    assert isinstance(odd_flags, Message)
    assert odd_flags.flags == 0


def test_silence_is_no_message_and_no_error() -> None:
    silent = [vector for vector in MALFORMED if not vector["sent_hex"]]
    assert len(silent) == 2
    for vector in silent:
        decoder = fed_with(vector)
        assert decoder.next_event() is None
        decoder.eof()


def test_every_malformed_vector_is_accounted_for() -> None:
    assert len(MALFORMED) == 34 + 31 == 23 + 4 + 36 + 2


def test_the_stock_servers_answers_to_malformed_frames_decode() -> None:
    answers = [vector for vector in MALFORMED if vector.get("answer_hex")]
    assert len(answers) == 49
    for vector in answers:
        data = bytes.fromhex(vector["answer_hex"])
        decoder = Decoder(codec_of(vector))
        decoder.feed(data)
        message = decoder.next_event()
        assert isinstance(message, Message)
        assert message.type == vector["answer_header"]["type"]
        assert codec_of(vector).encode(message) == data
