"""The validating marshal reader against marshal itself, and against bytes made to hurt it."""

from __future__ import annotations

import marshal
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyroxfer_core.errors import MessageTooLargeError, ProtocolError, SerializeError
from pyroxfer_core.wire.blobinfo import BlobInfo, read_blob_info, write_blob_info
from pyroxfer_core.wire.marshal import MAX_DEPTH, MAX_ITEMS, _Reader, read, read_small_call, write

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.text(st.characters(max_codepoint=127))
    | st.binary()
)
flat = leaves | st.lists(leaves, max_size=3).map(tuple)
hashable = flat | st.frozensets(flat, max_size=3)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, min_size=1, max_size=2).map(lambda members: [members, members, tuple(members)])
        | st.dictionaries(hashable, inner, max_size=4)
        | st.sets(hashable, max_size=4)
        | st.frozensets(hashable, max_size=4)
    ),
    max_leaves=25,
)


def same(left: object, right: object) -> bool:
    """Equal with equal types all the way: 1 == True == 1.0 would hide a wrong type."""
    return left == right and repr_sorted(left) == repr_sorted(right)


def repr_sorted(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({[repr_sorted(member) for member in value]})"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}({sorted(repr_sorted(member) for member in value)})"
    if isinstance(value, dict):
        return f"dict({[(repr_sorted(key), repr_sorted(member)) for key, member in value.items()]})"
    return repr(value)


@given(values, st.sampled_from([2, 3, 4]))
def test_reads_what_marshal_writes_in_every_version(value: object, version: int) -> None:
    data = marshal.dumps(value, version)  # type: ignore[arg-type]  # the strategy makes marshallable values only
    assert same(read(data), value)
    assert same(read(bytearray(data)), value)


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("arguments", [[], [1], (1, "a")])
def test_what_has_the_form_of_a_call_keeps_its_types(kind: type, arguments: object) -> None:
    value = kind(["object", None, arguments, {}])
    assert same(read(write(value)), value)


@given(values)
def test_marshal_reads_what_we_write(value: object) -> None:
    assert same(marshal.loads(write(value)), value)
    assert same(read(write(value)), value)


@settings(max_examples=300)
@given(values, st.lists(st.tuples(st.integers(0, 500), st.integers(1, 255)), max_size=3), st.integers(0, 500))
def test_flipped_and_cut_values_are_read_as_marshal_would_or_refused(
    value: object, flips: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(marshal.dumps(value))  # type: ignore[arg-type]  # the strategy makes marshallable values only
    for position, mask in flips:
        data[position % len(data)] ^= mask
    data = data[: cut or None]
    try:
        got = read(data)
    except ProtocolError:
        return
    assert repr_sorted(got) == repr_sorted(marshal.loads(bytes(data)))


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read(data)
    except ProtocolError:
        pass


def test_references_keep_identity() -> None:
    inner = ["x"]
    value = read(marshal.dumps([inner, inner], 4))
    assert isinstance(value, list)
    assert value[0] is value[1]


@pytest.mark.parametrize(
    "number", [0, 2**31 - 1, -(2**31), 2**31, -(2**31) - 1, 2**15, 2**30, 2**1000 + 1, -(3**999)]
)
def test_integers_of_every_size(number: int) -> None:
    assert read(marshal.dumps(number)) == number


REMEMBERED_LIST = b"\xdb"
HOSTILE = [
    (b"", "cut short"),
    (b"i\x01", "cut short"),
    (b"NN", "left over"),
    (b"c", "type 'c' is not a plain value"),
    (b"S", "type 'S' is not a plain value"),
    (b".", "type '.' is not a plain value"),
    (b"0", "type '0' is not a plain value"),
    (b"[" + struct.pack("<i", 2**31 - 1), "cut short"),
    (b"(" + struct.pack("<i", 2), "cut short"),
    (b"[" + struct.pack("<i", 2) + b"c", "cut short"),  # by its count, before any member is looked at
    (b"<" + struct.pack("<i", -1), "negative size"),
    (b"s" + struct.pack("<i", 2**31 - 1), "cut short"),
    (b"u" + struct.pack("<i", -5), "negative size"),
    (b"l" + struct.pack("<i", -(2**31)), "too many values"),
    (b"l" + struct.pack("<i", 1000), "cut short"),
    (b"l" + struct.pack("<iHH", 2, 1, 0), "bad digits"),
    (b"l" + struct.pack("<iH", 1, 0x8000), "bad digits"),
    (b"u\x01\x00\x00\x00\xff", "can't decode"),
    (b"z\x01\xff", "can't decode"),
    (b"r\x00\x00\x00\x00", "reference to nothing"),
    (b"r\xff\xff\xff\xff", "reference to nothing"),
    (REMEMBERED_LIST + b"\x01\x00\x00\x00r\x00\x00\x00\x00", "unfinished"),
    (b"\xa9\x01r\x00\x00\x00\x00", "unfinished"),
    (b"<\x01\x00\x00\x00[\x00\x00\x00\x00", "unhashable"),
    (b"{[\x00\x00\x00\x00N0", "unhashable"),
    (b"{N", "cut short"),
    (b"{N0", "type '0' is not a plain value"),
]


@pytest.mark.parametrize(("data", "text"), HOSTILE, ids=[data.hex() for data, _ in HOSTILE])
def test_hostile_bytes_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        read(data)


def test_code_objects_are_refused() -> None:
    with pytest.raises(ProtocolError, match="not a plain value"):
        read(marshal.dumps(compile("1", "x", "eval")))


def test_nesting_is_bounded() -> None:
    assert read(b")\x01" * 100 + b"N") is not None
    with pytest.raises(ProtocolError, match="nested deeper than 100"):
        read(b")\x01" * 101 + b"N")
    with pytest.raises(ProtocolError, match="nested deeper than 100"):
        read(b")\x01" * 1_000_000)
    with pytest.raises(ProtocolError, match="nested too deep for the stack"):
        read(b")\x01" * 5_000 + b"N", max_depth=10_000)


def reference(index: int) -> bytes:
    return b"r" + struct.pack("<i", index)


def test_nesting_is_bounded_through_references_too() -> None:
    """A tower of 60 levels, then another of 60 with the first at its bottom."""
    tower = b"\xa9\x01" + b")\x01" * 59 + b"N"
    assert read(b")\x02" + tower + b")\x01" * 38 + reference(0)) is not None
    with pytest.raises(ProtocolError, match="nested deeper"):
        read(b")\x02" + tower + b")\x01" * 60 + reference(0))


def test_nesting_of_a_remembered_value_is_that_of_its_deepest_member() -> None:
    deep = b")\x01" * 59 + b"N"
    flat_after_deep = b"\xa9\x02" + deep + b"\xfa\x01x"
    tower_in_tower = b"\xa9\x02N" + reference(0)
    for first, index in ((flat_after_deep, 0), (b"\xa9\x01" + deep[2:] + tower_in_tower, 1)):
        count = 2 + (index == 1)
        assert read(bytes([ord(")"), count]) + first + reference(index)) is not None
        with pytest.raises(ProtocolError, match="nested deeper"):
            read(bytes([ord(")"), count]) + first + b")\x01" * 60 + reference(index))


def test_lone_surrogates_are_text_as_marshal_has_it() -> None:
    assert read(marshal.dumps("\ud800")) == "\ud800"
    assert marshal.loads(write("\ud800")) == "\ud800"


def test_a_remembered_reference_takes_no_number_of_its_own() -> None:
    data = b")\x04" + b"\xfa\x01a" + b"\xf2\x00\x00\x00\x00" + b"\xfa\x01b" + reference(1)
    assert read(data) == marshal.loads(data) == ("a", "a", "b", "b")


def test_values_are_counted_through_references() -> None:
    """Forty doublings in 500 bytes: hashing or printing the value would take for ever."""
    pairs = [b"\xa9\x02NN"] + [b"\xa9\x02" + reference(n) * 2 for n in range(1, 41)]
    bomb = b"\xa9\x29" + b"".join(pairs)
    with pytest.raises(ProtocolError, match="too many values"):
        read(bomb)
    few = b"\xa9\x03" + b"".join(pairs[:3])
    assert read(few) == marshal.loads(few)
    assert read(few, max_items=26) == marshal.loads(few)
    with pytest.raises(ProtocolError, match="too many values"):
        read(few, max_items=25)


def test_counts_beyond_the_data_allocate_nothing() -> None:
    tracemalloc.start()
    for code in b"[(<>":
        with pytest.raises(ProtocolError, match="cut short"):
            read(bytes([code]) + struct.pack("<i", 2**31 - 1) + b"N" * 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_many_values_are_bounded() -> None:
    data = b"[" + struct.pack("<i", 1_000) + b"<\x00\x00\x00\x00" * 1_000
    assert read(data, max_items=1_001) == [set()] * 1_000
    with pytest.raises(ProtocolError, match="too many values"):
        read(data, max_items=1_000)


@pytest.mark.parametrize(
    "value", [object(), ..., StopIteration, compile("1", "x", "eval"), [memoryview(b"x")], {1: {2, ...}}]
)
def test_values_that_are_not_plain_are_not_written(value: object) -> None:
    with pytest.raises(SerializeError):
        write(value)


def test_values_without_end_are_not_written() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(SerializeError, match="cannot write"):
        write(endless)


def test_writing_is_deterministic_whatever_else_holds_the_value() -> None:
    text = "".join(["a", "b"])
    assert write([text, "ab"]) == write(["a" + "b", text])
    assert write(bytearray(b"x")) == write(b"x")


@given(values, st.text(), st.text())
def test_blob_infos_survive(info: object, object_id: str, method: str) -> None:
    back = read_blob_info(write_blob_info(info, object_id, method))
    assert same(back.info, info)
    assert (back.object_id, back.method) == (object_id, method)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "tuple of three"),
        (("info", "object"), "tuple of three"),
        (["info", "object", "method"], "tuple of three"),
        (("info", "object", 1), "no object id and method name"),
        (("info", b"object", "method"), "no object id and method name"),
        ((list(range(1_000)), "object", "method"), "too many values"),
    ],
)
def test_other_values_are_no_blob_info(value: object, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        read_blob_info(write(value))


def test_blob_infos_are_small_and_flat() -> None:
    with pytest.raises(MessageTooLargeError, match="blob info too large"):
        read_blob_info(write_blob_info("x" * 70_000, "object", "method"))
    with pytest.raises(ProtocolError, match="nested deeper"):
        read_blob_info(b")\x03" + b")\x01" * 20 + b"N" + b"z\x01az\x01b")
    assert read_blob_info(memoryview(write_blob_info(None, "a", "b"))) == BlobInfo(None, "a", "b")


numbers = st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.floats(allow_nan=False)


@settings(max_examples=300)
@given(
    st.tuples(st.text(max_size=40), st.text(max_size=300), st.lists(numbers, max_size=300), st.just({})),
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 255)), max_size=2),
    st.integers(0, 500),
)
def test_small_calls_are_read_as_the_full_reader_reads_them_or_left_to_it(
    call: tuple[str, str, list[object], dict[str, object]], flips: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(marshal.dumps(call, 2))
    for position, mask in flips:
        data[position % len(data)] ^= mask
    data = data[: cut or None]
    got = read_small_call(bytes(data))
    assert got is None or repr_sorted(got) == repr_sorted(_Reader(bytes(data), MAX_DEPTH, MAX_ITEMS).read())


def test_the_usual_call_is_a_small_one() -> None:
    call: tuple[str, str, list[object], dict[str, object]] = ("adder", "add", [1, -2.5, None, True], {})
    assert read_small_call(marshal.dumps(call, 2)) == call


@pytest.mark.parametrize("count", [1, 3])
def test_a_call_with_another_number_of_arguments_than_it_says_is_refused(count: int) -> None:
    data = marshal.dumps(("adder", "add", [1, 2], {}), 2).replace(b"[\2", bytes([ord("["), count]))
    assert read_small_call(data) is None
    with pytest.raises(ProtocolError):
        read(data)
