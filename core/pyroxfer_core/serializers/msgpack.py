"""msgpack: Pyro's form towards stock peers; between our own peers a form in which every value keeps its type."""

from __future__ import annotations

import array
import datetime
import decimal
import struct
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import msgpack

from ..errors import SerializeError
from ..wire.message import Body
from .base import Arguments, Serializer, SerializerContext
from .classes import CLASS_MARK
from .json import array_to_plain

_LARGE: Final = 1 << 20
"""A packer keeps the memory of its largest result, in bytes; above this size another one takes its place."""

_MAX_NESTED: Final = 32
"""Tuples and sets inside each other. Each level of reading takes some 50 KiB of the C stack."""

# Extension types of Pyro. Doubles are little-endian, as on every machine Pyro is met on.
_PYRO_COMPLEX, _PYRO_BIGINT, _PYRO_DATETIME, _PYRO_DATE = 0x30, 0x31, 0x32, 0x33
# Extension types of our own, big-endian.
_TUPLE, _SET, _FROZENSET, _BYTEARRAY, _BIGINT, _COMPLEX = 0x40, 0x41, 0x42, 0x43, 0x44, 0x45
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = 0x46, 0x47, 0x48, 0x49, 0x4A, 0x4B

_COMPLEX_FORMAT: Final = struct.Struct(">dd")
_TIMEDELTA_FORMAT: Final = struct.Struct(">iII")
_CONTAINERS: Final = frozenset({list, dict, tuple})
_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
"""Types that msgpack has itself."""
_MEANT: Final = _CONTAINERS | {bytearray}


class _PlainPacker:
    """Packs builtin types without ever calling Python code, so that no other thread can come in between.

    One for the whole process: its buffer is kept between uses. Anything but plain exact types is a TypeError, an
    integer beyond 64 bits an OverflowError.
    """

    def __init__(self) -> None:
        self._pack = msgpack.Packer(use_bin_type=True, strict_types=True).pack

    def pack(self, value: Any) -> bytes:
        body: bytes = self._pack(value)
        if len(body) > _LARGE:
            self._pack = msgpack.Packer(use_bin_type=True, strict_types=True).pack
        return body


_PLAIN: Final = _PlainPacker()


class _StockForm:
    """Values as Pyro writes them: tuples and sets become arrays, numbers and dates its four extension types."""

    def __init__(self, to_dict: Callable[[Any], dict[str, Any]]) -> None:
        self._to_dict = to_dict

    def pack(self, value: Any) -> bytes:
        try:
            return _PLAIN.pack(value)
        except (TypeError, OverflowError, ValueError):
            packed: bytes = msgpack.packb(value, use_bin_type=True, default=self._default)
            return packed

    def pack_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> bytes:
        return self.pack([object_id, method, list(args), kwargs])

    def _default(self, value: Any) -> Any:
        write = _STOCK_WRITERS.get(type(value))
        return write(value) if write is not None else self._to_dict(value)

    def unpack_extension(self, code: int, data: bytes) -> Any:
        read = _STOCK_READERS.get(code)
        if read is None:
            raise SerializeError(f"msgpack cannot read extension type {code}")
        return read(data)


def _write_stock_datetime(value: datetime.datetime) -> msgpack.ExtType:
    if value.tzinfo is not None:
        raise SerializeError("msgpack cannot serialize a datetime with a time zone for Pyro; send its isoformat()")
    return msgpack.ExtType(_PYRO_DATETIME, struct.pack("<d", value.timestamp()))


def _read_stock_date(data: bytes) -> datetime.date:
    """The ordinal is a C long: 8 bytes, or 4 from Windows."""
    return datetime.date.fromordinal(struct.unpack("<i" if len(data) == 4 else "<q", data)[0])


_STOCK_WRITERS: Final[dict[type, Callable[[Any], Any]]] = {
    set: tuple,
    int: lambda value: msgpack.ExtType(_PYRO_BIGINT, str(value).encode("ascii")),
    complex: lambda value: msgpack.ExtType(_PYRO_COMPLEX, struct.pack("<dd", value.real, value.imag)),
    datetime.datetime: _write_stock_datetime,
    datetime.date: lambda value: msgpack.ExtType(_PYRO_DATE, struct.pack("<q", value.toordinal())),
    decimal.Decimal: str,
    uuid.UUID: str,
    array.array: array_to_plain,
}
_STOCK_READERS: Final[dict[int, Callable[[bytes], Any]]] = {
    _PYRO_COMPLEX: lambda data: complex(*struct.unpack("<dd", data)),
    _PYRO_BIGINT: int,
    _PYRO_DATETIME: lambda data: datetime.datetime.fromtimestamp(struct.unpack("<d", data)[0]),
    _PYRO_DATE: _read_stock_date,
}


