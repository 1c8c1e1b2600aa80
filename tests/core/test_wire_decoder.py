"""The decoder: any split gives the same events, limits hold before bytes are kept, an error is final."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyroxfer_core.errors import MessageTooLargeError, ProtocolError, PyroError, SecurityError
from pyroxfer_core.wire import V48, V502, BodyPart, Decoder, End, Head, Message, assembly
from pyroxfer_core.wire.codec import Codec
from pyroxfer_core.wire.decoder import Event
from pyroxfer_core.wire.message import Body

KIB = 1024
CODECS: list[Codec] = [V48, V502]
BOTH = pytest.mark.parametrize("codec", CODECS, ids=["48", "502"])
FRAMES = [
    bytes.fromhex(vector["hex"])
    for name in ("pyro4-frames", "pyro5-frames")
    for vector in json.loads((Path(__file__).parents[1] / "vectors" / f"{name}.json").read_text())["vectors"]
    if "hmac" not in vector["name"]
]


def call(body: bytes, seq: int = 1, **changes: object) -> Message:
    return Message(4, seq, "serpent", 0, body, **changes)  # type: ignore[arg-type]  # the tests name real fields


def drain(decoder: Decoder) -> list[Event]:
    events = []
    while (event := decoder.next_event()) is not None:
        events.append(event)
    return events


def joined(events: list[Event]) -> list[Event | bytes]:
    """Events with the parts of each body joined, since a split of the stream moves the borders between parts."""
    result: list[Event | bytes] = []
    for event in events:
        if isinstance(event, BodyPart):
            assert 0 < len(event.data) <= 256 * KIB
            last = result[-1]
            if isinstance(last, bytes):
                result[-1] = last + bytes(event.data)
            else:
                result.append(bytes(event.data))
        else:
            result.append(event)
    return result


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    borders = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(borders)]


def run(decoder: Decoder, chunks: list[bytes], directly: bool = False) -> list[Event]:
    """Feed chunks and drain; ``directly`` receives into the decoder's own buffer whenever it wants that."""
    events: list[Event] = []
    for chunk in chunks:
        rest = memoryview(chunk)
        while directly and rest and (wanted := decoder.wanted_buffer()) is not None:
            count = min(len(wanted), len(rest))
            wanted[:count] = rest[:count]
            decoder.received(count)
            rest = rest[count:]
            events += drain(decoder)
        event = decoder.take(bytes(rest))
        events += ([] if event is None else [event]) + drain(decoder)
    decoder.eof()
    return events


sizes = st.sampled_from([0, 1, 40, 300, 5_000, 64 * KIB, 64 * KIB + 1, 100_000, 300_000, 700_000])
streams = st.lists(
    st.tuples(sizes, st.dictionaries(st.sampled_from(["AAAA", "BBBB"]), st.binary(max_size=9))), max_size=5
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CODECS),
    streams,
    st.lists(st.integers(0, 10**7), max_size=12),
    st.sampled_from([0, 100, 70_000, 10**6]),
    st.booleans(),
)
def test_any_split_of_a_stream_gives_the_same_events(
    codec: Codec,
    shapes: list[tuple[int, dict[str, bytes]]],
    cuts: list[int],
    collect: int,
    directly: bool,
) -> None:
    sent = [call(bytes([n]) * size, n, annotations=notes) for n, (size, notes) in enumerate(shapes)]
    data = b"".join(map(codec.encode, sent))
    expected: list[Event | bytes] = []
    for message in sent:
        if len(message.body) <= collect:
            expected.append(message)
        else:
            empty = call(b"", message.seq, annotations=message.annotations)
            expected += [Head(empty, len(message.body)), bytes(message.body), End()]
    chosen = codec if len(cuts) % 2 else None
    assert joined(run(Decoder(chosen, collect=collect), pieces(data, cuts), directly)) == expected


@settings(deadline=None)
@given(st.lists(st.sampled_from(FRAMES), min_size=1, max_size=4), st.lists(st.integers(0, 5_000), max_size=9))
def test_any_split_of_recorded_frames_gives_the_same_events(frames: list[bytes], cuts: list[int]) -> None:
    version = frames[0][4:6]
    frames = [frame for frame in frames if frame[4:6] == version]
    data = b"".join(frames)
    whole = run(Decoder(), [data])
    assert whole == run(Decoder(), pieces(data, cuts))
    codec = V48 if version == b"\x00\x30" else V502
    assert whole == run(Decoder(codec), frames)
    assert b"".join(codec.encode(event) for event in whole if isinstance(event, Message)) == data


