"""The type matrix towards stock peers, and the lossless form between our own."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import math
import threading
import uuid
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyroxfer_core.errors import SerializeError
from pyroxfer_core.serializers import Serializer, SerializerContext, make_serializer

SAFE = ("serpent", "json", "marshal", "msgpack")
ERROR = object()
"""Stands in the table for: cannot be written."""
UUID = uuid.UUID(int=1)
MOMENT = datetime.datetime(2020, 1, 2, 3, 4, 5, 6)
BASE64 = {"data": "YWI=", "encoding": "base64"}


class Point(NamedTuple):
    x: int
    y: int


class Color(enum.Enum):
    RED = 7


def serializer(name: str, version: int = 502, own: bool = False) -> Serializer:
    return make_serializer(name, SerializerContext(version, own=own))


def text_array(text: str) -> array.array[str]:
    """The type code is on its way out of Python, which says so from 3.13 on; peers still send such arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return array.array("u", text)


# value, then what arrives with serpent, json, marshal, msgpack
MATRIX: list[tuple[Any, Any, Any, Any, Any]] = [
    (None, None, None, None, None),
    (True, True, True, True, True),
    (2**70, 2**70, 2**70, 2**70, 2**70),
    (-(2**63) - 1, -(2**63) - 1, -(2**63) - 1, -(2**63) - 1, -(2**63) - 1),
    ("€\n'", "€\n'", "€\n'", "€\n'", "€\n'"),
    (0.1, 0.1, 0.1, 0.1, 0.1),
    (math.inf, math.inf, math.inf, math.inf, math.inf),
    (-math.inf, -math.inf, -math.inf, -math.inf, -math.inf),
    (1 + 2j, 1 + 2j, ERROR, 1 + 2j, 1 + 2j),
    (b"ab", BASE64, ERROR, b"ab", b"ab"),
    (bytearray(b"ab"), BASE64, ERROR, b"ab", b"ab"),
    (memoryview(b"ab"), BASE64, ERROR, ERROR, b"ab"),
    ((1, "x"), (1, "x"), [1, "x"], (1, "x"), [1, "x"]),
    ((1,), (1,), [1], (1,), [1]),
    ({1}, {1}, [1], {1}, [1]),
    (set(), (), [], set(), []),
    (frozenset({1}), {1}, ERROR, frozenset({1}), ERROR),
    ({1: 2}, {1: 2}, {"1": 2}, {1: 2}, {1: 2}),
    ({(1, 2): 3}, {(1, 2): 3}, ERROR, {(1, 2): 3}, ERROR),
    (decimal.Decimal("1.20"), "1.20", "1.20", ERROR, "1.20"),
    (UUID, str(UUID), str(UUID), str(UUID), str(UUID)),
    (MOMENT, MOMENT.isoformat(), MOMENT.isoformat(), ERROR, MOMENT),
    (MOMENT.replace(tzinfo=datetime.UTC), "2020-01-02T03:04:05.000006+00:00", "2020-01-02T03:04:05.000006+00:00",
     ERROR, ERROR),
    (MOMENT.date(), "2020-01-02", "2020-01-02", ERROR, MOMENT.date()),
    (MOMENT.time(), "03:04:05.000006", ERROR, ERROR, ERROR),
    (datetime.timedelta(seconds=90), 90.0, ERROR, ERROR, ERROR),
    (array.array("i", [1, 2]), [1, 2], [1, 2], [1, 2], [1, 2]),
    (text_array("ab"), "ab", "ab", "ab", "ab"),
    (collections.deque([1]), [1], ERROR, ERROR, ERROR),
    (collections.OrderedDict(a=1), ERROR, {"a": 1}, ERROR, {"a": 1}),
    (collections.Counter("a"), {"a": 1}, {"a": 1}, ERROR, {"a": 1}),
    (Point(1, 2), (1, 2), [1, 2], ERROR, [1, 2]),
    (Color.RED, 7, ERROR, ERROR, ERROR),
    ({1: 2}.keys(), [1], ERROR, ERROR, ERROR),
    (range(3), ERROR, ERROR, ERROR, ERROR),
    (..., ERROR, ERROR, ERROR, ERROR),
    ((item for item in "ab"), ERROR, ERROR, ERROR, ERROR),
    (len, ERROR, ERROR, ERROR, ERROR),
    (Point, ERROR, ERROR, ERROR, ERROR),
    (math, ERROR, ERROR, ERROR, ERROR),
]  # fmt: skip
CELLS = [
    pytest.param(name, version, row[0], row[1 + column], id=f"{name}-{version}-{type(row[0]).__name__}-{number}")
    for number, row in enumerate(MATRIX)
    for column, name in enumerate(SAFE)
    for version in (48, 502)
]