class _OwnForm:
    """Values with their types: what msgpack lacks travels as an extension; containers are packed inside it."""

    def __init__(self, to_dict: Callable[[Any], dict[str, Any]], revive: Callable[[Any], Any]) -> None:
        self._to_dict = to_dict
        self._revive = revive
        self.unpack_extension = partial(self._unpack_extension, 0)

    def pack(self, value: Any) -> bytes:
        if type(value) in _MEANT and _holds_bytearray((value,)):
            value = _mark_bytearrays(value)
        try:
            return _PLAIN.pack(value)
        except (TypeError, OverflowError, ValueError):
            return self._pack_nested(value, 0)

    def pack_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> bytes:
        values = list(args)
        if _holds_bytearray(values) or (kwargs and _holds_bytearray(kwargs.values())):
            values, kwargs = _mark_bytearrays(values), _mark_bytearrays(kwargs)
        try:
            return _PLAIN.pack([object_id, method, values, kwargs])
        except (TypeError, OverflowError, ValueError):
            return self._pack_nested([object_id, method, values, kwargs], 0)

    def _pack_nested(self, value: Any, depth: int) -> bytes:
        _check_depth(depth)
        default = partial(self._default, depth)
        packed: bytes = msgpack.packb(value, use_bin_type=True, strict_types=True, default=default)
        return packed

    def _default(self, depth: int, value: Any) -> Any:
        kind = type(value)
        write = _OWN_WRITERS.get(kind)
        if write is not None:
            return write(value)
        code = _NESTED.get(kind)
        if code is not None:
            return msgpack.ExtType(code, self._pack_nested(list(value), depth + 1))
        for base, plain in _BASES.items():
            if isinstance(value, base):
                return self._as_builtin(depth, plain(value))
        return _mark_bytearrays(self._to_dict(value))

    def _as_builtin(self, depth: int, value: Any) -> Any:
        """The packer asks once for each value, so what it cannot take must be an extension already."""
        kind = type(value)
        return self._default(depth, value) if kind in _OWN_WRITERS or kind in _NESTED else value

    def _unpack_extension(self, depth: int, code: int, data: bytes) -> Any:
        read = _OWN_READERS.get(code)
        if read is not None:
            return read(data)
        if code not in _NESTED_CODES:
            raise SerializeError(f"msgpack cannot read extension type {code}")
        members = self._unpack_nested(data, depth + 1)
        if code == _TUPLE:
            return tuple(members)
        # Members of a set are made alive at once: the dict that stands for an object cannot be a member.
        return (set if code == _SET else frozenset)(map(self._revive, members))

    def _unpack_nested(self, data: bytes, depth: int) -> list[Any]:
        _check_depth(depth)
        hook = partial(self._unpack_extension, depth)
        members = msgpack.unpackb(data, raw=False, strict_map_key=False, ext_hook=hook)
        if not isinstance(members, list):
            raise SerializeError("msgpack cannot read this value: members were expected in a tuple or set")
        return members


def _check_depth(depth: int) -> None:
    if depth > _MAX_NESTED:
        raise SerializeError(f"msgpack: tuples and sets are nested deeper than {_MAX_NESTED}")


def _holds_bytearray(values: Iterable[Any]) -> bool:
    """Whether a bytearray is somewhere in ``values``. The packer takes one for bytes, so it must be known before."""
    kinds = set(map(type, values))
    if kinds.isdisjoint(_MEANT):
        return False
    if bytearray in kinds:
        return True
    for value in values:
        kind = type(value)
        if kind in _CONTAINERS and _holds_bytearray(value.values() if kind is dict else value):
            return True
    return False


