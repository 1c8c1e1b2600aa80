"""msgpack: Pyro's form towards stock peers; between our own peers a form in which every value keeps its type."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import itertools
import operator
import struct
import uuid
from collections.abc import AsyncIterator, Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from functools import lru_cache, partial
from typing import Any, Final

import msgpack

from ..errors import SerializeError
from ..uri import USUAL_LENGTH, Uri
from ..wire.message import Body
from ..wire.scattered import Scattered, joined
from .arrays import ARRAY, is_array, read_array, write_array
from .base import Arguments, Call, Serializer, SerializerContext, StreamArgumentError, check_call
from .classes import CLASS_MARK, ClassCodec
from .json import array_to_plain
from .outofband import LARGE, MAX_PARTS, NO_PARTS, PART, Parts, PartWriter, has_parts, is_large, split
from .scalars import BASES
from .vocabulary import PYRO5

_LARGE: Final = 1 << 20
"""A packer keeps the memory of its largest result, in bytes; above this size another one takes its place."""

_SURROGATES: Final = "surrogatepass"
"""Names of files may hold lone surrogates. They are written for peers of ours only."""
_MAX_NESTED: Final = 32
"""Tuples and sets inside each other. Each level of reading takes some 50 KiB of the C stack."""

# Extension types of Pyro. Doubles are little-endian, as on every machine Pyro is met on.
_PYRO_COMPLEX, _PYRO_BIGINT, _PYRO_DATETIME, _PYRO_DATE = 0x30, 0x31, 0x32, 0x33
# Extension types of our own, big-endian.
_TUPLE, _SET, _FROZENSET, _BYTEARRAY, _BIGINT, _COMPLEX = 0x40, 0x41, 0x42, 0x43, 0x44, 0x45
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = 0x46, 0x47, 0x48, 0x49, 0x4A, 0x4B

_STREAM: Final = 0x4E
_URI_BODY: Final[bytes] = b"\x82" + msgpack.packb({"__class__": PYRO5.uri})[1:]
"""How the body of a URI begins: a class, and one thing more."""

_COMPLEX_FORMAT: Final = struct.Struct(">dd")
_TIMEDELTA_FORMAT: Final = struct.Struct(">iII")
_CONTAINERS: Final = frozenset({list, dict, tuple})
_TEXT_AND_NUMBERS: Final = frozenset({type(None), bool, int, float, str})
_SCALARS: Final = _TEXT_AND_NUMBERS | {bytes}
"""Types that msgpack has itself."""
_RAW: Final = frozenset({bytes, bytearray, memoryview})
_MEANT: Final = _CONTAINERS | _RAW
"""Types that may have to be written in another way than msgpack's own, or hold such values."""


class _PlainPacker:
    """Packs builtin types. One for the whole process, as the packers in it keep their buffers between uses.

    A packer that refuses a value makes an error first and forgets what it has written then. Making one may run the
    garbage collector, and that other threads, or code of this one that packs too: so nobody else has it meanwhile.

    Anything but plain exact types is a TypeError, an integer beyond 64 bits an OverflowError.
    """

    def __init__(self) -> None:
        self._free: list[Callable[[Any], bytes]] = []

    def pack(self, value: Any) -> bytes:
        free = self._free
        try:
            pack = free.pop()
        except IndexError:
            pack = msgpack.Packer(use_bin_type=True, strict_types=True).pack
        body = pack(value)
        if len(body) <= _LARGE:
            free.append(pack)
        return body