def feed_hostile(data: bytes, cuts: list[int], max_message: int) -> None:
    """Only our errors, and never more memory than what arrived plus one growth step of a body."""
    for codec in (None, *CODECS):
        for hmac_key in (None, b"secret"):
            decoder = Decoder(codec, max_message=max_message, collect=200_000, hmac_key=hmac_key)
            arrived = 0
            try:
                for piece in pieces(data, cuts):
                    decoder.feed(piece)
                    arrived += len(piece)
                    drain(decoder)
                    decoder.wanted_buffer()
                    assert decoder.buffered <= max(2 * arrived, arrived + 256 * KIB)
                decoder.eof()
            except PyroError as error:
                with pytest.raises(type(error)):
                    decoder.next_event()
                assert decoder.buffered == 0


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_arbitrary_bytes_give_only_our_errors(data: bytes, cuts: list[int]) -> None:
    feed_hostile(data, cuts, 10**6)
    for codec in CODECS:
        feed_hostile(codec.encode(call(b""))[:6] + data, cuts, 10**6)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(FRAMES),
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(1, 255)), max_size=4),
    st.integers(0, 2_000),
    st.lists(st.integers(0, 2_000), max_size=4),
    st.sampled_from([50, 10**6, 2**40]),
)
def test_flipped_and_cut_frames_give_only_our_errors(
    frame: bytes, flips: list[tuple[int, int]], cut: int, cuts: list[int], max_message: int
) -> None:
    data = bytearray(frame)
    for position, mask in flips:
        data[position % len(data)] ^= mask
    if data[4:6] == b"\x00\x30" and len(data) >= 24:
        fix_checksum(data)
    feed_hostile(bytes(data[: cut or None]), cuts, max_message)


def fix_checksum(data: bytearray) -> None:
    """Make a flipped header of protocol 48 reach the checks behind the checksum."""
    words = [int.from_bytes(data[at : at + 2], "big") for at in (4, 6, 8, 10, 14, 16, 18)]
    data[22:24] = ((sum(words) + 0x34E9) & 0xFFFF).to_bytes(2, "big")


@given(st.sampled_from(CODECS), st.binary(max_size=60))
def test_arbitrary_annotation_areas_give_only_our_errors(codec: Codec, area: bytes) -> None:
    try:
        parsed, _, _ = codec.parse_annotations(area, 8)
    except ProtocolError:
        return
    assert sum(map(len, parsed.values())) <= len(area)


@BOTH
def test_an_announcement_costs_no_memory(codec: Codec) -> None:
    decoder = Decoder(codec, max_message=2**31, collect=2**31)
    head = codec.encode_head(call(b""), 2**30)
    tracemalloc.start()
    decoder.feed(head)
    assert decoder.next_event() is None
    assert decoder.buffered == 0
    wanted = decoder.wanted_buffer()
    assert wanted is not None
    assert len(wanted) == 256 * KIB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@BOTH
def test_too_large_messages_are_refused_by_their_header_alone(codec: Codec) -> None:
    decoder = Decoder(codec, max_message=1_000)
    decoder.feed(codec.encode_head(call(b""), 1_001))
    with pytest.raises(MessageTooLargeError, match=r"message too large \(1001, max=1000\)"):
        decoder.next_event()
    with pytest.raises(MessageTooLargeError, match="max=1000"):
        decoder.feed(b"")


@BOTH
def test_the_limit_counts_annotations_and_may_be_raised_later(codec: Codec) -> None:
    message = call(b"x" * 900, annotations={"ABCD": b"y" * 100})
    size = len(codec.encode(message)) - codec.header_size
    decoder = Decoder(codec, max_message=size)
    decoder.feed(codec.encode(message))
    assert drain(decoder) == [message]
    decoder.max_message = size - 1
    decoder.feed(codec.encode(message))
    with pytest.raises(MessageTooLargeError):
        decoder.next_event()
    decoder = Decoder(codec, max_message=10)
    decoder.feed(codec.encode(call(b"x" * 10)))
    assert len(drain(decoder)) == 1
    decoder.max_message = 5_000
    decoder.feed(codec.encode(message))
    assert drain(decoder) == [message]


