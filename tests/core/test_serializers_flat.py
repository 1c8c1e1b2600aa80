"""The short way for plain calls and values: the same bytes and the same values as the long way."""

from __future__ import annotations

import ast
import datetime
import gc
import marshal
from typing import Any

import pytest
import serpent
from hypothesis import example, given
from hypothesis import strategies as st

from pyroxfer_core.errors import ProtocolError, PyroError, SerializeError
from pyroxfer_core.serializers.base import SerializerContext
from pyroxfer_core.serializers.factory import make_serializer
from pyroxfer_core.serializers.registry import ClassRegistry
from pyroxfer_core.uri import Uri
from pyroxfer_core.wire.marshal import MAX_ITEMS, read

HEADER = "# serpent utf-8 python3.2\n"
SERPENT = make_serializer("serpent", SerializerContext(502))
MSGPACK = make_serializer("msgpack", SerializerContext(502))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts, st.just("it's"))
pieces = st.sampled_from(
    [
        *"'(),{}-.\\\" \n\x0c\x7f#_e0123456789",
        "''",
        "'a'",
        "-0",
        "00",
        "1.5",
        "1.",
        "None",
        "True",
        "False",
        "'a','b'",
    ]
)


def longhand(value: object) -> bytes:
    written: bytes = serpent.dumps(value, module_in_classname=True)
    return written


@given(texts, texts, st.integers(0, 65535) | st.none())
def test_uris_are_written_as_the_library_writes_them(name: str, host: str, port: int | None) -> None:
    """Byte for byte, and they are read back."""
    uri = Uri.from_state(("PYRO", name, None, host, port))
    body = bytes(SERPENT.dumps(uri))
    assert body == longhand({"__class__": "Pyro5.core.URI", "state": uri.state})
    assert SERPENT.loads(body) == MSGPACK.loads(MSGPACK.dumps(uri)) == uri


@given(texts, texts, st.lists(plain, max_size=4), st.dictionaries(texts, plain, max_size=3))
def test_plain_calls_are_written_as_the_library_writes_them(
    object_id: str, method: str, args: list[object], kwargs: dict[str, object]
) -> None:
    """Byte for byte, and they are read back."""
    body = bytes(SERPENT.dumps_call(object_id, method, tuple(args), kwargs))
    assert body == longhand((object_id, method, tuple(args), kwargs))
    assert SERPENT.loads_call(body) == ast.literal_eval(body.decode())
    assert MSGPACK.loads_call(MSGPACK.dumps_call(object_id, method, tuple(args), {})) == (object_id, method, args, {})


@given(plain)
def test_plain_values_are_read_as_the_library_reads_them(value: object) -> None:
    """With their types: True is no 1."""
    read = SERPENT.loads(longhand(value))
    expected = serpent.loads(longhand(value))
    assert (type(read), read) == (type(expected), expected)


@given(st.lists(pieces, max_size=8).map("".join))
@example("1_0")
@example("'a' 'b'")
@example("-None")
@example("007")
def test_no_text_is_read_as_something_else(text: str) -> None:
    """Whatever looks nearly like a plain value or call: either the parser's value, or an error as before."""
    for body in (f"{HEADER}{text}", f"{HEADER}('o','m',({text}),{{}})", f"{HEADER}('o','m',{text},{{}})"):
        try:
            expected = ast.literal_eval(body)
        except Exception:
            with pytest.raises(SerializeError):
                SERPENT.loads(body.encode())
            continue
        read = SERPENT.loads(body.encode())
        assert (type(read), repr(read)) == (type(expected), repr(expected))
        if isinstance(expected, tuple) and len(expected) == 4 and isinstance(expected[2], tuple):
            assert repr(SERPENT.loads_call(body.encode())) == repr(expected)
        elif isinstance(expected, tuple) and len(expected) == 4 and not isinstance(expected[2], list):
            with pytest.raises(SerializeError):
                SERPENT.loads_call(body.encode())