_PLAIN: Final = _PlainPacker()
_TINY: Final = frozenset({type(None), bool, int, float})
_pack_tiny: Final = msgpack.Packer(strict_types=True).pack
"""One for all: what it refuses it has not begun to write."""
unpackb: Final = msgpack.unpackb
"""The packer and the reader of what is in most messages, without a search by name."""


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
    """Values with their types: what msgpack lacks travels as an extension; containers are packed inside it.

    Args:
        context: tells whether large values travel behind the body, and what becomes of iterators.
    """

    def __init__(self, classes: ClassCodec, context: SerializerContext) -> None:
        self._context = context
        self._classes = classes
        self._revive = classes.revive
        self._out_of_band = context.out_of_band
        self.unpack_extension = partial(self._unpack_extension, NO_PARTS, 0)

    def pack(self, value: Any) -> Body:
        marked = type(value) in _MEANT and _holds_marked((value,))
        if not marked:
            try:
                return _PLAIN.pack(value)
            except (TypeError, OverflowError, ValueError):
                pass
        return self._pack_thoroughly(value, snapshot=True, marked=marked)

    def pack_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> Body:
        values = list(args)
        call = [object_id, method, values, kwargs]
        marked = _holds_marked(values) or bool(kwargs and _holds_marked(kwargs.values()))
        if not marked:
            try:
                return _PLAIN.pack(call)
            except (TypeError, OverflowError, ValueError):
                pass
        return self._pack_thoroughly(call, snapshot=False, marked=marked)

    def _pack_thoroughly(self, value: Any, *, snapshot: bool, marked: bool) -> Body:
        """Pack a value that is not plain; ``marked``: some of it must be replaced before the packer sees it."""
        parts = PartWriter(snapshot=snapshot, room=MAX_PARTS if self._out_of_band else 0)
        return parts.body(self._pack_nested(_mark(value, parts) if marked else value, parts, 0))

    def _pack_nested(self, value: Any, parts: PartWriter, depth: int) -> bytes:
        _check_depth(depth)
        default = partial(self._default, parts, depth)
        packed: bytes = msgpack.packb(
            value, use_bin_type=True, strict_types=True, default=default, unicode_errors=_SURROGATES
        )
        return packed

    def _default(self, parts: PartWriter, depth: int, value: Any) -> Any:
        kind = type(value)
        write = _OWN_WRITERS.get(kind)
        if write is not None:
            return write(value)
        code = _NESTED.get(kind)
        if code is not None:
            return msgpack.ExtType(code, self._pack_nested(list(value), parts, depth + 1))
        if kind is Uri and (uri := self._classes.plain_uri(value)) is not None:
            return uri
        for base, plain in _BASES.items():
            if isinstance(value, base):
                return self._as_builtin(parts, depth, plain(value))
        known = self._classes.known_to_dict(value)
        if known is None:
            if isinstance(value, enum.Enum):
                return self._as_builtin(parts, depth, value.value)
            if isinstance(value, _LISTED):
                return self._as_builtin(parts, depth, list(value))
            if self._out_of_band and is_array(value):
                return write_array(value, parts)
            if self._context.streams and isinstance(value, (AsyncIterator, Iterator)):
                return self._write_stream(value)
            known = self._classes.state_to_dict(value)
        return _mark(known, parts)

    def _write_stream(self, iterator: Any) -> msgpack.ExtType:
        add = self._context.stream_writer
        if add is None:
            raise StreamArgumentError(f"an iterator ({type(iterator).__name__}) is no value; send a list")
        return msgpack.ExtType(_STREAM, add(iterator).to_bytes(2, "big"))

    def _read_stream(self, data: bytes) -> Any:
        make = self._context.stream_reader
        if make is None or len(data) != 2:
            raise SerializeError("msgpack: a stream can only be an argument of a call to a daemon")
        return make(int.from_bytes(data, "big"))

    def _as_builtin(self, parts: PartWriter, depth: int, value: Any) -> Any:
        """The packer asks once for each value, so what it cannot take must be an extension already."""
        kind = type(value)
        if kind in _OWN_WRITERS or kind in _NESTED:
            return self._default(parts, depth, _mark(value, parts))
        return _mark(value, parts)

    def unpack_large(self, body: Body) -> tuple[Any, Body]:
        """The value of a body that came in pieces or has parts behind it, and the msgpack body alone."""
        packed, parts = split(body) if has_parts(body) else (joined(body), NO_PARTS)
        hook = partial(self._unpack_extension, parts, 0)
        value = msgpack.unpackb(packed, raw=False, strict_map_key=False, unicode_errors=_SURROGATES, ext_hook=hook)
        parts.finish()
        return value, packed

    def _unpack_extension(self, parts: Parts, depth: int, code: int, data: bytes) -> Any:
        read = _OWN_READERS.get(code)
        if read is not None:
            return read(data)
        if code == PART:
            return parts.read(data)
        if code == ARRAY and self._out_of_band:
            return read_array(data, parts)
        if code == _STREAM:
            return self._read_stream(data)
        if code not in _NESTED_CODES:
            raise SerializeError(f"msgpack cannot read extension type {code}")
        members = self._unpack_nested(data, parts, depth + 1)
        if code == _TUPLE:
            return tuple(members)
        # Members of a set are made alive at once: the dict that stands for an object cannot be a member.
        return (set if code == _SET else frozenset)(map(self._revive, members))

    def _unpack_nested(self, data: bytes, parts: Parts, depth: int) -> list[Any]:
        _check_depth(depth)
        hook = partial(self._unpack_extension, parts, depth)
        members = msgpack.unpackb(data, raw=False, strict_map_key=False, unicode_errors=_SURROGATES, ext_hook=hook)
        if not isinstance(members, list):
            raise SerializeError("msgpack cannot read this value: members were expected in a tuple or set")
        return members