@BOTH
def test_too_many_annotations_are_refused(codec: Codec) -> None:
    message = call(b"", annotations={f"A{n:03}": b"" for n in range(65)})
    decoder = Decoder(codec)
    decoder.feed(codec.encode(message))
    with pytest.raises(ProtocolError, match="more than 64 annotations"):
        decoder.next_event()
    decoder = Decoder(codec, max_annotations=65)
    decoder.feed(codec.encode(message))
    assert drain(decoder) == [message]


def test_the_protocol_is_recognised_at_six_bytes_and_then_fixed() -> None:
    for codec, other in ((V48, V502), (V502, V48)):
        decoder = Decoder()
        data = codec.encode(call(b"abc"))
        decoder.feed(data[:5])
        assert decoder.next_event() is None
        assert decoder.codec is None
        decoder.feed(data[5:6])
        assert decoder.next_event() is None
        assert decoder.codec is codec
        decoder.feed(data[6:] + other.encode(call(b"abc")))
        assert decoder.next_event() == call(b"abc")
        with pytest.raises(ProtocolError, match="protocol version"):
            decoder.next_event()


@pytest.mark.parametrize(
    ("codec", "data", "text"),
    [
        (None, b"GET / ", "invalid data"),
        (None, bytes(6), "invalid data"),
        (None, b"PYRO\x00\x2e", "invalid protocol version: 46"),
        (V48, b"GET / ", "invalid data or unsupported protocol version"),
        (V48, b"PYRO\x01\xf6", "invalid data or unsupported protocol version"),
        (V502, b"GET / ", "invalid data"),
        (V502, b"PYRO\x00\x30", "invalid protocol version: 48"),
    ],
)
def test_six_wrong_bytes_are_enough_to_refuse(codec: Codec | None, data: bytes, text: str) -> None:
    decoder = Decoder(codec)
    decoder.feed(data[:5])
    assert decoder.next_event() is None
    decoder.feed(data[5:])
    with pytest.raises(ProtocolError) as caught:
        decoder.next_event()
    assert str(caught.value) == text


@BOTH
def test_an_error_is_final_and_the_same_everywhere(codec: Codec) -> None:
    decoder = Decoder(codec)
    decoder.feed(codec.encode(call(b"good")) + bytes(40))
    assert decoder.next_event() == call(b"good")
    with pytest.raises(ProtocolError) as first:
        decoder.next_event()
    for again in (
        decoder.next_event,
        decoder.eof,
        decoder.wanted_buffer,
        lambda: decoder.feed(codec.encode(call(b"good"))),
        lambda: decoder.received(0),
    ):
        with pytest.raises(type(first.value)) as later:
            again()
        assert later.value.args == first.value.args


@BOTH
@pytest.mark.parametrize("size", [10, 100_000, 2_000_000])
def test_end_of_stream_inside_a_message_is_an_error(codec: Codec, size: int) -> None:
    data = codec.encode(call(b"x" * size))
    for cut in (1, 7, codec.header_size, codec.header_size + 5, len(data) - 1):
        decoder = Decoder(codec)
        decoder.feed(data[:cut])
        drain(decoder)
        with pytest.raises(ProtocolError, match="ended inside a message"):
            decoder.eof()
        with pytest.raises(ProtocolError, match="ended inside a message"):
            decoder.next_event()


def test_end_of_stream_between_messages_is_fine() -> None:
    decoder = Decoder()
    decoder.eof()
    decoder.feed(V48.encode(call(b"abc")))
    drain(decoder)
    decoder.eof()


@BOTH
def test_large_bodies_come_in_parts_and_hold_nothing(codec: Codec) -> None:
    decoder = Decoder(codec)
    decoder.feed(codec.encode_head(call(b"", annotations={"ABCD": b"1"}), 3 * KIB * KIB))
    assert drain(decoder) == [Head(call(b"", annotations={"ABCD": b"1"}), 3 * KIB * KIB)]
    chunk = b"x" * (1024 * KIB)
    for last in (False, False, True):
        assert decoder.wanted_buffer() is None
        decoder.feed(chunk)
        events = drain(decoder)
        assert [len(event.data) for event in events if isinstance(event, BodyPart)] == [256 * KIB] * 4
        assert (events[-1] == End()) is last
        assert decoder.buffered == 0
    decoder.eof()