@pytest.mark.parametrize("own", [True, False], ids=["own", "stock"])
@given(st.integers(0, 80), st.binary(max_size=3), st.integers(0, 3))
@example(1, b"\xab", 1)  # "__class__" with two bytes more
@example(32, b"\x81", 1)  # the state is a map
@example(32, b"\x94\xa4PYRO\xa2me\xc0\xc0", 99)  # it has four members
def test_what_looks_like_the_body_of_a_uri_is_read_as_any_other(
    own: bool, place: int, bytes_there: bytes, instead_of: int
) -> None:
    """A URI with some bytes changed: the same value or error from the short way, met again, and the long."""
    serializer = make_serializer("msgpack", SerializerContext(502, own=own))
    body = bytes(serializer.dumps(Uri("PYRO:me@localhost:9090")))
    body = body[:place] + bytes_there + body[place + instead_of :]
    outcomes = []
    for form in (body, bytes(bytearray(body)), memoryview(body)):  # only bytes take the short way
        try:
            value = serializer.loads(form)
            outcomes.append((type(value), repr(value)))
        except PyroError as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_a_reader_that_is_registered_later_reads_uris_that_were_met_before() -> None:
    registry = ClassRegistry()
    serializer = make_serializer("msgpack", SerializerContext(502, registry=registry))
    body = serializer.dumps(Uri("PYRO:me@localhost:9090"))
    assert serializer.loads(body) == Uri("PYRO:me@localhost:9090")
    registry.register_dict_to_class("Pyro5.core.URI", lambda _, data: data["state"][1])
    assert serializer.loads(body) == "me"


MARSHAL = make_serializer("marshal", SerializerContext(502))


@pytest.mark.parametrize("version", [2, 4])
@given(st.text(max_size=5), st.lists(st.one_of(plain, st.binary(max_size=3), st.text()), max_size=4), st.booleans())
def test_marshal_calls_are_read_as_python_wrote_them(
    version: int, method: str, values: list[object], listed: bool
) -> None:
    """With and without remembered values; containers keep their kind."""
    args: Any = values if listed else tuple(values)
    body = marshal.dumps(("object", method, args, {}), version)
    assert read(body) == ("object", method, args, {})
    assert [type(value) for value in MARSHAL.loads_call(body)[2]] == [type(value) for value in values]


@given(st.binary(max_size=40), st.integers(0, 60), st.integers(0, 255))
def test_the_short_way_of_marshal_accepts_nothing_that_the_full_reader_refuses(
    data: bytes, place: int, byte: int
) -> None:
    """Arbitrary bytes, and real calls with one byte changed: the same value, or an error, from both."""
    call = bytearray(marshal.dumps(("object", "method", ["text", 1, 2.5, None], {}), 4))
    call[place % len(call)] = byte
    for body in (data, bytes(call), bytes(call[:place])):
        outcomes = []
        for limit in (MAX_ITEMS, MAX_ITEMS - 1):  # only the default limits take the short way
            try:
                outcomes.append(repr(read(body, max_items=limit)))
            except ProtocolError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


def test_a_parser_that_another_thread_confuses_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 fails then with an error of its own, whatever the text."""
    real, failures = ast.literal_eval, [SystemError("recursion depth mismatch")] * 2

    def confused(text: str) -> Any:
        if failures:
            raise failures.pop()
        return real(text)

    monkeypatch.setattr(ast, "literal_eval", confused)
    assert SERPENT.loads(f"{HEADER}[1,[2]]".encode()) == [1, [2]]
    assert not failures
    failures += [SystemError("always")] * 1000
    with pytest.raises(SerializeError, match="SystemError"):
        SERPENT.loads(f"{HEADER}[1,[2]]".encode())


@pytest.mark.parametrize("own", [True, False], ids=["own", "stock"])
def test_what_runs_while_a_value_is_refused_packs_its_own_values_alone(own: bool) -> None:
    serializer = make_serializer("msgpack", SerializerContext(502, own=own))
    bodies: list[Any] = []

    def collected(phase: str, info: dict[str, int]) -> None:
        bodies.append(serializer.dumps(["other", 1]))

    before = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(1)  # it comes whenever something is made, as the error is
    try:
        for _ in range(5):
            serializer.dumps(["mine", datetime.datetime(2020, 1, 1)])
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(collected)
    assert bodies
    assert {tuple(serializer.loads(body)) for body in bodies} == {("other", 1)}