@lru_cache(maxsize=1024)
def _uri_of(body: bytes) -> Uri | None:
    """The URI of a body that begins as one does; None if there is more to it, or something wrong with it."""
    try:
        return Uri.from_state(msgpack.unpackb(body)["state"])
    except Exception:  # who reads it as any other value finds out what it is
        return None


def _check_depth(depth: int) -> None:
    if depth > _MAX_NESTED:
        raise SerializeError(f"msgpack: tuples and sets are nested deeper than {_MAX_NESTED}")


_arguments, _keywords = operator.itemgetter(1), operator.itemgetter(2)


def _is_flat_batch(calls: Arguments, flat: frozenset[type]) -> bool:
    """Whether no call of a batch has other than flat arguments; found out without a step for each of them."""
    arguments = itertools.chain.from_iterable(map(_arguments, calls))
    return not any(map(_keywords, calls)) and flat.issuperset(map(type, arguments))


def _holds_marked(values: Iterable[Any]) -> bool:
    """Whether ``values`` hold something that the packer would take for something else, or that is large.

    It takes a bytearray for bytes, so that must be known before.
    """
    kinds = set(map(type, values))
    if kinds.isdisjoint(_MEANT):
        return False
    if bytearray in kinds or memoryview in kinds:
        return True
    if len(kinds) == 1 and bytes in kinds:
        return max(map(len, values)) >= LARGE
    for value in values:
        kind = type(value)
        if kind in _CONTAINERS:
            members = value.values() if kind is dict else value
            # most hold text and numbers only, which is found out faster without another step
            if not _TEXT_AND_NUMBERS.issuperset(map(type, members)) and _holds_marked(members):
                return True
        elif kind is bytes and len(value) >= LARGE:
            return True
    return False