def test_small_messages_have_bytes_as_body_whatever_was_fed() -> None:
    data = V502.encode(call(b"abc", annotations={"ABCD": b"1"}))
    for kind in (bytes, bytearray, memoryview):
        decoder = Decoder()
        decoder.feed(kind(data[:10]))
        decoder.feed(kind(data[10:]))
        [message] = drain(decoder)
        assert isinstance(message, Message)
        assert type(message.body) is bytes
        assert type(message.annotations["ABCD"]) is bytes


def test_fed_buffers_may_be_reused_at_once() -> None:
    decoder = Decoder()
    buffer = bytearray(V502.encode(call(b"abc")))
    decoder.feed(buffer)
    buffer[:] = bytes(len(buffer))
    assert drain(decoder) == [call(b"abc")]


@BOTH
def test_the_wanted_buffer_grows_with_what_arrived(codec: Codec) -> None:
    size = 3 * 1024 * KIB + 17
    data = codec.encode(call(b"z" * size))
    decoder = Decoder(codec, collect=size)
    decoder.feed(data[: codec.header_size + 10])
    assert decoder.next_event() is None
    filled, seen = 10, []
    while (wanted := decoder.wanted_buffer()) is not None:
        assert filled + len(wanted) <= max(2 * filled, 256 * KIB)
        seen.append(len(wanted))
        wanted[:] = b"z" * len(wanted)
        filled += len(wanted)
        decoder.received(len(wanted))
    assert filled == size
    assert len(seen) <= 6
    message = decoder.next_event()
    assert isinstance(message, Message)
    assert message.body == b"z" * size
    assert isinstance(message.body, bytearray)
    assert decoder.wanted_buffer() is None
    decoder.eof()


def test_a_very_large_body_grows_in_bounded_steps() -> None:
    """Fresh memory costs time: nobody waits while room for half of such a body is made at once."""
    size, longest = 100 * 1024 * KIB, 16 * 1024 * KIB
    decoder = Decoder(V502, max_message=2 * size, collect=size)
    data = V502.encode(call(bytes(size)))
    decoder.feed(data[:-size])
    assert decoder.next_event() is None
    steps = []
    while (wanted := decoder.wanted_buffer()) is not None:
        steps.append(len(wanted))
        decoder.received(len(wanted))
    assert sum(steps) == size
    assert max(steps) == longest
    assert len(steps) < 15


def test_no_buffer_is_wanted_for_small_bodies_or_while_input_waits() -> None:
    decoder = Decoder(V502)
    assert decoder.wanted_buffer() is None
    data = V502.encode(call(b"x" * 1_000))
    decoder.feed(data[:-1])
    drain(decoder)
    assert decoder.wanted_buffer() is None
    decoder = Decoder(V502)
    data = V502.encode(call(b"x" * 100_000))
    decoder.feed(data[:50])
    drain(decoder)
    assert decoder.wanted_buffer() is not None
    decoder.feed(data[50:60])
    assert decoder.wanted_buffer() is None


def test_feeding_ends_the_loan_of_the_wanted_buffer() -> None:
    data = V502.encode(call(b"x" * 900_000))
    decoder = Decoder(V502)
    decoder.feed(data[:50])
    drain(decoder)
    wanted = decoder.wanted_buffer()
    assert wanted is not None
    decoder.feed(data[50:])
    assert drain(decoder) == [call(b"x" * 900_000)]
    with pytest.raises(ValueError, match="released"):
        wanted[0] = 1


def test_received_counts_are_checked() -> None:
    decoder = Decoder(V502)
    with pytest.raises(ValueError, match="not asked for"):
        decoder.received(0)
    decoder.feed(V502.encode_head(call(b""), 100_000))
    drain(decoder)
    wanted = decoder.wanted_buffer()
    assert wanted is not None
    for count in (-1, len(wanted) + 1):
        with pytest.raises(ValueError, match="not asked for"):
            decoder.received(count)


