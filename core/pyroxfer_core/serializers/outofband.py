"""Large bytes travel raw behind a msgpack body instead of in it. Layout: ``docs/protocol.md``.

Nothing here costs small values anything; what is large is neither copied when it is written nor, but for the one copy
that makes ``bytes`` of it, when it is read.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack

from ..errors import SerializeError
from ..wire.frame import body_size
from ..wire.message import Body
from ..wire.scattered import Scattered, buffers_of, scattered

LARGE: Final = 16 * 1024
"""Bytes of a value from which it travels behind the body."""
MAX_PARTS: Final = 1024
MARK: Final = 0xC1
"""First byte of a body with parts behind it; begins no msgpack value."""
PART: Final = 0x4C
"""Extension type that stands for bytes behind the body."""

_BYTES: Final = 0
_BYTEARRAY: Final = 1
_ALIGNMENT: Final = 16
_TABLE: Final = struct.Struct("!BBHI")
_REFERENCE: Final = struct.Struct("!HB")


class PartWriter:
    """Collects the large values of one body.

    Args:
        snapshot: copy what could be changed while it is being sent. Without it the owner must leave the values alone
            until then.
        room: how many there may be; 0 when the peer takes none.
    """

    __slots__ = ("_room", "_snapshot", "parts")

    def __init__(self, *, snapshot: bool, room: int = MAX_PARTS) -> None:
        self.parts: list[Body] = []
        self._snapshot = snapshot
        self._room = room

    @property
    def full(self) -> bool:
        """Whether further values must stay in the body."""
        return len(self.parts) >= self._room

    def add(self, data: Body) -> int:
        """Take a value along; its index."""
        if type(data) is not bytes:
            view = memoryview(data)
            copied = not view.c_contiguous or (self._snapshot and not view.readonly)
            data = view.tobytes() if copied else view.cast("B")
        self.parts.append(data)
        return len(self.parts) - 1

    def reference(self, data: Body) -> msgpack.ExtType:
        """Take bytes along; what stands for them in the body."""
        kind = _BYTEARRAY if type(data) is bytearray else _BYTES
        return msgpack.ExtType(PART, _REFERENCE.pack(self.add(data), kind))

    def body(self, packed: bytes) -> Body:
        """The whole body, of the msgpack body and what was taken along."""
        if not self.parts:
            return packed
        lengths = [len(part) for part in self.parts]
        table = _TABLE.pack(MARK, 0, len(lengths), len(packed)) + struct.pack(f"!{len(lengths)}I", *lengths)
        buffers: list[Body] = [table, packed]
        end = len(table) + len(packed)
        for part in self.parts:
            gap = -end % _ALIGNMENT
            buffers += (bytes(gap), part)
            end += gap + len(part)
        return scattered(buffers)


class Parts:
    """What came behind one body; each part is used exactly once.

    Args:
        places: where each part begins and ends in the body.
    """

    __slots__ = ("_body", "_places")

    def __init__(self, body: Scattered, places: list[tuple[int, int] | None]) -> None:
        self._body = body
        self._places = places

    def take(self, index: int) -> tuple[int, int]:
        """Where the part of that index is.

        Raises:
            SerializeError: there is none, or it was used before.
        """
        place = self._places[index] if index < len(self._places) else None
        if place is None:
            raise SerializeError(f"msgpack: there is no unused part {index} behind the body")
        self._places[index] = None
        return place

    def read(self, data: bytes) -> bytes | bytearray:
        """The bytes that an extension stands for; not copied if they came in an object of their own."""
        if len(data) != _REFERENCE.size:
            raise SerializeError("msgpack: malformed reference to a part behind the body")
        index, kind = _REFERENCE.unpack(data)
        if kind not in (_BYTES, _BYTEARRAY):
            raise SerializeError(f"msgpack: a part behind the body has the unknown kind {kind}")
        place = self.take(index)
        if kind == _BYTEARRAY:
            return bytearray().join(self._body.cut(*place))
        whole = self._body.whole(*place)
        return whole if type(whole) is bytes else b"".join(self._body.cut(*place))

    def memory(self, index: int) -> memoryview:
        """A part that may be written to, in one piece."""
        views = self._body.cut(*self.take(index))
        return views[0] if len(views) == 1 and not views[0].readonly else memoryview(bytearray().join(views))

    def finish(self) -> None:
        """Everything was read.

        Raises:
            SerializeError: a part was not used.
        """
        if any(place is not None for place in self._places):
            raise SerializeError("msgpack: a part behind the body belongs to no value")


NO_PARTS: Final = Parts(Scattered([]), [])


def has_parts(body: Body) -> bool:
    """Whether there is something behind a body."""
    buffers = buffers_of(body)
    return bool(buffers) and buffers[0][0] == MARK


def split(body: Body) -> tuple[bytes, Parts]:
    """The msgpack body, and what is behind it.

    Raises:
        SerializeError: the lengths do not add up.
    """
    whole = body if isinstance(body, Scattered) else Scattered([body])
    size = len(whole)
    if size < _TABLE.size:
        raise SerializeError("msgpack: the table of parts is cut short")
    mark, reserved, count, packed = _TABLE.unpack(b"".join(whole.cut(0, _TABLE.size)))
    begin = _TABLE.size + 4 * count
    if mark != MARK or reserved or not 1 <= count <= MAX_PARTS or size < begin + packed:
        raise SerializeError("msgpack: malformed table of parts")
    end = begin + packed
    places: list[tuple[int, int] | None] = []
    for (length,) in struct.iter_unpack("!I", b"".join(whole.cut(_TABLE.size, begin))):
        start = end + -end % _ALIGNMENT
        end = start + length
        places.append((start, end))
    if end != size:
        raise SerializeError("msgpack: the lengths of the parts do not add up to the body")
    return b"".join(whole.cut(begin, begin + packed)), Parts(whole, places)


def is_large(value: Any) -> bool:
    """Whether a value of type bytes, bytearray or memoryview travels behind the body."""
    return (body_size(value)) >= LARGE