def _mark(value: Any, parts: PartWriter) -> Any:
    """``value`` with every bytearray in it an extension, and large bytes gone; containers of those are copies."""
    kind = type(value)
    if kind in _RAW:
        if is_large(value) and not parts.full:
            return parts.reference(value)
        return msgpack.ExtType(_BYTEARRAY, bytes(value)) if kind is bytearray else value
    if kind is dict:
        if _TEXT_AND_NUMBERS.issuperset(map(type, value.values())):
            return value
        return {key: _mark(item, parts) for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind([_mark(item, parts) for item in value])
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
    **BASES,
    dict: dict,
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
}
"""Subclasses of builtin types travel as the builtin: the peer need not know them."""
_LISTED: Final = (collections.deque, KeysView, ValuesView, ItemsView)
"""What Pyro writes as a list by default, that is with serpent."""
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
        classes = self._classes
        self._own = _OwnForm(classes, context) if context.own else None
        form = self._own or _StockForm(classes.to_dict)
        self._form: _OwnForm | _StockForm = form
        self._unpack_extension = form.unpack_extension
        self._flat = _SCALARS if self._own is None else _TEXT_AND_NUMBERS

    def dumps_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> Body:
        """The body of a call. Plain arguments are written alike in both forms, and at once."""
        flat = self._flat
        if kwargs is None and method == "<batch>":
            try:
                if _is_flat_batch(args, flat):
                    return _PLAIN.pack([object_id, method, list(args), None])
            except (OverflowError, ValueError, TypeError, LookupError):  # a large integer, or not really a batch
                pass
        elif not kwargs:
            for value in args:  # mostly few: to make a set of their types takes longer
                if type(value) not in flat:
                    break
            else:
                try:
                    return _PLAIN.pack([object_id, method, list(args), kwargs])
                except (OverflowError, ValueError):  # a large integer
                    pass
        return super().dumps_call(object_id, method, args, kwargs)

    def dumps(self, value: Any) -> Body:
        """The body of one value. The commonest are written alike in both forms, and at once."""
        kind = type(value)
        if kind in _TINY:
            try:
                return _pack_tiny(value)  # type: ignore[no-any-return]  # bytes
            except (OverflowError, ValueError):  # a large integer
                pass
        elif kind is Uri and (uri := self._classes.plain_uri(value)) is not None:
            try:
                return _PLAIN.pack(uri)
            except (TypeError, OverflowError, ValueError):  # lone surrogates, for instance
                pass
        return super().dumps(value)

    def loads_call(self, body: Body) -> Call:
        """The call of a body. Plain ones are read and judged at once."""
        if type(body) is bytes and body.find(CLASS_MARK) < 0:
            try:
                parts = unpackb(
                    body, raw=False, strict_map_key=False, unicode_errors=_SURROGATES, ext_hook=self._unpack_extension
                )
                object_id, method, args, kwargs = parts
            except Exception:  # noqa: S110  # what is wrong is said below
                pass
            else:
                if (
                    type(object_id) is type(method) is str
                    and type(args) is list
                    and type(kwargs) is dict
                    and not kwargs
                ):
                    return object_id, method, args, kwargs
                return check_call(parts)
        return super().loads_call(body)

    def loads(self, body: Body) -> Any:
        """The value of a body. What is one URI is often the same again, as the answers of a name server are."""
        if type(body) is bytes:
            if body.startswith(_URI_BODY) and len(body) <= USUAL_LENGTH and self._classes.builds_uris:
                uri = _uri_of(body)
                if uri is not None:
                    return uri
            try:
                value = unpackb(
                    body, raw=False, strict_map_key=False, unicode_errors=_SURROGATES, ext_hook=self._unpack_extension
                )
            except Exception:  # noqa: S110  # what is wrong is said below
                pass
            else:
                return value if body.find(CLASS_MARK) < 0 else self._revived(value)
        return super().loads(body)

    def _write_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> Body:
        return self._form.pack_call(object_id, method, args, kwargs)

    def _write(self, value: Any) -> Body:
        return self._form.pack(value)

    def _read(self, body: Body) -> Any:
        try:
            value = msgpack.unpackb(
                body, raw=False, strict_map_key=False, unicode_errors=_SURROGATES, ext_hook=self._unpack_extension
            )
        except (msgpack.FormatError, TypeError):  # neither comes of a small body that is well-formed
            if self._own is None or not (isinstance(body, Scattered) or has_parts(body)):
                raise
            value, body = self._own.unpack_large(body)
        return value if type(body) is bytes and body.find(CLASS_MARK) < 0 else self._revive(body, value)

    _read_call = _read