def test_signed_messages_are_collected_and_verified_before_they_are_seen() -> None:
    body = b"x" * 2_000_000
    data = V48.encode(call(body), hmac_key=b"secret")
    decoder = Decoder(collect=1_000, hmac_key=b"secret")
    [message] = run(decoder, pieces(data, [5, 70_000, 1_000_000]))
    assert isinstance(message, Message)
    assert message.body == body
    decoder = Decoder(collect=1_000, hmac_key=b"secret")
    with pytest.raises(SecurityError, match="message hmac mismatch"):
        run(decoder, [data[:-1] + b"y"])


def test_an_unsigned_large_message_is_refused_before_its_body() -> None:
    decoder = Decoder(hmac_key=b"secret")
    decoder.feed(V48.encode_head(call(b""), 2_000_000))
    with pytest.raises(SecurityError, match="hmac key config not symmetric"):
        decoder.next_event()


def test_many_small_messages_in_one_feed_are_not_copied_again_and_again() -> None:
    """20000 messages that each moved the rest would move 20 GB; the count of held bytes shows that none does."""
    data = V502.encode(call(b"x" * 10)) * 20_000
    decoder = Decoder(V502)
    decoder.feed(data)
    assert decoder.next_event() == call(b"x" * 10)
    assert decoder.buffered == len(data)
    assert len(drain(decoder)) == 19_999
    assert decoder.buffered == 0


@pytest.mark.parametrize("body", [b"", b"b" * 10, b"b" * (100 * KIB)], ids=["none", "small", "large"])
@pytest.mark.parametrize("collect", [10 * KIB * KIB, 50 * KIB], ids=["collected", "in parts"])
@pytest.mark.parametrize("others", [{"TINY": b"x"}, {}], ids=["beside another", "alone"])
@pytest.mark.parametrize("ahead", [True, False], ids=["memory at once", "memory as it comes"])
def test_large_annotations_are_received_into_a_buffer_and_change_nothing(
    body: bytes, collect: int, others: dict[str, Body], ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "_ahead", [None] * 2 if ahead else [])
    sent = call(body, annotations={"BIGA": bytes(range(256)) * 2000, **others})
    data = V502.encode(sent) + V502.encode(call(b"next", 2))
    decoder = Decoder(V502, collect=collect)
    at = lent = 0
    events: list[Event] = []
    while at < len(data):
        place = decoder.wanted_buffer()
        count = min(30_000 if place is None else len(place), len(data) - at)
        if place is None:
            decoder.feed(data[at : at + count])
        else:
            place[:count] = data[at : at + count]
            decoder.received(count)
            lent += count
        at += count
        events += drain(decoder)
    whole = Decoder(V502, collect=collect)
    whole.feed(data)
    assert joined(events) == joined(drain(whole))
    assert lent > 400_000, "the annotations were received in place"
    head = events[0]
    annotations = (head.message if isinstance(head, Head) else head).annotations  # type: ignore[union-attr]
    assert annotations == sent.annotations
    assert {type(value) for value in annotations.values()} == {bytes}
    assert len(assembly._ahead) == (2 if ahead else 0), "what may have memory at once is given back"


def test_an_annotation_that_breaks_off_gives_back_that_it_had_its_memory_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assembly, "_ahead", [None])
    decoder = Decoder(V502)
    decoder.feed(V502.encode(call(b"", annotations={"BIGA": bytes(100 * KIB)}))[: 80 * KIB])
    assert decoder.next_event() is None
    assert assembly._ahead == []
    with pytest.raises(ProtocolError, match="ended inside"):
        decoder.eof()
    assert assembly._ahead == [None]


def test_memory_for_annotations_grows_with_what_arrives() -> None:
    decoder = Decoder(V502, max_message=1 << 30)
    head = V502.encode(call(b"", annotations={"BIGA": bytes(100 * KIB)}))[:40]
    announced = head[:16] + (500 * KIB * KIB).to_bytes(4, "big") + head[20:]
    assert V502.parse_header(announced).annotations_length == 500 * KIB * KIB
    decoder.feed(announced)
    assert decoder.next_event() is None
    assert len(decoder.wanted_buffer() or b"") <= 256 * KIB
    with pytest.raises(ProtocolError, match="ended inside"):
        decoder.eof()


@BOTH
@pytest.mark.parametrize("size", [0, 100, 60_000])
def test_a_message_in_buffers_is_the_same_message(codec: Codec, size: int) -> None:
    sent = call(b"body", annotations={"AAAA": bytes(size), "BBBB": bytearray(b"b")})
    assert b"".join(codec.encode_buffers(sent)) == codec.encode(sent)


