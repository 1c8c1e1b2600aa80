"""Bytes and values that attack: only our own errors come out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core.errors import SecurityError, SerializeError
from pyroxfer_core.serializers import SerializerContext, make_serializer

SAFE = ("serpent", "json", "marshal", "msgpack")
CONTEXTS = [SerializerContext(48), SerializerContext(502), SerializerContext(502, own=True)]


def try_both(name: str, context: SerializerContext, body: bytes) -> None:
    one = make_serializer(name, context)
    for read in (one.loads, one.loads_call):
        try:
            read(body)
        except (SerializeError, SecurityError):
            pass


@given(st.binary(max_size=200), st.sampled_from(CONTEXTS))
@pytest.mark.parametrize("name", SAFE)
def test_arbitrary_bytes(name: str, body: bytes, context: SerializerContext) -> None:
    try_both(name, context, body)


MEAN: dict[str, Any] = {
    "__class__": "builtins.ValueError",
    "__exception__": True,
    "args": (1,),
    "attributes": {"a": [1.5, "x", None, {"k": (1, 2)}]},
}


@given(st.data(), st.sampled_from(CONTEXTS))
@pytest.mark.parametrize("name", SAFE)
def test_flipped_and_cut_bodies(name: str, data: st.DataObject, context: SerializerContext) -> None:
    body = bytearray(make_serializer(name, context).dumps_call("object", "method", (MEAN, 2**70), {"k": [b"x"] * 0}))
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try_both(name, context, bytes(body[: data.draw(st.integers(0, len(body)))]))


@given(
    st.text(max_size=20) | st.sampled_from(["Pyro5.core.URI", "Pyro4.core.Proxy", "Pyro5.core._ExceptionWrapper"]),
    st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=8),
    st.booleans(),
)
@pytest.mark.parametrize("name", SAFE)
def test_class_dicts_of_any_shape(name: str, classname: str, junk: Any, is_exception: bool) -> None:
    one = make_serializer(name, SerializerContext(502))
    data = {"__class__": classname, "__exception__": is_exception, "args": junk, "state": junk, "exception": junk}
    try_both(name, one.context, bytes(one.dumps(data)))
    try_both(name, one.context, bytes(one.dumps({**data, "args": [], "attributes": junk})))


DEEP = 100_000
BOMBS = {
    "serpent": [b"[" * DEEP, b"-" * DEEP + b"1", b"(" * DEEP + b")" * DEEP, b"1+" * DEEP + b"1j", b"{1:" * DEEP],
    "json": [b"[" * DEEP, b'{"a":' * DEEP, b"[" * DEEP + b"]" * DEEP, b"1" * 100_000],
    "marshal": [b"[\x01\0\0\0" * DEEP, b"(\xff\xff\xff\x7f"],
    "msgpack": [
        b"\x91" * DEEP,
        b"\x81\xa1a" * DEEP,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ],
}


@pytest.mark.parametrize(("name", "body"), [(name, body) for name, bodies in BOMBS.items() for body in bodies])
@pytest.mark.parametrize("context", CONTEXTS, ids=["48", "502", "own"])
def test_bombs(name: str, body: bytes, context: SerializerContext) -> None:
    with pytest.raises(SerializeError):
        make_serializer(name, context).loads(body)


def test_extensions_nested_in_extensions_are_bounded() -> None:
    """Each level is a call of the C reader; without a bound this ends the process."""
    body = b"\x90"
    for _ in range(3000):
        body = b"\xc9" + len(body).to_bytes(4, "big") + b"\x40" + body
        body = b"\x91" + body
    with pytest.raises(SerializeError):
        make_serializer("msgpack", SerializerContext(502, own=True)).loads(body)


def test_tuples_nested_too_deeply_are_refused_by_the_sender() -> None:
    value: Any = ()
    for _ in range(40):
        value = (value,)
    with pytest.raises(SerializeError, match="nested deeper"):
        make_serializer("msgpack", SerializerContext(502, own=True)).dumps(value)


@pytest.mark.parametrize("body", [b"\x81\x90\x01", b"\xc7\x02\x41\x91\x90"], ids=["list as key", "list in a set"])
def test_members_that_cannot_be_hashed(body: bytes) -> None:
    with pytest.raises(SerializeError):
        make_serializer("msgpack", SerializerContext(502, own=True)).loads(body)


def test_private_extensions_are_unknown_to_stock_connections() -> None:
    with pytest.raises(SerializeError, match="extension type 64"):
        make_serializer("msgpack", SerializerContext(502)).loads(b"\xc7\x01\x40\x90")


@pytest.mark.parametrize("name", SAFE)
@pytest.mark.parametrize("own", [False, True])
def test_endless_values_are_refused_when_writing(name: str, own: bool) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(SerializeError):
        make_serializer(name, SerializerContext(502, own=own)).dumps(endless)


def test_serpent_refuses_nul() -> None:
    with pytest.raises(SerializeError, match="NUL"):
        make_serializer("serpent", SerializerContext(502)).loads(b"'a\0b'")


@pytest.mark.parametrize(
    "parts",
    [
        ("object", "method", ()),
        (1, "method", (), {}),
        ("object", None, (), {}),
        ("object", "method", "args", {}),
        ("object", "method", (), [1]),
        ("object", "method", (), []),
        ("object", "method", (), {1: 2}),
        {"object": 1},
        None,
    ],
)
def test_calls_of_another_shape(parts: Any) -> None:
    for name in ("serpent", "marshal", "msgpack"):
        one = make_serializer(name, SerializerContext(502))
        with pytest.raises(SerializeError, match="malformed call"):
            one.loads_call(one.dumps(parts))


def test_a_json_call_needs_its_four_keys() -> None:
    with pytest.raises(SerializeError, match="malformed call"):
        make_serializer("json", SerializerContext(502)).loads_call(b'{"object": "o", "method": "m", "params": []}')


@pytest.mark.parametrize("name", ["pickle", "dill", "cloudpickle"])
def test_the_pickle_family_is_off(name: str) -> None:
    with pytest.raises(SerializeError, match="off"):
        make_serializer(name, SerializerContext(48))


def test_unknown_serializers_are_refused() -> None:
    with pytest.raises(SerializeError, match="unknown serializer 'unknown-42'"):
        make_serializer("unknown-42", SerializerContext(48))