@pytest.mark.parametrize(("name", "version", "value", "expected"), CELLS)
def test_stock_matrix(name: str, version: int, value: Any, expected: Any) -> None:
    one = serializer(name, version)
    if expected is ERROR:
        with pytest.raises(SerializeError):
            one.loads(one.dumps(value))
        return
    arrived = one.loads(one.dumps(value))
    assert arrived == expected
    assert type(arrived) is type(expected)


@pytest.mark.parametrize("name", SAFE)
def test_not_a_number(name: str) -> None:
    one = serializer(name)
    assert math.isnan(one.loads(one.dumps([float("nan")]))[0])


def test_serpent_writes_infinity_nan_and_the_empty_set_as_stock_does() -> None:
    values = [math.nan, math.inf, -math.inf, set(), (1,)]
    text = b"# serpent utf-8 python3.2\n[{'__class__':'float','value':'nan'},1e30000,-1e30000,(),(1,)]"
    assert serializer("serpent").dumps(values) == text


def test_a_surrogate_survives_serpent_and_is_refused_where_it_cannot_travel() -> None:
    assert serializer("serpent").loads(serializer("serpent").dumps("\ud800")) == "\ud800"
    for name in ("json", "msgpack"):
        with pytest.raises(SerializeError):
            serializer(name).dumps("\ud800")
    own = serializer("msgpack", own=True)
    call = ("object", "method", ["\udcff", {"\udcff": ("\udcff",)}], {"k": "\udcff"})
    assert own.loads_call(own.dumps_call(*call)) == call
    assert own.loads(own.dumps("\udcff")) == "\udcff"
    assert own.loads(own.dumps({"\udcff"})) == {"\udcff"}


def test_dates_of_windows_peers_have_four_bytes() -> None:
    body = b"\xd6\x33" + MOMENT.toordinal().to_bytes(4, "little")
    assert serializer("msgpack").loads(body) == MOMENT.date()


@pytest.mark.parametrize("name", SAFE)
def test_what_cannot_be_written_is_named(name: str) -> None:
    one = serializer(name)
    with pytest.raises(SerializeError, match="range"):
        one.dumps(range(3))


class Matrix:
    """Stands for a numpy array: what counts is the module its class comes from."""


Matrix.__module__ = "numpy"


@pytest.mark.parametrize("name", SAFE)
@pytest.mark.parametrize("own", [False, True])
def test_numpy_arrays_are_refused_with_the_way_out(name: str, own: bool) -> None:
    one = serializer(name, own=own)
    with pytest.raises(SerializeError, match=r"numpy\.Matrix.*\.tolist\(\)"):
        one.dumps_call("object", "method", [Matrix()], {})


def scalars() -> st.SearchStrategy[Any]:
    text = st.text(st.characters(exclude_categories=["Cs"]))
    return st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), text)


def jsonlike() -> st.SearchStrategy[Any]:
    keys = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda key: key != "__class__")
    return st.recursive(
        scalars(), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
    )


def hashables() -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        scalars(),
        st.binary(),
        st.complex_numbers(allow_nan=False),
        st.dates(),
        st.datetimes(timezones=st.just(datetime.UTC) | st.none()),
        st.times(),
        st.timedeltas(),
        st.decimals(allow_nan=False),
        st.uuids(),
    )
    return st.recursive(
        leaves, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=6
    )