def test_only_a_large_annotation_of_bytes_stays_where_it_is() -> None:
    block, changing = bytes(500 * KIB), bytearray(500 * KIB)
    sent = call(b"body", annotations={"AAAA": block, "BBBB": changing, "CCCC": b"c"})
    buffers = V502.encode_buffers(sent)
    assert b"".join(buffers) == V502.encode(sent)
    assert any(buffer is block for buffer in buffers)
    assert all(type(buffer) is bytes for buffer in buffers), "what may change is copied"


CHUNKS = st.tuples(
    st.sampled_from([b"BLBI", b"PXDL", "é12".encode(), b"\xff\xff\xff\xff"]), st.integers(0, 30), st.integers(-1, 1)
).map(lambda chunk: chunk[0] + max(0, chunk[1] + chunk[2]).to_bytes(4, "big") + b"v" * chunk[1])
"""Key, length and value; some are not text, some have another length than they say."""
AREAS = st.one_of(st.binary(max_size=10), CHUNKS, st.lists(CHUNKS, max_size=3).map(b"".join))


def outcome(decoder: Decoder, first: Event | str | None) -> list[Event | bytes | str]:
    """All events after the first, or with them the text of the error."""
    events: list[Event] = [] if first is None or isinstance(first, str) else [first]
    errors = [first] if isinstance(first, str) else []
    try:
        while not errors and (event := decoder.next_event()) is not None:
            events.append(event)
    except PyroError as error:
        errors.append(f"{type(error).__name__}: {error}")
    return [*joined(events), *errors]


@settings(max_examples=400, deadline=None)
@given(
    AREAS,
    st.sampled_from([0, 1, 20, 40]),
    st.sampled_from([b"", b"PYRO", bytes(50)]),
    st.sampled_from([0, 1, 64]),
    st.sampled_from([0, 20, 1000]),
    st.sampled_from([8, 45, 1000]),
)
def test_what_is_taken_at_once_is_what_it_is_step_by_step(
    area: bytes, size: int, tail: bytes, max_annotations: int, collect: int, max_message: int
) -> None:
    head = V502.encode(Message(4, 7, "msgpack", 1, b"b" * size, {}, bytes(range(16))))
    data = head[:16] + len(area).to_bytes(4, "big") + head[20:40] + area + head[40:] + tail
    quick, slow = (
        Decoder(V502, max_message=max_message, max_annotations=max_annotations, collect=collect) for _ in range(2)
    )
    first: Event | str | None
    try:
        first = quick.take(data)
    except PyroError as error:
        first = f"{type(error).__name__}: {error}"
    slow.feed(data[:1])
    slow.feed(data[1:])
    assert outcome(quick, first) == outcome(slow, None)


def giving_views() -> Decoder:
    decoder = Decoder(V502, collect=128 * KIB)
    decoder.gives_views = True
    return decoder


@pytest.mark.parametrize(
    "message", [call(bytes(range(256)) * 300), call(b"x" * 70_000, annotations={"BLBI": b"info"})]
)
def test_a_body_that_is_most_of_what_came_is_a_view_of_it_for_whoever_takes_views(message: Message) -> None:
    data = V502.encode(message) + V502.encode(call(b"next"))
    decoder = giving_views()
    found = decoder.take(data)
    assert found == message
    assert isinstance(found, Message)
    assert isinstance(found.body, memoryview)
    assert found.body.obj is data
    assert drain(decoder) == [call(b"next")]
    copied = Decoder(V502, collect=128 * KIB).take(data)
    assert isinstance(copied, Message)
    assert isinstance(copied.body, bytes)


@pytest.mark.parametrize("sizes", [(40, 80), (60,), (1, 100)])
def test_no_view_keeps_more_than_twice_its_size(sizes: tuple[int, ...]) -> None:
    bodies = [bytes([size]) * size * KIB for size in sizes]
    decoder = giving_views()
    first = decoder.take(b"".join(V502.encode(call(body)) for body in bodies))
    found = [first, *drain(decoder)]
    assert [event.body for event in found if isinstance(event, Message)] == bodies
    assert not any(isinstance(event, Message) and isinstance(event.body, memoryview) for event in found)
