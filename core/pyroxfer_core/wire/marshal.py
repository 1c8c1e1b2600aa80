"""A validating reader for the plain values of Python's marshal format, and a writer that stays within them.

``marshal.loads`` builds code objects and may crash on hostile bytes, yet Pyro uses the format for refusal texts and
blob infos. This reader builds only None, bool, int, float, complex, str, bytes, tuple, list, dict, set and frozenset.
"""

from __future__ import annotations

import marshal
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from ..errors import ProtocolError, SerializeError
from .message import Body

MAX_DEPTH: Final = 100
"""Far above what calls nest and far below the interpreter's recursion limit."""
MAX_ITEMS: Final = 1_000_000
"""An empty set takes 5 bytes to announce and 216 to keep; this bounds the product whatever the message limit."""

_REMEMBER: Final = 0x80
_MASK: Final = 0x7F
_END_OF_DICT: Final = ord("0")
_TUPLE, _SMALL_TUPLE, _LIST, _DICT = b"()[{"
_ENCODINGS: Final = {"u": "utf-8", "t": "utf-8", "a": "ascii", "A": "ascii", "z": "ascii", "Z": "ascii"}
_SHORT: Final = 4096
"""Bytes of a value that is tried as a flat one first."""
_NUMBER: Final = rb"[NTF]|[i\xe9].{4}|[g\xe7].{8}"
is_number: Final = re.compile(_NUMBER, re.DOTALL).fullmatch
_are_numbers: Final = re.compile(rb"\[.\0\0\0(?:" + _NUMBER + rb")*\{0", re.DOTALL).fullmatch
"""A list of them and an empty dict."""
read_harmless: Final = marshal.loads  # for bytes that one of the two knows: it takes a tenth of the time
_CALL: Final = b"(\x04\0\0\0u"
_TEXT: Final = ord("u")
_DIGIT_BITS: Final = 15
_WRITE_VERSION: Final = 2
"""The last version without references: the same value gives the same bytes, and every Python reads it."""

_INT: Final = struct.Struct("<i")
_FLOAT: Final = struct.Struct("<d")
_COMPLEX: Final = struct.Struct("<dd")


def read(data: Body, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS) -> object:
    """The one value in ``data``.

    ``max_items`` bounds all values together; a reference counts as much as what it refers to, so that no small input
    stands for a value that takes for ever to walk. ``max_depth`` bounds nesting, likewise through references.

    ProtocolError: another type, a count beyond the data, a reference to nothing or to an unfinished container, an
    unhashable key, digits or text out of range, over a limit, cut short, or bytes left over.
    """
    data = bytes(data)
    if is_number(data):
        return read_harmless(data)
    if len(data) <= _SHORT and max_items == MAX_ITEMS and max_depth == MAX_DEPTH:
        try:
            return _read_flat(data)
        except (_NotFlatError, IndexError, struct.error, UnicodeDecodeError):
            pass  # not of the usual form, or malformed: the full reader tells
    reader = _Reader(data, max_depth, max_items)
    try:
        return reader.read()
    except RecursionError as error:
        raise ProtocolError("marshal: nested too deep for the stack in use") from error


def read_small_call(data: bytes) -> tuple[str, str, list[object], dict[str, object]] | None:
    """Object, method, arguments and keywords of a call with numbers only; None: it takes `read` to tell."""
    try:
        if data[:6] != _CALL or len(data) > _SHORT or data[7:10] != b"\0\0\0":
            return None
        at = 10 + data[6]
        if data[at] != _TEXT or data[at + 2 : at + 5] != b"\0\0\0" or not _are_numbers(data, at + 5 + data[at + 1]):
            return None
        call: tuple[str, str, list[object], dict[str, object]] = read_harmless(data)
    except (IndexError, EOFError, ValueError):  # cut short, fewer arguments than it says, or no text
        return None
    return call if type(call[3]) is dict else None  # else more of them


def write(value: object) -> bytes:
    """Marshal bytes of a plain value, without references. A bytearray arrives as bytes.

    SerializeError: a value of another type, subclasses included, or nested too deep for marshal.
    """
    try:
        data = marshal.dumps(value, _WRITE_VERSION)  # type: ignore[arg-type]  # it refuses the others itself
    except ValueError as error:
        raise SerializeError(f"marshal cannot write this value: {error}") from error
    _check_plain(value)
    return data


_LEAVES: Final = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})
_GROUPS: Final = frozenset({tuple, list, set, frozenset})