def everything() -> st.SearchStrategy[Any]:
    def extend(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        keys = scalars().filter(lambda key: key != "__class__")
        return st.one_of(
            st.lists(inner, max_size=3),
            st.tuples(inner, inner),
            st.sets(hashables(), max_size=3),
            st.dictionaries(keys, inner, max_size=3),
        )

    return st.recursive(hashables() | st.binary().map(bytearray), extend, max_leaves=12)


def same(left: Any, right: Any) -> bool:
    """Equal in value and in type, all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(jsonlike())
@pytest.mark.parametrize("name", SAFE)
@pytest.mark.parametrize("own", [False, True])
def test_plain_values_come_back(name: str, own: bool, value: Any) -> None:
    one = serializer(name, own=own)
    assert one.loads(one.dumps(value)) == value
    _, _, args, kwargs = one.loads_call(one.dumps_call("object", "method", (value,), {"k": value}))
    assert (list(args), kwargs) == ([value], {"k": value})


@given(everything())
def test_every_value_keeps_its_type_between_own_peers(value: Any) -> None:
    one = serializer("msgpack", own=True)
    assert same(one.loads(one.dumps(value)), value)
    args = one.loads_call(one.dumps_call("object", "method", (value,), {}))[2]
    assert same(args[0], value)


def test_bytes_stay_bytes_with_serpent_between_own_peers() -> None:
    one = serializer("serpent", own=True)
    assert one.loads(one.dumps([b"a\xff", bytearray(b"x")])) == [b"a\xff", b"x"]


def test_subclasses_of_builtin_types_arrive_as_the_builtin_between_own_peers() -> None:
    one = serializer("msgpack", own=True)
    number = enum.IntEnum("number", {"SMALL": 1, "BIG": 2**70})
    values = [Point(1, 2), collections.OrderedDict(a=bytearray(b"x")), collections.Counter("a"), *number]
    arrived = one.loads(one.dumps(values))
    assert arrived == [(1, 2), {"a": bytearray(b"x")}, {"a": 1}, 1, 2**70]
    assert list(map(type, arrived)) == [tuple, dict, dict, int, int]


def test_what_pyro_writes_as_something_simpler_by_default_is_written_so_between_own_peers() -> None:
    one = serializer("msgpack", own=True)
    values = [Color.RED, collections.deque([1, (2,)]), {1: 2}.keys(), {1: 2}.values(), {"a": (1,)}.items()]
    assert one.loads(one.dumps(values)) == [Color.RED.value, [1, (2,)], [1], [2], [("a", (1,))]]


class Number(enum.IntEnum):
    ONE = 1


class Text(str):
    def __repr__(self) -> str:
        return "as nobody can read it"


@pytest.mark.parametrize("name", SAFE)
@pytest.mark.parametrize("own", [False, True])
def test_scalars_of_other_classes_travel_as_the_builtin(name: str, own: bool) -> None:
    one = serializer(name, own=own)
    values: list[Any] = [np.float64(0.1), Text("text"), np.str_("text"), Number.ONE]
    for value, plain in zip(values, [0.1, "text", "text", 1], strict=True):
        (arrived,) = one.loads_call(one.dumps_call("object", "method", (value,), {}))[2]
        assert (type(arrived), arrived) == (type(plain), plain)
        arrived = one.loads(one.dumps(value))
        assert (type(arrived), arrived) == (type(plain), plain)


@pytest.mark.parametrize("value", [[np.float64(1)], {"k": [np.str_("a")]}, {np.float64(1): 1}, {np.float64(1)}])
def test_numbers_of_numpy_in_containers_are_not_taken_for_bytes_by_marshal(value: Any) -> None:
    with pytest.raises(SerializeError, match=r"numpy\.(float64|str_); .*\.tolist\(\)"):
        serializer("marshal").dumps(value)


def test_one_serializer_serves_many_threads() -> None:
    one = serializer("msgpack", own=True)
    wrong: list[Any] = []

    def work(number: int) -> None:
        value = [number, (number,), {"k": str(number) * 50}, {number}]
        for _ in range(300):
            if one.loads(one.dumps(value)) != value:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