def _mark_bytearrays(value: Any) -> Any:
    """A copy of the containers of ``value`` in which every bytearray is an extension."""
    kind = type(value)
    if kind is bytearray:
        return msgpack.ExtType(_BYTEARRAY, bytes(value))
    if kind is dict:
        return {key: _mark_bytearrays(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind(map(_mark_bytearrays, value))
    return value


def _write_bigint(value: int) -> msgpack.ExtType:
    return msgpack.ExtType(_BIGINT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _write_timedelta(value: datetime.timedelta) -> msgpack.ExtType:
    return msgpack.ExtType(_TIMEDELTA, _TIMEDELTA_FORMAT.pack(value.days, value.seconds, value.microseconds))


def _read_timedelta(data: bytes) -> datetime.timedelta:
    days, seconds, microseconds = _TIMEDELTA_FORMAT.unpack(data)
    return datetime.timedelta(days, seconds, microseconds)


def _text_writer(code: int, text: Callable[[Any], str]) -> Callable[[Any], msgpack.ExtType]:
    return lambda value: msgpack.ExtType(code, text(value).encode("ascii"))


def _text_reader(parse: Callable[[str], Any]) -> Callable[[bytes], Any]:
    return lambda data: parse(str(data, "ascii"))


_NESTED: Final[dict[type, int]] = {tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_NESTED_CODES: Final = frozenset(_NESTED.values())
_BASES: Final[dict[type, Callable[[Any], Any]]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes,
    bytearray: lambda value: msgpack.ExtType(_BYTEARRAY, bytes(value)),
    dict: lambda value: _mark_bytearrays(dict(value)),
    list: lambda value: _mark_bytearrays(list(value)),
    tuple: lambda value: _mark_bytearrays(tuple(value)),
    set: set,
    frozenset: frozenset,
}
"""Subclasses of builtin types travel as the builtin: the peer need not know them."""
_OWN_WRITERS: Final[dict[type, Callable[[Any], Any]]] = {
    int: _write_bigint,
    complex: lambda value: msgpack.ExtType(_COMPLEX, _COMPLEX_FORMAT.pack(value.real, value.imag)),
    datetime.datetime: _text_writer(_DATETIME, datetime.datetime.isoformat),
    datetime.date: _text_writer(_DATE, datetime.date.isoformat),
    datetime.time: _text_writer(_TIME, datetime.time.isoformat),
    datetime.timedelta: _write_timedelta,
    decimal.Decimal: _text_writer(_DECIMAL, str),
    uuid.UUID: lambda value: msgpack.ExtType(_UUID, value.bytes),
    array.array: array_to_plain,
}
_OWN_READERS: Final[dict[int, Callable[[bytes], Any]]] = {
    **_STOCK_READERS,
    _BYTEARRAY: bytearray,
    _BIGINT: lambda data: int.from_bytes(data, "big", signed=True),
    _COMPLEX: lambda data: complex(*_COMPLEX_FORMAT.unpack(data)),
    _DATETIME: _text_reader(datetime.datetime.fromisoformat),
    _DATE: _text_reader(datetime.date.fromisoformat),
    _TIME: _text_reader(datetime.time.fromisoformat),
    _TIMEDELTA: _read_timedelta,
    _DECIMAL: _text_reader(decimal.Decimal),
    _UUID: lambda data: uuid.UUID(bytes=data),
}


class MsgpackSerializer(Serializer):
    """msgpack; a call is an array of four. The peer decides which of the two forms is written."""

    name = "msgpack"

    def __init__(self, context: SerializerContext) -> None:
        super().__init__(context)
        to_dict = self._classes.to_dict
        form = _OwnForm(to_dict, self._classes.revive) if context.own else _StockForm(to_dict)
        self._form: _OwnForm | _StockForm = form
        self._unpack_extension = form.unpack_extension

    def dumps_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> bytes:
        """The body of a call. Plain arguments are written alike in both forms, and at once."""
        if not kwargs and _SCALARS.issuperset(map(type, args)):
            try:
                return _PLAIN.pack([object_id, method, list(args), kwargs])
            except (OverflowError, ValueError):  # a large integer
                pass
        return super().dumps_call(object_id, method, args, kwargs)

    def _write_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> bytes:
        return self._form.pack_call(object_id, method, args, kwargs)

    def _write(self, value: Any) -> bytes:
        return self._form.pack(value)

    def _read(self, body: Body) -> Any:
        value = msgpack.unpackb(body, raw=False, strict_map_key=False, ext_hook=self._unpack_extension)
        return value if type(body) is bytes and CLASS_MARK not in body else self._revive(body, value)

    _read_call = _read