def _check_plain(value: object) -> None:
    """Runs after ``dumps``, which has already refused endless values."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind in _LEAVES:
            continue
        if isinstance(value, dict) and kind is dict:
            waiting.extend(value.keys())
            waiting.extend(value.values())
        elif isinstance(value, Iterable) and kind in _GROUPS:
            waiting.extend(value)
        else:
            raise SerializeError(f"marshal is used for plain values only, not {kind.__name__}")


@contextmanager
def _unhashable_refused() -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        raise ProtocolError(f"marshal: {error}") from error


class _NotFlatError(Exception):
    """These bytes are something else than the usual small call or result."""


def _read_flat(data: bytes) -> object:
    """A single leaf, or a call of leaves without keyword arguments: what most bodies are, in a few steps.

    A call is a tuple; a list that looks like one stays a list.
    """
    count, at = _counted(data, 0)
    if count is None:
        value, at = _leaf(data, 0)
        if at != len(data):
            raise _NotFlatError
        return value
    object_id, at = _leaf(data, at)
    method, at = _leaf(data, at)
    size, args_at = _counted(data, at)
    if count != 4 or data[0] & _MASK == _LIST or size is None or size > len(data):
        raise _NotFlatError
    args, offset = [], args_at
    for _ in range(size):
        value, offset = _leaf(data, offset)
        args.append(value)
    if data[offset] & _MASK != _DICT or data[offset + 1 :] != b"0":
        raise _NotFlatError
    return object_id, method, args if data[at] & _MASK == _LIST else tuple(args), {}


def _counted(data: bytes, at: int) -> tuple[int | None, int]:
    """Number of members and offset of the first one of a tuple or list; None when something else begins here."""
    code = data[at] & _MASK
    if code == _SMALL_TUPLE:
        return data[at + 1], at + 2
    if code in (_TUPLE, _LIST):
        return int.from_bytes(data[at + 1 : at + 5], "little"), at + 5
    return None, at


def _leaf(data: bytes, at: int) -> tuple[object, int]:
    """The value at an offset, and the offset behind it."""
    kind = chr(data[at] & _MASK)
    encoding = _ENCODINGS.get(kind)
    if encoding is not None:
        short = kind in "zZ"
        start = at + (2 if short else 5)
        end = start + (data[at + 1] if short else int.from_bytes(data[at + 1 : start], "little"))
        if end > len(data):
            raise _NotFlatError
        return str(data[start:end], encoding, "surrogatepass" if encoding == "utf-8" else "strict"), end
    if kind == "i":
        return _INT.unpack_from(data, at + 1)[0], at + 5
    if kind == "g":
        return _FLOAT.unpack_from(data, at + 1)[0], at + 9
    if kind not in _CONSTANTS:
        raise _NotFlatError
    return _CONSTANTS[kind], at + 1


class _Slot:
    """What a reference needs to know of a remembered value. Unfinished until ``finished``."""

    __slots__ = ("finished", "height", "items", "value")

    def __init__(self) -> None:
        self.finished = False
        self.value: object = None
        self.items = 0
        self.height = 0


class _Reader:
    """One pass over one value. The ``read_`` methods read what follows the type byte."""

    def __init__(self, data: bytes, max_depth: int, max_items: int) -> None:
        self._data = data
        self._offset = 0
        self._max_depth = max_depth
        self._items_left = max_items
        self._deepest = 0
        self._slots: list[_Slot] = []

    def read(self) -> object:
        value = self._typed(self._byte(), 0)
        if self._offset != len(self._data):
            raise ProtocolError("marshal: bytes are left over")
        return value

    def _typed(self, code: int, depth: int) -> object:
        """The value whose type byte is ``code``; ``depth`` containers are open around it."""
        if depth > self._max_depth:
            raise ProtocolError(f"marshal: nested deeper than {self._max_depth}")
        self._deepest = max(self._deepest, depth)
        self._count(1)
        kind = chr(code & ~_REMEMBER)
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        read_it = _READERS.get(kind)
        if read_it is None:
            raise ProtocolError(f"marshal: type {kind!r} is not a plain value")
        if code & _REMEMBER and kind != "r":
            return self._remembered(read_it, depth)
        return read_it(self, depth)

    def _remembered(self, read_it: Callable[[_Reader, int], object], depth: int) -> object:
        """Numbers are given in the order in which values begin, so an outer container comes before its members."""
        slot = _Slot()
        self._slots.append(slot)
        items_left, deepest = self._items_left, self._deepest
        self._deepest = depth
        slot.value = read_it(self, depth)
        slot.items = items_left - self._items_left
        slot.height = self._deepest - depth
        slot.finished = True
        self._deepest = max(deepest, self._deepest)
        return slot.value

    def read_reference(self, depth: int) -> object:
        index = self._int()
        if not 0 <= index < len(self._slots) or not self._slots[index].finished:
            raise ProtocolError("marshal: reference to nothing, or to an unfinished value")
        slot = self._slots[index]
        self._count(slot.items)
        if depth + slot.height > self._max_depth:
            raise ProtocolError(f"marshal: nested deeper than {self._max_depth}")
        self._deepest = max(self._deepest, depth + slot.height)
        return slot.value

    def read_integer(self, depth: int) -> int:
        return self._int()

    def read_long(self, depth: int) -> int:
        """Digits of 15 bits, least significant first, count negative for negative numbers."""
        count = self._int()
        size = abs(count)
        self._count(size)
        digits: list[int] = list(struct.unpack(f"<{size}H", self._take(2 * size)))
        if digits and (not digits[-1] or max(digits) >> _DIGIT_BITS):
            raise ProtocolError("marshal: bad digits of an integer")
        magnitude = _join_digits(digits)
        return -magnitude if count < 0 else magnitude

    def read_float(self, depth: int) -> float:
        number: float = _FLOAT.unpack(self._take(_FLOAT.size))[0]
        return number

    def read_complex(self, depth: int) -> complex:
        return complex(*_COMPLEX.unpack(self._take(_COMPLEX.size)))

    def read_bytes(self, depth: int) -> bytes:
        return self._take(self._size())

    def read_ascii(self, depth: int) -> str:
        return self._text(self._size(), "ascii")

    def read_short_ascii(self, depth: int) -> str:
        return self._text(self._byte(), "ascii")

    def read_unicode(self, depth: int) -> str:
        return self._text(self._size(), "utf-8")

    def read_tuple(self, depth: int) -> tuple[object, ...]:
        return tuple(self._members(self._size(), depth))

    def read_small_tuple(self, depth: int) -> tuple[object, ...]:
        return tuple(self._members(self._byte(), depth))

    def read_list(self, depth: int) -> list[object]:
        return self._members(self._size(), depth)

    def read_set(self, depth: int) -> set[object]:
        members = self._members(self._size(), depth)
        with _unhashable_refused():
            return set(members)

    def read_frozenset(self, depth: int) -> frozenset[object]:
        members = self._members(self._size(), depth)
        with _unhashable_refused():
            return frozenset(members)

    def read_dict(self, depth: int) -> dict[object, object]:
        pairs: list[tuple[object, object]] = []
        while (code := self._byte()) != _END_OF_DICT:
            key = self._typed(code, depth + 1)
            pairs.append((key, self._typed(self._byte(), depth + 1)))
        with _unhashable_refused():
            return dict(pairs)

    def _members(self, count: int, depth: int) -> list[object]:
        """Every member takes at least one byte, so a count beyond the rest is refused before any is read."""
        if count > len(self._data) - self._offset:
            raise ProtocolError("marshal: cut short")
        members: list[object] = []
        for _ in range(count):  # not a comprehension: that would be one more frame a level
            members.append(self._typed(self._byte(), depth + 1))
        return members

    def _count(self, items: int) -> None:
        self._items_left -= items
        if self._items_left < 0:
            raise ProtocolError("marshal: too many values")

    def _take(self, size: int) -> bytes:
        end = self._offset + size
        if end > len(self._data):
            raise ProtocolError("marshal: cut short")
        chunk = self._data[self._offset : end]
        self._offset = end
        return chunk

    def _byte(self) -> int:
        return self._take(1)[0]

    def _int(self) -> int:
        number: int = _INT.unpack(self._take(_INT.size))[0]
        return number

    def _size(self) -> int:
        size = self._int()
        if size < 0:
            raise ProtocolError("marshal: negative size")
        return size

    def _text(self, size: int, encoding: str) -> str:
        errors = "surrogatepass" if encoding == "utf-8" else "strict"
        try:
            return self._take(size).decode(encoding, errors)
        except UnicodeDecodeError as error:
            raise ProtocolError(f"marshal: {error}") from error


def _join_digits(digits: list[int]) -> int:
    """Joins neighbours again and again: n log n, where adding digit by digit would be quadratic."""
    width = _DIGIT_BITS
    while len(digits) > 1:
        if len(digits) % 2:
            digits.append(0)
        digits = [low | high << width for low, high in zip(digits[::2], digits[1::2], strict=True)]
        width *= 2
    return digits[0] if digits else 0


_CONSTANTS: Final[dict[str, object]] = {"N": None, "T": True, "F": False}

_READERS: Final[dict[str, Callable[[_Reader, int], object]]] = {
    "i": _Reader.read_integer,
    "l": _Reader.read_long,
    "g": _Reader.read_float,
    "y": _Reader.read_complex,
    "s": _Reader.read_bytes,
    "z": _Reader.read_short_ascii,
    "Z": _Reader.read_short_ascii,
    "a": _Reader.read_ascii,
    "A": _Reader.read_ascii,
    "u": _Reader.read_unicode,
    "t": _Reader.read_unicode,
    ")": _Reader.read_small_tuple,
    "(": _Reader.read_tuple,
    "[": _Reader.read_list,
    "{": _Reader.read_dict,
    "<": _Reader.read_set,
    ">": _Reader.read_frozenset,
    "r": _Reader.read_reference,
}
